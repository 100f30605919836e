package compiler

import (
	"slices"

	"thole/compiler/chains"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// leaving writes what c says of connections to addresses outside this node. Addresses and
// ports stand in the keys themselves: the maps hold only what differs from what c says of
// addresses and ports that no rule names. Twice: by the sender's number in the packet's
// priority, of what leaves; and by that in a mark, of what NAT leads back to this node.
func (l *lowering) leaving(c *workloadClass) {
	rl := c.ruleLists[egress]
	usual := rl.others.judgements[0]
	if usual.ruling != allow {
		l.add("leave_class", element(l.verdict(usual, chains.AtLeave), l.describe(c, egress, nil, usual),
			class(c.number)))
	}
	for _, d := range l.destinationsOf(rl) {
		for _, cell := range d.cells {
			l.addCell(c, d.AddressRange, cell)
		}
	}
}

// A destination is a range of addresses of which the same is said, and what of that differs from the usual judgement.
type destination struct {
	partition.AddressRange
	row   *row
	cells []cell
}

// destinationsOf divides all addresses outside this node by what the rule list says of them.
func (l *lowering) destinationsOf(rl *ruleList) []destination {
	list, known := l.destinations[rl]
	if known {
		return list
	}
	var entries []int // those with CIDRs
	var lists [][]*policy.CIDR
	for at, e := range rl.entries {
		if !e.everybody && e.list >= 0 {
			entries, lists = append(entries, at), append(lists, l.addresses.Lists[e.list])
		}
	}
	all, of := partition.Cut(lists)
	var which []int
	for i, atom := range all {
		which = which[:0]
		for _, at := range of.Lists(i) {
			which = append(which, entries[at])
		}
		r := rl.row(which)
		if n := len(list); n > 0 && list[n-1].row.signature == r.signature && list[n-1].ContinuedBy(atom) {
			list[n-1].To = atom.To
			continue
		}
		list = append(list, destination{AddressRange: atom, row: r})
	}
	l.fillCells(list, rl.others.judgements[0])
	l.destinations[rl] = list
	return list
}

// fillCells finds what differs from the usual judgement.
func (l *lowering) fillCells(list []destination, usual judgement) {
	type kind struct {
		*row
		is4 bool
	}
	cells := map[kind][]cell{}
	for i := range list {
		d := &list[i]
		k := kind{d.row, d.From.Is4()}
		if _, known := cells[k]; !known {
			cells[k] = l.cells(k.row, k.is4, usual)
		}
		d.cells = cells[k]
	}
}

// A cell is a rectangle of protocols and ports, or a span of ICMP types, that differs from the usual judgement.
type cell struct {
	protoFrom, protoTo uint8
	from, to           uint16
	types              bool // from and to are ICMP types
	judgement          judgement
	leave, called      nft.Verdict
}

// cells returns what a row says of addresses of a family that differs from the usual judgement.
func (l *lowering) cells(r *row, is4 bool, usual judgement) []cell {
	other := r.judgements[0] // of every port, type and protocol that no rule names
	var cells []cell
	put := func(protoFrom, protoTo uint8, from, to uint16, j judgement) {
		cells = append(cells, l.cell(protoFrom, protoTo, judgedSpan{from, to, j}, false))
	}
	next := 0 // the first protocol that is not covered yet
	plain := func(until int) {
		if next < until && !other.same(usual) {
			put(uint8(next), uint8(until-1), 0, 65535, other)
		}
	}
	for _, proto := range []uint8{uint8(policy.TCP), uint8(policy.UDP), uint8(policy.SCTP)} {
		spans := l.spansOf(proto, r)
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
	return append(cells, l.typeCells(r, is4, other)...)
}

// typeCells returns the ICMP types that differ from what is said of other protocols.
func (l *lowering) typeCells(r *row, is4 bool, other judgement) []cell {
	proto := uint8(policy.ICMP)
	if !is4 {
		proto = nft.ProtoICMPv6
	}
	var cells []cell
	for _, s := range l.spansOf(proto, r) {
		if !s.judgement.same(other) {
			cells = append(cells, l.cell(proto, proto, s, true))
		}
	}
	return cells
}

func (l *lowering) cell(protoFrom, protoTo uint8, s judgedSpan, types bool) cell {
	leave, called := l.verdict(s.judgement, chains.AtLeave), l.verdict(s.judgement, chains.AtCalled)
	return cell{protoFrom, protoTo, s.from, s.to, types, s.judgement, leave, called}
}

// A judgedSpan is a span of ports or types about which the same is said.
type judgedSpan struct {
	from, to  uint16
	judgement judgement
}

// spansOf covers a protocol's ports or types, ascending, with as few spans as can be.
func (l *lowering) spansOf(proto uint8, r *row) []judgedSpan {
	last := uint16(65535)
	if proto == uint8(policy.ICMP) || proto == nft.ProtoICMPv6 {
		last = 255
	}
	var named []judgedSpan
	for i, at := range r.ports {
		for _, s := range l.ports.Classes[at].Spans {
			if s.Proto == proto {
				named = append(named, judgedSpan{s.From, s.To, r.judgements[i+1]})
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

// addCell writes a cell into both maps, with one key.
func (l *lowering) addCell(c *workloadClass, r partition.AddressRange, cell cell) {
	set, key := family(r.From), []nft.Value{class(c.number), nft.AddressRange(r.From, r.To)}
	if cell.types {
		set = "_icmp" + set
		key = append(key, nft.Span(uint64(cell.from), uint64(cell.to)))
	} else {
		key = append(key, nft.Span(uint64(cell.protoFrom), uint64(cell.protoTo)),
			nft.Span(uint64(cell.from), uint64(cell.to)))
	}
	comment := ""
	if l.comments {
		comment = c.String() + " → " + r.String() + ": " + cell.judgement.String()
	}
	l.add("leave"+set, element(cell.leave, comment, key...))
	l.add("called"+set, element(cell.called, comment, key...))
}
