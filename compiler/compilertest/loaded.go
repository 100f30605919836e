package compilertest

import (
	"fmt"
	"strings"

	"thole/compiler"
	"thole/compiler/chains"
	"thole/compiler/partition"
	"thole/ruleset"
)

// Loaded returns what a table says of numbers and epoch: compiled with them, the same input gives the same table. Of a
// table that is not Thole's it returns little or nothing.
func Loaded(t *ruleset.Table) (compiler.Numbers, uint16) {
	n := compiler.Numbers{Workloads: map[string]uint32{}, Addresses: map[string]uint32{}}
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
				key, number := fmt.Sprint("#", e.Key[0].From.Uint64()), e.Number
				n.Next = max(n.Next, number+1)
				if class, ok := groups[number]; ok {
					n.Workloads["itself "+key] = number
					number = class
				}
				n.Workloads[key] = number
				n.Next = max(n.Next, number+1)
			case s.Name == "address4" || s.Name == "address6":
				r := partition.AddressRange{From: e.Key[0].From.Addr(s.Key[0]), To: e.Key[0].To.Addr(s.Key[0])}
				n.Addresses[r.String()] = e.Number
			}
		}
	}
	return n, chains.EpochOf(t)
}
