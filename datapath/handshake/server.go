package handshake

import (
	"bytes"

	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// opened is for a SYN with T1.
func (n *Node) opened(c Conn, e *Event) (Conn, Action) {
	p := e.Packet
	first := p.Seq + uint32(len(p.Payload())) + p3 + 1
	switch {
	case c.State == Offered || c.State == Proving || c.State == Plain:
		return c, refuse(refusal.Simultaneous)
	case c.State == Answered && c.first != first:
		return c, refuse(refusal.Busy)
	}
	own := n.Own(e.Workload)
	if own == nil {
		return c, Action{Do: Accept, Err: refusal.NotWanted}
	}
	next := Conn{State: Received, first: first, workload: e.Workload}
	next.nonces.server = e.Nonce
	if c.first == first {
		next.serverAt = c.serverAt
	}
	err := n.readT1(&next, &c, own, p)
	if err != nil {
		return c, refuse(err)
	}
	if next.Class, err = n.Class(next.pair.Peer, p.Source.Addr()); err != nil {
		return c, refuse(err)
	}
	if c.State != Closed && c.first == first && c.pair == next.pair && c.nonces.client == next.nonces.client {
		c.owesFull = c.owesFull || next.owesFull // the same T1, or its other form, once more
		c.GoodM1 = c.GoodM1 || next.GoodM1
		c.Class = next.Class
		next = c
	}
	return next, Action{Do: TakeT1, Mark: MarkPending, Class: next.Class}
}

// readT1 writes into next what p's T1 says. Before is the Conn that there was.
func (n *Node) readT1(next, before *Conn, own *token.OwnStatement, p *packet.Packet) error {
	from := p.Source.Addr()
	if p.Token == token.TypeShortT1 {
		t, err := token.ParseShortT1(p.Payload())
		if err != nil {
			return err
		}
		next.nonces.client, next.GoodM1 = t.Nonce, true
		if next.pair, err = n.Named(Server, next.workload, t.Server, t.Client, from); err != nil {
			return err
		}
		return next.pair.Keys.VerifyM1(next.exchange(), t.M1)
	}
	t, err := token.ParseFullT1(p.Payload())
	if err != nil {
		return err
	}
	next.nonces.client, next.owesFull = t.Nonce, true
	// A SYN that came again goes by the keys that the connection has, also where ours
	// turned over meanwhile: T2 may be on its way.
	if before.State != Closed && before.workload == next.workload &&
		bytes.Equal(t.Statement, before.pair.Peer.Statement.Bytes()) {
		next.pair = before.pair
		return nil
	}
	next.pair, err = n.Stated(Server, own, t.Statement, from)
	return err
}

// answer is for the kernel's SYN-ACK.
func (c Conn) answer(p *packet.Packet) (Conn, Action) {
	switch {
	case c.State == Plain:
		return c, Action{Do: Accept}
	case c.State == Closed:
		return c, Action{Do: RefuseOpen, Err: refusal.Forgotten} // no proof of it can be good any more
	case c.State != Received && c.State != Answered:
		return c, refuse(refusal.Unexpected)
	case p.Ack != c.first && c.State == Answered:
		return Conn{}, refuse(refusal.Stale) // the kernel has given up c
	}
	put := tokenParts{typ: token.TypeShortT2, nonce: c.nonces.server, own: c.pair.Own.Statement.Fingerprint()}
	put.mac = c.pair.Keys.M2(c.exchange())
	if p.Ack != c.first {
		// The kernel still waits for a connection before this one, of which the client will
		// know nothing: its node resets it.
		return c, Action{Do: PutT2, Err: refusal.Stale, put: put}
	}
	statement := c.pair.Own.Statement.Bytes()
	t1 := token.FullT1Size + len(c.pair.Peer.Statement.Bytes())
	if c.owesFull && token.FullT2Size+len(statement) <= maxAmplification*t1 {
		put.typ, put.statement = token.TypeFullT2, statement
		c.sentFull = true
	} else {
		c.sentShort = true
	}
	c.State, c.owesFull, c.serverAt = Answered, false, p.Seq
	return c, Action{Do: PutT2, put: put}
}

// maxAmplification bounds how much larger T2 is than the T1 that it answers.
const maxAmplification = 3

// proven is for a packet with T3. What proves nothing goes on without a mark: whether
// its data is taken is conntrack's to say.
func (c Conn) proven(p *packet.Packet) (Conn, Action) {
	if len(p.Payload()) < p3 {
		return c, refuse(refusal.BadLength)
	}
	t3, err := token.ParseT3(p.Payload()[:p3])
	switch {
	case err != nil:
		return c, refuse(err)
	case c.State == Closed:
		return c, Action{Do: TakeT3, Mark: MarkUnproven, Err: refusal.Forgotten}
	case c.State != Received && c.State != Answered:
		return c, refuse(refusal.Unexpected)
	case p.Seq+p3 != c.first:
		return c, Action{Do: TakeT3, Mark: MarkUnproven, Err: refusal.Stale}
	}
	if err := c.pair.Keys.VerifyM3(c.exchange(), c.pair.Keys.M2(c.exchange()), t3.M3); err != nil {
		return c, Action{Do: TakeT3, Mark: MarkUnproven, Err: err}
	}
	return Conn{}, Action{Do: TakeT3, Mark: MarkProven, Class: c.Class}
}

// unproven is for what a pending connection's client sends without a proof, a SYN
// without a token for instance, which its kernel would answer.
func (c *Conn) unproven(p *packet.Packet) Action {
	switch {
	case c.State == Closed && p.Flags&packet.ACK != 0:
		return refuse(refusal.Forgotten).end(p.Ack)
	case c.State == Plain: // a SYN that meets ours, which went without a token
		return Action{Do: Accept}
	}
	return refuse(refusal.Unproven)
}

// reset is for a RST of this node's kernel.
func (c Conn) reset(p *packet.Packet) (Conn, Action) {
	if c.State != Received && c.State != Answered {
		return c, Action{Do: Accept}
	}
	if p.Flags&packet.ACK != 0 && p.Ack == c.first {
		return Conn{}, Action{Do: PutReset}
	}
	return c, Action{Do: PutReset}
}

// window is how far from the client's first byte a RST ends a connection that has not
// begun: Linux's first receive window is not larger.
const window = 1 << 16

// wasReset is for a RST of the other node.
func (c Conn) wasReset(p *packet.Packet) (Conn, Action) {
	switch c.State {
	case Offered, Proving:
		if p.Flags&packet.ACK != 0 && p.Ack == c.first-p3 {
			return c, Action{Do: TakeReset}
		}
	case Plain:
		answers := p.Flags&packet.ACK != 0 && p.Ack == c.first
		return c, Action{Do: Accept, ForgetPlain: c.assumed && answers}
	case Received, Answered:
		if p.Seq-c.first < window {
			return Conn{}, Action{Do: Accept}
		}
	}
	return c, Action{Do: Accept}
}
