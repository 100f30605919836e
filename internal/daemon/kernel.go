package daemon

import (
	"thole/compiler"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// Kernel holds the loaded tables. A change is applied as a whole or not at all.
type Kernel interface {
	Read(name string) (*ruleset.Table, error) // nil: there is none
	Apply(ruleset.Change) error
	Generation() (uint32, error) // one more with each transaction of any program
	Counters(name string) (map[string]kernel.Counter, error)
}

// A conntrack rewrites the marks of living connections (kernel.Conn.Remark).
type conntrack interface {
	Remark(mask, bits uint32, change func(mark uint32) uint32) (int, error)
}

// tableName is the one table that is ours.
const tableName = "thole"

// epochOf returns the epoch that the rules of a table write into the conntrack
// mark, 0 if they do not agree on one.
func epochOf(t *ruleset.Table) uint16 {
	if t == nil {
		return 0
	}
	var found uint16
	for _, chain := range t.Chains {
		for _, rule := range chain.Rules {
			for _, s := range rule.Statements {
				set, ok := s.(ruleset.SetBits)
				epoch := uint16(set.Or>>epochShift) & compiler.StaleEpoch
				if !ok || set.Target != ruleset.CtMark || epoch == 0 {
					continue
				}
				if found != 0 && found != epoch {
					return 0
				}
				found = epoch
			}
		}
	}
	return found
}

// epochShift is where the mark has its epoch (compiler/mark.go); a test holds
// them together.
const epochShift = 16
