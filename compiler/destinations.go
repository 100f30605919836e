package compiler

import (
	"thole/compiler/chains"
	"thole/compiler/classes"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// leaving writes what c says of connections to addresses outside this node. Addresses and
// ports stand in the keys themselves: the maps hold only what differs from what c says of
// addresses and ports that no rule names. Twice: by the sender's number in the packet's
// priority, of what leaves; and by that in a mark, of what NAT leads back to this node.
func (l *lowering) leaving(c *classes.Class) {
	rl := c.RuleLists[classes.Egress]
	usual := rl.Others.OtherPorts()
	if usual.Ruling != classes.Allow {
		l.add("leave_class", element(l.verdict(usual, chains.AtLeave), l.describe(c, classes.Egress, nil, usual),
			class(c.Number)))
	}
	for _, d := range l.destinationsOf(rl) {
		for _, cell := range d.cells {
			l.addCell(c, d.AddressRange, cell)
		}
	}
}

// A destination is a range of addresses of which the same is said, and what of that differs from the usual judgement.
type destination struct {
	classes.Destination
	cells []cell
}

// destinationsOf divides all addresses outside this node by what the rule list says of them.
func (l *lowering) destinationsOf(rl *classes.RuleList) []destination {
	list, known := l.destinations[rl]
	if known {
		return list
	}
	divided := l.classes.Destinations(rl)
	list = make([]destination, len(divided))
	for i, d := range divided {
		list[i].Destination = d
	}
	l.fillCells(list, rl.Others.OtherPorts())
	l.destinations[rl] = list
	return list
}

// fillCells finds what differs from the usual judgement.
func (l *lowering) fillCells(list []destination, usual classes.Judgement) {
	type kind struct {
		*classes.Row
		is4 bool
	}
	cells := map[kind][]cell{}
	for i := range list {
		d := &list[i]
		k := kind{d.Row, d.From.Is4()}
		if _, known := cells[k]; !known {
			cells[k] = l.cells(k.Row, k.is4, usual)
		}
		d.cells = cells[k]
	}
}

// A cell is a rectangle of protocols and ports, or a span of ICMP types, that differs from the usual judgement.
type cell struct {
	protoFrom, protoTo uint8
	from, to           uint16
	types              bool // from and to are ICMP types
	judgement          classes.Judgement
	leave, called      nft.Verdict
}

// cells returns what a row says of addresses of a family that differs from the usual judgement.
func (l *lowering) cells(r *classes.Row, is4 bool, usual classes.Judgement) []cell {
	other := r.OtherPorts() // of every port, type and protocol that no rule names
	var cells []cell
	put := func(protoFrom, protoTo uint8, from, to uint16, j classes.Judgement) {
		cells = append(cells, l.cell(protoFrom, protoTo, classes.Span{From: from, To: to, Judgement: j}, false))
	}
	next := 0 // the first protocol that is not covered yet
	plain := func(until int) {
		if next < until && !other.Same(usual) {
			put(uint8(next), uint8(until-1), 0, 65535, other)
		}
	}
	for _, proto := range []uint8{uint8(policy.TCP), uint8(policy.UDP), uint8(policy.SCTP)} {
		spans := l.classes.Spans(proto, r)
		if len(spans) == 1 && spans[0].Judgement.Same(other) {
			continue
		}
		plain(int(proto))
		next = int(proto) + 1
		for _, s := range spans {
			if !s.Judgement.Same(usual) {
				put(proto, proto, s.From, s.To, s.Judgement)
			}
		}
	}
	plain(256)
	return append(cells, l.typeCells(r, is4, other)...)
}

// typeCells returns the ICMP types that differ from what is said of other protocols.
func (l *lowering) typeCells(r *classes.Row, is4 bool, other classes.Judgement) []cell {
	proto := uint8(policy.ICMP)
	if !is4 {
		proto = nft.ProtoICMPv6
	}
	var cells []cell
	for _, s := range l.classes.Spans(proto, r) {
		if !s.Judgement.Same(other) {
			cells = append(cells, l.cell(proto, proto, s, true))
		}
	}
	return cells
}

func (l *lowering) cell(protoFrom, protoTo uint8, s classes.Span, types bool) cell {
	leave, called := l.verdict(s.Judgement, chains.AtLeave), l.verdict(s.Judgement, chains.AtCalled)
	return cell{protoFrom, protoTo, s.From, s.To, types, s.Judgement, leave, called}
}

// addCell writes a cell into both maps, with one key.
func (l *lowering) addCell(c *classes.Class, r partition.AddressRange, cell cell) {
	set, key := family(r.From), []nft.Value{class(c.Number), nft.AddressRange(r.From, r.To)}
	if cell.types {
		set = "_icmp" + set
		key = append(key, nft.Span(uint64(cell.from), uint64(cell.to)))
	} else {
		key = append(key, nft.Span(uint64(cell.protoFrom), uint64(cell.protoTo)),
			nft.Span(uint64(cell.from), uint64(cell.to)))
	}
	comment := ""
	if l.options.Comments {
		comment = c.String() + " → " + r.String() + ": " + cell.judgement.String()
	}
	l.add("leave"+set, element(cell.leave, comment, key...))
	l.add("called"+set, element(cell.called, comment, key...))
}
