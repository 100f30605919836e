package daemon

import (
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
