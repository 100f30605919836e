package compiler

import (
	"strings"

	"thole/compiler/mark"
	"thole/ruleset"
)

// Loaded returns what a loaded table says of numbers and epoch, so that the next
// table continues it. Of a table that is not ours it returns little or nothing.
func Loaded(t *ruleset.Table) (Numbers, uint16) {
	n := Numbers{Workloads: map[string]uint32{}, Addresses: map[string]uint32{}}
	groups := map[uint32]uint32{} // the class of a member's own number
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			if s.Name == "group" {
				groups[uint32(e.Key[0].From.Uint64())] = e.Number
			}
		}
	}
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			switch {
			case strings.HasPrefix(s.Name, "listener"):
				key, number := cgroupKey(e.Key[0].From.Uint64()), e.Number
				n.Next = max(n.Next, number+1)
				if class, ok := groups[number]; ok {
					n.Workloads[itselfPrefix+key] = number
					number = class
				}
				n.Workloads[key] = number
				n.Next = max(n.Next, number+1)
			case s.Name == "address4" || s.Name == "address6":
				r := addressRange{e.Key[0].From.Addr(s.Key[0]), e.Key[0].To.Addr(s.Key[0])}
				n.Addresses[r.String()] = e.Number
			}
		}
	}
	return n, EpochOf(t)
}

// EpochOf returns the epoch that the rules of a table write into the conntrack mark, 0 if
// there is no table, or they do not agree on one.
func EpochOf(t *ruleset.Table) uint16 {
	if t == nil {
		return 0
	}
	var found uint16
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			for _, s := range r.Statements {
				epoch := mark.EpochIn(written(s))
				if epoch == 0 {
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

// written are the bits that a statement sets in the conntrack mark.
func written(s ruleset.Statement) uint32 {
	switch s := s.(type) {
	case ruleset.SetBits:
		if s.Target == ruleset.CtMark {
			return s.Or
		}
	case ruleset.Copy:
		if s.Target == ruleset.CtMark {
			return s.Or
		}
	}
	return 0
}
