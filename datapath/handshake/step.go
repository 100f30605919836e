package handshake

import (
	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// Step is the transition function. The caller stores the Conn it returns before the
// verdict goes out, and where that fails (a pool of the table is full) drops the packet.
// It allocates nothing but what Statements and Policy do.
func (n *Node) Step(c Conn, e *Event) (Conn, Action) {
	switch e.Kind {
	case Out:
		return n.out(c, e)
	case In:
		return n.in(c, e)
	case Quoted:
		return c, c.quoted(e.Quote)
	}
	return c, refuse(refusal.Unexpected)
}

// kindOf is p's control bits, as far as they say what kind of packet it is.
func kindOf(p *packet.Packet) packet.Flags {
	return p.Flags & (packet.SYN | packet.ACK | packet.RST)
}

// out is for a packet of this node's kernel.
func (n *Node) out(c Conn, e *Event) (Conn, Action) {
	p := e.Packet
	if p.Token != 0 { // an application's own, made to deceive
		return c, refuse(refusal.Misplaced)
	}
	switch kindOf(p) {
	case packet.SYN:
		return n.open(c, e)
	case packet.SYN | packet.ACK:
		return c.answer(p)
	case packet.RST, packet.RST | packet.ACK:
		return c.reset(p)
	}
	switch c.State {
	case Proving:
		return c.prove(p)
	case Closed, Plain:
		return c, Action{Do: Accept}
	}
	return c, refuse(refusal.Unexpected)
}

// in is for a packet of another node.
func (n *Node) in(c Conn, e *Event) (Conn, Action) {
	p := e.Packet
	switch kind := kindOf(p); {
	case p.Token == token.TypeShortT1 || p.Token == token.TypeFullT1:
		if kind == packet.SYN {
			return n.opened(c, e)
		}
	case p.Token == token.TypeShortT2 || p.Token == token.TypeFullT2:
		if kind == packet.SYN|packet.ACK {
			return n.answered(c, p)
		}
	case p.Token == token.TypeT3:
		if kind == packet.ACK {
			return c.proven(p)
		}
	case kind&packet.RST != 0:
		return c.wasReset(p)
	case kind == packet.SYN|packet.ACK:
		return n.answeredPlain(c, p)
	default:
		return c, c.unproven(p)
	}
	return c, refuse(refusal.Misplaced)
}

// quoted is for an ICMP error: a number is put back only if it is exactly one that went
// out. Behind the translation a rule may have quoted the kernel's own.
func (c *Conn) quoted(q *packet.Quote) Action {
	shift := func(d uint32) bool { return q.Seq+d == c.quotable() }
	sizes := [2]struct {
		sent bool
		size uint32
	}{{c.sentShort, 0}, {c.sentFull, 0}}
	switch c.State {
	case Offered, Proving:
		sizes[0].size = token.ShortT1Size + p3
		sizes[1].size = uint32(token.FullT1Size+len(c.own.Statement.Bytes())) + p3
		if c.State == Proving && q.Seq == c.first-p3 {
			return Action{Do: ShiftQuote, shift: p3}
		}
	case Answered:
		sizes[0].size = token.ShortT2Size
		sizes[1].size = uint32(token.FullT2Size + len(c.pair.Own.Statement.Bytes()))
	}
	for _, t := range sizes {
		if t.sent && t.size != 0 && shift(t.size) {
			return Action{Do: ShiftQuote, shift: t.size}
		}
	}
	return Action{Do: Accept}
}

// quotable is the kernel's number of the packet that T1 or T2 went on.
func (c *Conn) quotable() uint32 {
	if c.State == Answered {
		return c.serverAt
	}
	return c.first - 1
}

func refuse(err error) Action { return Action{Do: Drop, Err: err} }

// end also resets who sent the packet.
func (a Action) end(seq uint32) Action {
	a.Reset, a.ResetSeq = true, seq
	return a
}
