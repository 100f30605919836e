package compiler

import (
	"strings"

	"thole/ruleset"
)

// Loaded returns what a loaded table says of numbers and epoch, so that the next
// table continues it. Of a table that is not ours it returns little or nothing.
func Loaded(t *ruleset.Table) (Numbers, uint16) {
	n := Numbers{Workloads: map[string]uint32{}, Ports: map[string]uint32{}, Addresses: map[string]uint32{}}
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			switch {
			case strings.HasPrefix(s.Name, "class"):
				n.Workloads[cgroupKey(e.Key[0].From.Uint64())] = e.Number
				n.Next = max(n.Next, e.Number+1)
			case strings.HasPrefix(s.Name, "member"):
				n.Workloads[itselfPrefix+cgroupKey(e.Key[0].From.Uint64())] = e.Number
				n.Next = max(n.Next, e.Number+1)
			case s.Name == "ports":
				n.Ports[spanOf(uint8(e.Key[0].From.Uint64()), e.Key[1]).String()] = e.Number
			case s.Name == "icmp4":
				n.Ports[spanOf(uint8(ICMP), e.Key[0]).String()] = e.Number
			case s.Name == "icmp6":
				n.Ports[spanOf(protoICMPv6, e.Key[0]).String()] = e.Number
			case s.Name == "address4" || s.Name == "address6":
				r := addressRange{e.Key[0].From.Addr(s.Key[0]), e.Key[0].To.Addr(s.Key[0])}
				n.Addresses[r.String()] = e.Number
			}
		}
	}
	return n, epochOf(t)
}

func spanOf(proto uint8, v ruleset.Value) span {
	return span{proto, uint16(v.From.Uint64()), uint16(v.To.Uint64())}
}

// epochOf reads the epoch from the rule that writes it, 0 if there is none.
func epochOf(t *ruleset.Table) uint16 {
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			if set, ok := r.Statements[0].(ruleset.SetBits); ok && c.Name == "settle" {
				return uint16(set.Or & markEpoch >> epochShift)
			}
		}
	}
	return 0
}
