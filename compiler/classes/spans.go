package classes

import (
	"net/netip"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A Span is a span of ports, or of ICMP types, about which a row says the same.
type Span struct {
	From, To  uint16
	Judgement Judgement
}

// Spans covers a protocol's ports or types, ascending, with as few spans as can be.
func (cs *Set) Spans(proto uint8, r *Row) []Span {
	last := uint16(65535)
	if proto == uint8(policy.ICMP) || proto == partition.ProtoICMPv6 {
		last = 255
	}
	var named []Span
	for i, at := range r.ports {
		for _, s := range cs.Ports.Classes[at].Spans {
			if s.Proto == proto {
				named = append(named, Span{s.From, s.To, r.judgements[i+1]})
			}
		}
	}
	slices.SortFunc(named, func(a, b Span) int { return int(a.From) - int(b.From) })
	var spans []Span
	put := func(s Span) {
		if n := len(spans); n > 0 && spans[n-1].Judgement.Same(s.Judgement) {
			spans[n-1].To = s.To
			return
		}
		spans = append(spans, s)
	}
	next := 0
	for _, s := range named {
		if next < int(s.From) {
			put(Span{uint16(next), s.From - 1, r.OtherPorts()})
		}
		put(s)
		next = int(s.To) + 1
	}
	if next <= int(last) {
		put(Span{uint16(next), last, r.OtherPorts()})
	}
	return spans
}

// A Destination is a range of addresses outside this node about which a rule list says the same.
type Destination struct {
	partition.AddressRange
	Row *Row
}

// Destinations divides all addresses outside this node by what a rule list of egress says of them.
func (cs *Set) Destinations(rl *RuleList) []Destination {
	var entries []int // those with CIDRs
	var lists [][]*policy.CIDR
	for at, e := range rl.entries {
		if !e.everybody && e.list >= 0 {
			entries, lists = append(entries, at), append(lists, cs.Addresses.Lists[e.list])
		}
	}
	all, of := partition.Cut(lists)
	var list []Destination
	var which []int
	for i, atom := range all {
		which = which[:0]
		for _, at := range of.Lists(i) {
			which = append(which, entries[at])
		}
		r := rl.row(which)
		if n := len(list); n > 0 && list[n-1].Row.Signature == r.Signature && list[n-1].ContinuedBy(atom) {
			list[n-1].To = atom.To
			continue
		}
		list = append(list, Destination{atom, r})
	}
	return list
}

// Allows reports whether the egress of c allows connections to another class, on this node or not. Audit policies do
// not count. It changes nothing of the set, nor does AllowsAddress.
func (cs *Set) Allows(c, to *Class, p policy.Protocol, port uint16) bool {
	return cs.allowsPort(cs.Judge(c, Egress, to.ID), p, port)
}

// AllowsAddress is Allows for an address outside this node at which nothing was proven.
func (cs *Set) AllowsAddress(c *Class, to netip.AddrPort, p policy.Protocol) bool {
	rl, lists := c.RuleLists[Egress], cs.Addresses.Of(to.Addr()).Lists
	var which []int
	for at, e := range rl.entries {
		if _, is := slices.BinarySearch(lists, e.list); is && !e.everybody {
			which = append(which, at)
		}
	}
	return cs.allowsPort(rl.evaluate(which), p, to.Port())
}

// allowsPort reports whether a row allows connections to a port.
func (cs *Set) allowsPort(r *Row, p policy.Protocol, port uint16) bool {
	for i, at := range r.ports {
		if slices.ContainsFunc(cs.Ports.Classes[at].Spans, func(s partition.Span) bool {
			return s.Proto == uint8(p) && s.From <= port && port <= s.To
		}) {
			return r.judgements[i+1].Ruling != Deny
		}
	}
	return r.OtherPorts().Ruling != Deny
}
