package handshake

import (
	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// open is for the kernel's SYN. The kernel is believed: a SYN with another number is of
// another connection.
func (n *Node) open(c Conn, e *Event) (Conn, Action) {
	p := e.Packet
	first := p.Seq + 1
	doubted := c.State == Plain && c.assumed && c.first == first // nobody has answered
	if c.first == first && !doubted {
		switch c.State {
		case Offered, Proving:
			c.sentFull = true
			return c, c.putFullT1()
		case Plain:
			return c, Action{Do: Accept}
		}
	}
	c = Conn{State: Plain, first: first, workload: e.Workload}
	if e.Plain && !doubted {
		c.assumed = true
		return c, Action{Do: Accept}
	}
	if c.own = n.Own(e.Workload); c.own == nil {
		return c, Action{Do: Accept}
	}
	next, a := n.offer(c, e)
	a.ForgetPlain = doubted
	return next, a
}

// offer puts T1 on the kernel's SYN.
func (n *Node) offer(c Conn, e *Event) (Conn, Action) {
	p := e.Packet
	c.State, c.nonces.client = Offered, e.Nonce
	if b := p.Bytes(); len(b) <= maxSYN {
		c.synSize = uint8(copy(c.syn[:], b))
	}
	if c.pair = n.Remembered(c.own, p.Destination); c.pair == nil {
		c.sentFull = true
		return c, c.putFullT1()
	}
	c.sentShort = true
	return c, Action{Do: PutT1, put: tokenParts{
		typ: token.TypeShortT1, nonce: c.nonces.client, mac: c.pair.Keys.M1(c.exchange()),
		own: c.own.Statement.Fingerprint(), peer: c.pair.Peer.Statement.Fingerprint(),
	}}
}

func (c *Conn) putFullT1() Action {
	return Action{Do: PutT1, put: tokenParts{
		typ: token.TypeFullT1, nonce: c.nonces.client, statement: c.own.Statement.Bytes(),
	}}
}

// answered is for a SYN-ACK with T2.
func (n *Node) answered(c Conn, p *packet.Packet) (Conn, Action) {
	switch c.State {
	case Closed:
		// A connect that waits for its SYN-ACK goes on to wait, and its next SYN begins anew.
		// An open connection has lost its proof.
		return c, Action{Do: RefuseOpen, Err: refusal.Forgotten}.end(p.Ack + p3)
	case Offered, Proving:
	default:
		return c, refuse(refusal.Unexpected)
	}
	if p.Ack != c.first-p3 {
		return c, refuse(refusal.Stale).end(p.Ack + p3)
	}
	next, err := n.readT2(c, p)
	if err != nil {
		return c, refuse(err)
	}
	if next.Class, err = n.Class(next.pair.Peer, p.Source.Addr()); err != nil {
		return c, refuse(err)
	}
	if !n.Allows(c.workload, next.Class, p.Source.Port()) {
		return Conn{}, Action{Do: RefuseSYN, Err: refusal.Denied, Remember: next.pair}.end(c.first)
	}
	next.State = Proving
	next.serverAt = p.Seq + uint32(len(p.Payload()))
	return next, Action{Do: TakeT2, Mark: MarkPending, Class: next.Class, Remember: next.pair}
}

// readT2 returns c with what p's T2 proves.
func (n *Node) readT2(c Conn, p *packet.Packet) (Conn, error) {
	var err error
	from := p.Source.Addr()
	if p.Token == token.TypeShortT2 {
		t, parseErr := token.ParseShortT2(p.Payload())
		if parseErr != nil {
			return c, parseErr
		}
		c.nonces.server, c.m2 = t.Nonce, t.M2
		if c.pair != nil && c.pair.Peer.Statement.Fingerprint() == t.Server {
			return c, c.pair.Keys.VerifyM2(c.exchange(), c.m2) // asked for, or came with T2
		}
		c.pair, err = n.Named(Client, c.workload, c.own.Statement.Fingerprint(), t.Server, from)
	} else {
		t, parseErr := token.ParseFullT2(p.Payload())
		if parseErr != nil {
			return c, parseErr
		}
		c.nonces.server, c.m2 = t.Nonce, t.M2
		c.pair, err = n.Stated(Client, c.own, t.Statement, from)
	}
	if err != nil {
		return c, err
	}
	return c, c.pair.Keys.VerifyM2(c.exchange(), c.m2)
}

// answeredPlain is for a SYN-ACK without a token.
func (n *Node) answeredPlain(c Conn, p *packet.Packet) (Conn, Action) {
	switch c.State {
	case Plain:
		switch {
		case p.Ack != c.first:
			return c, refuse(refusal.Stale).end(p.Ack) // it answers the SYN with T1 once more
		case !n.AllowsPlain(c.workload, p.Source):
			return Conn{}, Action{Do: RefuseSYN, Err: refusal.Denied}.end(c.first)
		}
		return c, Action{Do: Accept, Mark: MarkPlain}
	case Proving:
		// The server's kernel sends it again after the proof: it defers accept, or has no room.
		if p.Ack == c.first && p.Seq == c.serverAt {
			return c, Action{Do: Accept}
		}
	case Offered:
		if !c.acknowledges(p.Ack) {
			return c, refuse(refusal.Stale)
		}
		c.State = Plain
		a := refuse(refusal.NoThole).end(p.Ack)
		a.SendSYN, a.RememberPlain = c.synSize != 0, true
		return c, a
	}
	return c, refuse(refusal.Unexpected)
}

// acknowledges reports whether ack answers a SYN of this connection as a machine without
// Thole does: with T1 on it, which was taken or left; or without, by a Conn before this
// one that is forgotten. On the wire c + 1 − P acknowledges all of T1.
func (c *Conn) acknowledges(ack uint32) bool {
	full := uint32(token.FullT1Size + len(c.own.Statement.Bytes()))
	return ack == c.first || ack == c.first-p3 ||
		c.sentShort && ack == c.first-p3-token.ShortT1Size || c.sentFull && ack == c.first-p3-full
}

// prove is for the kernel's packets after T2. The first data behind an ACK with T3 goes
// without: whoever looks on would see part of a segment again.
func (c Conn) prove(p *packet.Packet) (Conn, Action) {
	if p.Seq != c.first {
		return c, Action{Do: Accept}
	}
	alone := len(p.Payload()) == 0 && p.Flags&packet.FIN == 0
	before := c.proof
	switch {
	case !alone:
		c.proof = withData
	case before == unsent:
		c.proof = acked
	}
	if !alone && before == acked {
		return c, Action{Do: Accept}
	}
	mac := c.pair.Keys.M3(c.exchange(), c.m2)
	return c, Action{Do: PutT3, first: c.first, put: tokenParts{typ: token.TypeT3, mac: mac}}
}
