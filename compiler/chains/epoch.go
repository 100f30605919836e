package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// EpochOf returns the epoch that the rules of a table write into the conntrack mark, 0 if
// there is no table, or they do not agree on one.
func EpochOf(t *nft.Table) uint16 {
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
func written(s nft.Statement) uint32 {
	switch s := s.(type) {
	case nft.SetBits:
		if s.Target == nft.CtMark {
			return s.Or
		}
	case nft.Copy:
		if s.Target == nft.CtMark {
			return s.Or
		}
	}
	return 0
}
