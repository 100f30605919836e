package partition

import (
	"encoding/binary"
	"slices"

	"thole/compiler/policy"
)

// ProtoICMPv6 is the number of ICMPv6 in spans: policies write icmp for both versions.
const ProtoICMPv6 = 58

// icmpNumber returns the number of p's ICMP type in the version of proto, -1 for none.
func icmpNumber(p policy.Port, proto uint8) int {
	for _, t := range policy.ICMPTypes {
		if t.Name == p.ICMPType {
			if proto == ProtoICMPv6 {
				return int(t.V6)
			}
			return int(t.V4)
		}
	}
	return -1
}

// A Span is a run of points of one protocol, both ends included.
type Span struct {
	Proto    uint8
	From, To uint16
}

// A PortClass is a set of protocols with destination ports, or of ICMP types, that no rule of the set can tell apart.
type PortClass struct {
	Spans []Span // ascending; none for the first class
}

// PortClasses divide all that rules can name by their ports. The first class is what no rule names, so it has no spans.
type PortClasses struct {
	Classes []PortClass

	lists [][]policy.Port // the distinct ports: of all rules
	index map[string]int  // in lists
	named [][]int         // for each list, the indexes of the classes that it names, ascending
}

// Ports finds the classes of all ports that rules can tell apart.
func Ports(policies []policy.Policy) *PortClasses {
	pc := &PortClasses{index: map[string]int{}}
	for r := range policy.Rules(policies) {
		if key := portsKey(r.Ports); r.Ports != nil && !has(pc.index, key) {
			pc.index[key] = len(pc.lists)
			pc.lists = append(pc.lists, r.Ports)
		}
	}
	pc.Classes = []PortClass{{}}
	pc.named = make([][]int, len(pc.lists))
	index := map[string]int{"": 0} // by the lists that name it
	var key []byte
	for _, line := range portLines() {
		atoms, lists := pc.divide(line)
		for i, s := range atoms {
			key = key[:0]
			for _, list := range lists[i] {
				key = binary.AppendUvarint(key, uint64(list))
			}
			at, ok := index[string(key)]
			if !ok {
				at = len(pc.Classes)
				index[string(key)] = at
				pc.Classes = append(pc.Classes, PortClass{})
				for _, list := range lists[i] {
					pc.named[list] = append(pc.named[list], at)
				}
			}
			if at != 0 {
				c := &pc.Classes[at]
				c.Spans = appendSpan(c.Spans, s)
			}
		}
	}
	return pc
}

// portsKey returns a key of ports: equal keys, equal ports.
func portsKey(ports []policy.Port) string {
	var b []byte
	for _, p := range ports {
		b = append(b, byte(p.Protocol))
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, p.From), p.To)
		b = append(binary.AppendUvarint(b, uint64(len(p.ICMPType))), p.ICMPType...)
	}
	return string(b)
}

func has[V any](m map[string]V, key string) bool {
	_, ok := m[key]
	return ok
}

// A portLine is all ports, or ICMP types, of a protocol that rules can name.
type portLine struct {
	proto uint8
	last  uint16
}

// portLines returns these, in the order in which classes are found.
func portLines() []portLine {
	return []portLine{
		{uint8(policy.TCP), 65535}, {uint8(policy.UDP), 65535}, {uint8(policy.SCTP), 65535}, {uint8(policy.ICMP), 255},
		{ProtoICMPv6, 255},
	}
}

// portsOn returns what an entry of a rule's ports names of a line; ok is false where that is nothing.
func portsOn(p policy.Port, line portLine) (from, to int, ok bool) {
	switch {
	case p.Protocol != policy.ICMP && uint8(p.Protocol) != line.proto, p.Protocol == policy.ICMP && line.last != 255:
		return 0, 0, false
	case p.Protocol == policy.SCTP || p.Protocol == policy.ICMP && p.ICMPType == "":
		return 0, int(line.last), true
	case p.Protocol == policy.ICMP:
		n := icmpNumber(p, line.proto)
		return n, n, n >= 0
	default:
		return int(p.From), int(p.To), p.From <= p.To
	}
}

// divide cuts a line where an entry begins or ends. It returns the parts, ascending, and for each the lists that name
// it, ascending.
func (pc *PortClasses) divide(line portLine) (atoms []Span, named [][]int) {
	cuts := []int{0}
	for _, list := range pc.lists {
		for _, p := range list {
			if from, to, ok := portsOn(p, line); ok {
				cuts = append(cuts, from, to+1)
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	if cuts[len(cuts)-1] > int(line.last) {
		cuts = cuts[:len(cuts)-1]
	}
	for i, from := range cuts {
		to := int(line.last)
		if i+1 < len(cuts) {
			to = cuts[i+1] - 1
		}
		atoms = append(atoms, Span{line.proto, uint16(from), uint16(to)})
	}
	named = make([][]int, len(cuts))
	for at, list := range pc.lists {
		for _, p := range list {
			from, to, ok := portsOn(p, line)
			if !ok {
				continue
			}
			first, _ := slices.BinarySearch(cuts, from)
			for i := first; i < len(cuts) && cuts[i] <= to; i++ {
				if n := len(named[i]); n == 0 || named[i][n-1] != at {
					named[i] = append(named[i], at)
				}
			}
		}
	}
	return atoms, named
}

// appendSpan adds s, joined to the last Span where it continues that.
func appendSpan(spans []Span, s Span) []Span {
	if n := len(spans); n > 0 {
		last := &spans[n-1]
		if last.Proto == s.Proto && int(last.To)+1 == int(s.From) {
			last.To = s.To
			return spans
		}
	}
	return append(spans, s)
}

// Of returns the classes, by their index in Classes, that a rule's ports name, ascending.
func (pc *PortClasses) Of(ports []policy.Port) []int { return pc.named[pc.index[portsKey(ports)]] }
