package compiler

import (
	"fmt"
	"slices"
)

// A point is one protocol (as in the IP header) with one destination port, or
// one ICMP type. It is the finest thing that a rule's ports can tell apart.
type point struct {
	proto uint8
	value uint16
}

const protoICMPv6 = 58

// matches says whether the entry of a rule's ports names the point.
func (p Port) matches(at point) bool {
	switch p.Protocol {
	case TCP, UDP:
		return at.proto == uint8(p.Protocol) && p.From <= at.value && at.value <= p.To
	case SCTP:
		return at.proto == uint8(SCTP)
	}
	if at.proto != uint8(ICMP) && at.proto != protoICMPv6 {
		return false
	}
	return p.ICMPType == "" || p.icmpNumber(at.proto) == int(at.value)
}

// icmpNumber returns the number of p's ICMP type in the version of proto, -1 for none.
func (p Port) icmpNumber(proto uint8) int {
	for _, t := range ICMPTypes {
		if t.Name == p.ICMPType {
			if proto == protoICMPv6 {
				return int(t.V6)
			}
			return int(t.V4)
		}
	}
	return -1
}

// A span is a run of points of one protocol, both ends included.
type span struct {
	proto    uint8
	from, to uint16
}

// A portClass are the points that no rule of the set can tell apart.
type portClass struct {
	named []bool // which of portClasses.lists name it
	spans []span // ascending; none for the first class
}

// portClasses divide all points. The first class is what no rule names, so it has
// no spans.
type portClasses struct {
	lists   [][]Port // the distinct ports: of all rules
	index   map[string]int
	classes []portClass
}

// classifyPorts finds the classes of all points that rules can tell apart.
func classifyPorts(policies []Policy) *portClasses {
	pc := &portClasses{index: map[string]int{}}
	for r := range allRules(policies) {
		if key := fmt.Sprint(r.Ports); r.Ports != nil && !has(pc.index, key) {
			pc.index[key] = len(pc.lists)
			pc.lists = append(pc.lists, r.Ports)
		}
	}
	pc.classes = []portClass{{named: make([]bool, len(pc.lists))}}
	index := map[string]int{signature(pc.classes[0].named): 0}
	for _, s := range pc.atoms() {
		named := make([]bool, len(pc.lists))
		for i, list := range pc.lists {
			named[i] = slices.ContainsFunc(list, func(p Port) bool { return p.matches(point{s.proto, s.from}) })
		}
		sig := signature(named)
		at, ok := index[sig]
		if !ok {
			at = len(pc.classes)
			index[sig] = at
			pc.classes = append(pc.classes, portClass{named: named})
		}
		if at != 0 {
			c := &pc.classes[at]
			c.spans = appendSpan(c.spans, s)
		}
	}
	return pc
}

func has[V any](m map[string]V, key string) bool {
	_, ok := m[key]
	return ok
}

// atoms cuts every protocol that an entry can name where an entry begins or ends.
func (pc *portClasses) atoms() []span {
	var atoms []span
	for _, line := range []struct {
		proto uint8
		last  uint16
	}{{uint8(TCP), 65535}, {uint8(UDP), 65535}, {uint8(SCTP), 65535}, {uint8(ICMP), 255}, {protoICMPv6, 255}} {
		cuts := []int{0}
		for _, e := range slices.Concat(pc.lists...) {
			from, to := int(e.From), int(e.To)
			if e.Protocol == ICMP {
				from = e.icmpNumber(line.proto)
				to = from
			}
			cuts = append(cuts, from, to+1)
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		cuts = slices.DeleteFunc(cuts, func(c int) bool { return c < 0 || c > int(line.last) })
		for i, from := range cuts {
			to := int(line.last)
			if i+1 < len(cuts) {
				to = cuts[i+1] - 1
			}
			atoms = append(atoms, span{line.proto, uint16(from), uint16(to)})
		}
	}
	return atoms
}

// appendSpan adds s, joined to the last span where it continues that.
func appendSpan(spans []span, s span) []span {
	if n := len(spans); n > 0 {
		last := &spans[n-1]
		if last.proto == s.proto && int(last.to)+1 == int(s.from) {
			last.to = s.to
			return spans
		}
	}
	return append(spans, s)
}

// mask says for each class of ports whether a rule's ports name it; nil ports, and a
// nil mask, name every class.
func (pc *portClasses) mask(ports []Port) []bool {
	if ports == nil {
		return nil
	}
	mask, at := make([]bool, len(pc.classes)), pc.index[fmt.Sprint(ports)]
	for i, c := range pc.classes {
		mask[i] = c.named[at]
	}
	return mask
}

// signature turns flags into a comparable value.
func signature(flags []bool) string {
	b := make([]byte, len(flags))
	for i, f := range flags {
		if f {
			b[i] = 1
		}
	}
	return string(b)
}
