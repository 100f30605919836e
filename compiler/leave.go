package compiler

import (
	"slices"

	nft "thole/ruleset"
)

// leaving writes what c says of connections to addresses outside this node. Addresses and
// ports stand in the keys themselves: the maps hold only what differs from what c says of
// addresses and ports that no rule names. Twice: by the sender's number in the packet's
// priority, of what leaves; and by that in a mark, of what NAT leads back to this node.
func (l *lowering) leaving(c *workloadClass) {
	dk := l.docket(c, egress)
	usual := dk.judge(func(m *matcher) bool { return m.everybody }).judgements[0]
	if usual.ruling != allow {
		l.add("leave_class", element(l.verdict(usual, atLeave), l.describe(c, egress, nil, usual), class(c.number)))
	}
	for _, d := range destinations(dk) {
		for _, cell := range l.cells(dk, d, usual) {
			l.addCell("leave", atLeave, c, cell)
			l.addCell("called", atCalled, c, cell)
		}
	}
}

// A destination is a range of addresses of which the same is said.
type destination struct {
	addressRange
	*row
}

// destinations divides all addresses outside this node by what the docket says of them.
func destinations(dk *docket) []destination {
	var cidrs []*CIDR
	for _, e := range dk.entries {
		cidrs = append(cidrs, e.cidrs...)
	}
	var list []destination
	for _, atom := range atoms(cidrs) {
		r := dk.judge(func(m *matcher) bool { return m.matchesAddress(atom.from) })
		if n := len(list); n > 0 && list[n-1].signature == r.signature && continues(list[n-1].addressRange, atom) {
			list[n-1].to = atom.to
			continue
		}
		list = append(list, destination{atom, r})
	}
	return list
}

// A cell is a range of addresses, and a rectangle of protocols and ports or a span
// of ICMP types, that differs from the usual judgement.
type cell struct {
	addressRange
	protoFrom, protoTo uint8
	from, to           uint16
	types              bool // from and to are ICMP types
	judgement          judgement
}

// cells returns what differs from the usual judgement at one destination.
func (l *lowering) cells(dk *docket, d destination, usual judgement) []cell {
	other := d.judgements[0] // of every port, type and protocol that no rule names
	var cells []cell
	put := func(protoFrom, protoTo uint8, from, to uint16, j judgement) {
		cells = append(cells, cell{d.addressRange, protoFrom, protoTo, from, to, false, j})
	}
	next := 0 // the first protocol that is not covered yet
	plain := func(until int) {
		if next < until && !other.same(usual) {
			put(uint8(next), uint8(until-1), 0, 65535, other)
		}
	}
	for _, proto := range []uint8{uint8(TCP), uint8(UDP), uint8(SCTP)} {
		spans := l.spansOf(proto, dk, d.row)
		if len(spans) == 1 && spans[0].judgement.same(other) {
			continue
		}
		plain(int(proto))
		next = int(proto) + 1
		for _, s := range spans {
			if !s.judgement.same(usual) {
				put(proto, proto, s.from, s.to, s.judgement)
			}
		}
	}
	plain(256)
	return append(cells, l.typeCells(dk, d, other)...)
}

// typeCells returns the ICMP types that differ from what is said of other protocols.
func (l *lowering) typeCells(dk *docket, d destination, other judgement) []cell {
	proto := uint8(ICMP)
	if !d.from.Is4() {
		proto = protoICMPv6
	}
	var cells []cell
	for _, s := range l.spansOf(proto, dk, d.row) {
		if !s.judgement.same(other) {
			cells = append(cells, cell{d.addressRange, proto, proto, s.from, s.to, true, s.judgement})
		}
	}
	return cells
}

// A judgedSpan is a span of ports or types about which the same is said.
type judgedSpan struct {
	from, to  uint16
	judgement judgement
}

// spansOf covers a protocol's ports or types, ascending, with as few spans as can be.
func (l *lowering) spansOf(proto uint8, dk *docket, r *row) []judgedSpan {
	last := uint16(65535)
	if proto == uint8(ICMP) || proto == protoICMPv6 {
		last = 255
	}
	var named []judgedSpan
	for i, at := range dk.ports {
		for _, s := range l.ports.classes[at].spans {
			if s.proto == proto {
				named = append(named, judgedSpan{s.from, s.to, r.judgements[i+1]})
			}
		}
	}
	slices.SortFunc(named, func(a, b judgedSpan) int { return int(a.from) - int(b.from) })
	var spans []judgedSpan
	put := func(s judgedSpan) {
		if n := len(spans); n > 0 && spans[n-1].judgement.same(s.judgement) {
			spans[n-1].to = s.to
			return
		}
		spans = append(spans, s)
	}
	next := 0
	for _, s := range named {
		if next < int(s.from) {
			put(judgedSpan{uint16(next), s.from - 1, r.judgements[0]})
		}
		put(s)
		next = int(s.to) + 1
	}
	if next <= int(last) {
		put(judgedSpan{uint16(next), last, r.judgements[0]})
	}
	return spans
}

func (l *lowering) addCell(maps string, at stage, c *workloadClass, cell cell) {
	set := maps + family(cell.addressRange)
	key := []nft.Value{class(c.number), nft.AddressRange(cell.addressRange.from, cell.addressRange.to)}
	if cell.types {
		set = maps + "_icmp" + family(cell.addressRange)
		key = append(key, nft.Span(uint64(cell.from), uint64(cell.to)))
	} else {
		key = append(key, nft.Span(uint64(cell.protoFrom), uint64(cell.protoTo)), nft.Span(uint64(cell.from), uint64(cell.to)))
	}
	comment := ""
	if l.comments {
		comment = c.String() + " → " + cell.addressRange.String() + ": " + cell.judgement.String()
	}
	l.add(set, element(l.verdict(cell.judgement, at), comment, key...))
}
