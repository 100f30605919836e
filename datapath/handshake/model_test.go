package handshake

import (
	"fmt"
	"testing"

	"thole/datapath/packet"
	"thole/datapath/token"
)

// The model: two nodes' machines, real tokens and packets, with what matters of their
// kernels' TCP and of the kernel table around them, and a network.
//
//	client's TCP ── OUTPUT: pending? queue ──►   every packet that was   ──► raw: token, RST, SYN-ACK? queue
//	   ▲                                         ever sent, to be            mangle: copy the mark; pending and
//	   └─ mangle: an answer clears pending ◄──   delivered at any time,      not proven? queue
//	      raw: token, RST, SYN-ACK? queue        any number of times,    ◄── TCP ── OUTPUT: pending? queue
//	                                             or never
//
// The network forgets nothing: so it loses, delays, reorders and duplicates without a
// bound. Timers of both kernels may fire at any time. What is bounded: restarts of
// the daemons, nonces that are drawn, and that the client's port is used again once.

type mark uint8 // conntrack's, as far as it matters

const (
	noEntry mark = iota
	offered      // client: the SYN is out; own class, pending
	pending      // client: T2 was good; server: T1 was good
	settled      // client: the server has answered; server: T3 was good
)

type phase uint8

const (
	idle   phase = iota // server: listens; client: gone
	begun               // SYN-SENT, SYN-RECEIVED
	opened              // ESTABLISHED
)

// An end is one node: its TCP, its conntrack entry, its Conn.
type end struct {
	phase            phase
	isn              uint8 // which of the client's connections
	mark             mark
	aborted          bool // conntrack saw a reset
	sent, acked, got bool // own data, the other's
	reset            bool // client: by a RST
	restarts         uint8
	nonces           uint8
	conn             uint16 // index into model.conns
}

// A state is all there is.
type state struct {
	client, server end
	net            [2]uint64 // set of indices into model.wire
	t2, t3         uint8     // for which isn one went out, as bits
	reused         bool
}

// config bounds an exploration.
type config struct {
	name                         string
	clientKnows, serverKnows     bool
	serverSpeaksFirst            bool
	cookies, deferAccept, attack bool
	denied                       bool
	restarts, nonces             uint8 // of each side
	reuse                        bool
}

var (
	isns  = [2]uint32{0xfffffff0, 0x40000000}
	sisns = [2]uint32{0xfffffffa, 6_000_000}
)

const dataSize = 5

type stepKey struct {
	onServer bool
	conn     uint16
	kind     Kind
	packet   uint16
	nonce    uint8
}

type stepResult struct {
	conn                      uint16
	action                    Action
	out, before, reset, again int // indices of packets; −1: none
	drew                      bool
}

type model struct {
	config
	t        testing.TB
	machines [2]*Node
	conns    []Conn
	connOf   map[Conn]uint16
	packets  []packet.Packet
	packetOf map[string]uint16
	wire     []uint16 // packets that were on the wire
	wireOf   map[uint16]int
	names    []string // of what is on the wire
	memo     map[stepKey]stepResult
	emitted  []int // by the present transition: indices into wire
	pruned   bool  // the present transition passes a bound
	err      error
}

func newModel(t testing.TB, c config) *model {
	m := &model{
		config: c, t: t, conns: []Conn{{}}, connOf: map[Conn]uint16{{}: 0}, packetOf: map[string]uint16{},
		wireOf: map[uint16]int{}, memo: map[stepKey]stepResult{},
	}
	client, server := newNodes(t)
	if c.clientKnows {
		client.learn(t, server.owns[1], serverEnd, true)
	}
	if c.serverKnows {
		server.learn(t, client.owns[1], clientEnd, false)
	}
	client.denies = c.denied
	m.machines = [2]*Node{client.machine(), server.machine()}
	return m
}

func (m *model) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

func (m *model) intern(b []byte) uint16 {
	if i, ok := m.packetOf[string(b)]; ok {
		return i
	}
	p, err := packet.Parse(append([]byte(nil), b...))
	if err != nil {
		m.t.Fatalf("%x: %v", b, err)
	}
	m.packets = append(m.packets, p)
	i := uint16(len(m.packets) - 1)
	m.packetOf[string(b)] = i
	return i
}

func (m *model) kernel(s segment) uint16 { return m.intern(s.build()) }

// send puts a packet on the wire.
func (m *model) send(p uint16) {
	i, ok := m.wireOf[p]
	if !ok {
		i = len(m.wire)
		if i == 128 {
			m.t.Fatal("more than 128 packets on the wire")
		}
		m.add(p)
		m.checkNumbers(&m.packets[p])
	}
	m.emitted = append(m.emitted, i)
}

func (m *model) add(i uint16) {
	p := &m.packets[i]
	m.wireOf[i] = len(m.wire)
	m.wire = append(m.wire, i)
	m.names = append(m.names, fmt.Sprintf("from %d: flags %02x seq %d ack %d token %d, %d bytes", p.Source.Port(),
		p.Flags, p.Seq, p.Ack, p.Token, len(p.Payload())))
}

// checkNumbers: on the wire, T1, T3 and data, T2 and data have numbers of their own. It
// is for honest packets.
func (m *model) checkNumbers(p *packet.Packet) {
	own, size := isns[:], uint32(len(p.Payload()))
	if p.Source == serverEnd {
		own = sisns[:]
	}
	for _, isn := range own {
		first := isn + 1
		switch {
		case p.Flags&packet.RST != 0:
			return
		case p.Token == token.TypeShortT1, p.Token == token.TypeFullT1:
			if p.Seq+1+size == first-p3 {
				return
			}
		case p.Token == token.TypeShortT2, p.Token == token.TypeFullT2:
			if p.Seq+1+size == first {
				return
			}
		case p.Token == token.TypeT3:
			if p.Seq == first-p3 && (size == p3 || size == p3+dataSize) {
				return
			}
		case p.Flags&packet.SYN != 0:
			if p.Source == serverEnd && p.Seq+1 == first {
				return // the kernel's own, after the proof
			}
		case p.Seq == first || p.Seq == first+dataSize && size == 0:
			return
		}
	}
	m.fail("numbers on the wire: %+v, %d bytes", p, size)
}

func (m *model) step(st *state, onServer bool, kind Kind, p uint16) stepResult {
	e := &st.client
	if onServer {
		e = &st.server
	}
	key := stepKey{onServer, e.conn, kind, p, e.nonces}
	r, ok := m.memo[key]
	if !ok {
		r = m.compute(key)
		m.memo[key] = r
	}
	if r.drew {
		if e.nonces++; e.nonces > m.nonces {
			m.pruned = true
		}
	}
	e.conn = r.conn
	if r.reset >= 0 {
		m.send(uint16(r.reset))
	}
	if r.again >= 0 {
		m.send(uint16(r.again))
	}
	if r.before >= 0 {
		m.send(uint16(r.before))
	}
	bit := uint8(1) << e.isn
	switch {
	case r.action.Do == PutT2:
		st.t2 |= m.bitOf(&m.packets[p])
	case r.action.Do == PutT3:
		st.t3 |= bit
	case r.action.Mark == MarkProven && st.t3&m.bitOfProof(&m.packets[p]) == 0:
		m.fail("proven, and no T3 had gone out")
	}
	return r
}

// bitOf is of the connection that a server's SYN-ACK answers.
func (m *model) bitOf(p *packet.Packet) uint8 {
	if p.Ack == isns[1]+1 {
		return 2
	}
	return 1
}

func (m *model) bitOfProof(p *packet.Packet) uint8 {
	if p.Seq == isns[1]+1-p3 {
		return 2
	}
	return 1
}

func (m *model) compute(k stepKey) stepResult {
	before := m.conns[k.conn]
	p := m.packets[k.packet]
	n := nonce(int(k.nonce) + 1)
	machine := m.machines[0]
	if k.onServer {
		n[1], machine = 1, m.machines[1]
	}
	after, a := machine.Step(before, &Event{Kind: k.kind, Packet: &p, Workload: 1, Nonce: n})
	r := stepResult{action: a, out: -1, before: -1, reset: -1, again: -1}
	r.drew = after.nonces.client == n && before.nonces.client != n || after.nonces.server == n &&
		before.nonces.server != n
	if a.Do != Drop {
		out, err := a.Write(make([]byte, 0, 4096), &p)
		switch {
		case err != nil:
			m.fail("%v of %+v: %v", a.Do, p, err)
		case out.Packet == nil:
			r.out = int(k.packet)
		default:
			r.out = int(m.intern(out.Packet))
		}
		if out.Before != nil {
			r.before = int(m.intern(out.Before))
		}
	}
	if a.Reset {
		r.reset = int(m.intern(a.WriteReset(nil, &p)))
	}
	if a.SendSYN {
		r.again = int(m.intern(after.SYN()))
	}
	id, ok := m.connOf[after]
	if !ok {
		m.conns = append(m.conns, after)
		id = uint16(len(m.conns) - 1)
		m.connOf[after] = id
	}
	r.conn = id
	return r
}

// Numbers of the present connection.
func (e *end) first() uint32       { return isns[e.isn] + 1 }
func (e *end) serverFirst() uint32 { return sisns[e.isn] + 1 }

func size(yes bool) uint32 {
	if yes {
		return dataSize
	}
	return 0
}

// clientSends is OUTPUT on the client.
func (m *model) clientSends(st *state, s segment) {
	p := m.kernel(s)
	if s.flags == packet.SYN {
		st.client.mark = offered
	}
	if st.client.mark == offered || st.client.mark == pending {
		r := m.step(st, false, Out, p)
		if r.out < 0 {
			return
		}
		p = uint16(r.out)
	}
	m.send(p)
}

func (m *model) clientACK(st *state) {
	c := &st.client
	m.clientSends(st, segment{seq: c.first() + size(c.sent), ack: c.serverFirst() + size(c.got), flags: packet.ACK})
}

// clientTimer sends the SYN, or the data, once more or the first time.
func (m *model) clientTimer(st *state) bool {
	c := &st.client
	switch {
	case c.phase == begun:
		m.clientSends(st, segment{seq: c.first() - 1, flags: packet.SYN})
	case c.phase == opened && !c.acked && (!m.serverSpeaksFirst || c.got):
		c.sent = true
		m.clientSends(st, segment{seq: c.first(), ack: c.serverFirst() + size(c.got), flags: packet.ACK | packet.PSH,
			payload: []byte("hello")})
	default:
		return false
	}
	return true
}

// clientGets is what comes from the wire.
func (m *model) clientGets(st *state, i uint16) {
	c := &st.client
	p := &m.packets[i]
	queued := p.Token != 0 || p.Flags&packet.RST != 0 || kindOf(p) == packet.SYN|packet.ACK
	if queued {
		r := m.step(st, false, In, i)
		if r.out < 0 {
			return
		}
		if r.action.Mark == MarkPending && (c.mark == offered || c.mark == pending) {
			c.mark = pending
		}
		i = uint16(r.out)
		p = &m.packets[i]
	} else if c.mark == pending && m.answers(c, p) {
		c.mark = settled
	}
	m.clientTCP(st, p)
}

// answers reports whether conntrack would call p, a server's segment, valid.
func (m *model) answers(c *end, p *packet.Packet) bool {
	return p.Seq-c.serverFirst() <= dataSize && p.Ack-c.first() <= dataSize
}

func (m *model) clientTCP(st *state, p *packet.Packet) {
	c := &st.client
	isRST := p.Flags&packet.RST != 0
	synack := kindOf(p) == packet.SYN|packet.ACK
	reject := func() { m.clientSends(st, segment{seq: p.Ack, flags: packet.RST}) }
	switch {
	case c.phase == idle:
		if !isRST {
			reject()
		}
	case c.phase == begun && isRST:
		if p.Flags&packet.ACK != 0 && p.Ack == c.first() {
			c.phase, c.reset = idle, true
		}
	case c.phase == begun && p.Ack != c.first():
		reject()
	case c.phase == begun && synack:
		if st.t2&(1<<c.isn) == 0 || c.mark != pending {
			m.fail("the client's connection is open, and no T2 was good")
		}
		c.phase = opened
		m.clientACK(st)
	case c.phase == begun:
	case isRST:
		if p.Seq == c.serverFirst()+size(c.got) {
			c.phase, c.reset = idle, true
		}
	case synack:
		m.clientACK(st)
	default:
		c.acked = c.acked || c.sent && p.Ack == c.first()+dataSize
		if len(p.Payload()) > 0 && p.Seq == c.serverFirst() {
			c.got = true
			m.clientACK(st)
		}
	}
}

// serverSends is OUTPUT on the server.
func (m *model) serverSends(st *state, s segment) {
	s.fromServer = true
	p := m.kernel(s)
	if st.server.mark == pending {
		r := m.step(st, true, Out, p)
		if r.out < 0 {
			return
		}
		p = uint16(r.out)
	}
	m.send(p)
}

func (m *model) serverACK(st *state, flags packet.Flags, data string) {
	s := &st.server
	m.serverSends(st, segment{seq: s.serverFirst() + size(s.sent && data == ""), ack: s.first() + size(s.got),
		flags: packet.ACK | flags, payload: []byte(data)})
}

func (m *model) serverSYNACK(st *state, isn int) {
	m.serverSends(st, segment{seq: sisns[isn], ack: isns[isn] + 1, flags: packet.SYN | packet.ACK})
}

func (m *model) serverTimer(st *state) bool {
	s := &st.server
	switch {
	case s.phase == begun:
		m.serverSYNACK(st, int(s.isn))
	case s.phase == opened && !s.acked && (m.serverSpeaksFirst || s.got):
		s.sent = true
		m.serverACK(st, packet.PSH, "reply")
	default:
		return false
	}
	return true
}

// serverGets is what comes from the wire.
func (m *model) serverGets(st *state, i uint16) {
	s := &st.server
	p := &m.packets[i]
	marked := NoMark
	if p.Token != 0 || p.Flags&packet.RST != 0 || kindOf(p) == packet.SYN|packet.ACK {
		r := m.step(st, true, In, i)
		if r.out < 0 {
			return
		}
		i, marked = uint16(r.out), r.action.Mark
		p = &m.packets[i]
	}
	if kindOf(p) == packet.SYN && s.aborted {
		s.mark, s.aborted = noEntry, false
	}
	switch {
	case marked == MarkPending && s.mark == noEntry:
		s.mark = pending
	case marked == MarkProven && s.mark == pending:
		s.mark = settled
	case p.Flags&packet.RST != 0:
	case s.mark == noEntry && marked == NoMark:
		return // a stranger's
	case s.mark == noEntry || s.mark == pending && marked != MarkPending:
		if r := m.step(st, true, In, i); r.out >= 0 {
			m.fail("unproven and accepted: %+v", p)
		}
		return
	}
	m.serverTCP(st, p)
}

func (m *model) serverTCP(st *state, p *packet.Packet) {
	s := &st.server
	isRST, isSYN := p.Flags&packet.RST != 0, kindOf(p) == packet.SYN
	isn := -1
	for i := range isns {
		if isSYN && p.Seq == isns[i] || !isSYN && p.Ack-sisns[i]-1 <= dataSize {
			isn = i
		}
	}
	switch {
	case isRST && s.phase == begun && p.Seq-s.first() < window, isRST && s.phase == opened &&
		p.Seq == s.first()+size(s.got):
		s.listen()
		s.aborted = true
	case isRST:
	case s.phase == idle && isSYN:
		if isn < 0 {
			m.fail("SYN with number %d", p.Seq)
			return
		}
		if !m.cookies {
			s.phase, s.isn = begun, uint8(isn)
		}
		m.serverSYNACK(st, isn)
	// Not here: a cookie that is taken once more after a reset.
	case s.phase == idle && m.cookies && !s.aborted && isn >= 0 && p.Ack == sisns[isn]+1 && p.Seq == isns[isn]+1:
		s.isn = uint8(isn)
		m.serverOpens(st, p)
	case s.phase == idle || s.phase == begun && !isSYN && p.Ack != s.serverFirst():
		m.serverSends(st, segment{seq: p.Ack, flags: packet.RST})
	case s.phase == begun && isSYN && p.Seq == s.first()-1:
		m.serverSYNACK(st, int(s.isn))
	case isSYN:
		m.serverACK(st, 0, "") // a challenge
	case s.phase == begun && p.Seq-s.first() <= dataSize:
		if m.deferAccept && len(p.Payload()) == 0 {
			return
		}
		m.serverOpens(st, p)
	case s.phase == opened:
		m.serverData(st, p)
	}
}

func (m *model) serverOpens(st *state, p *packet.Packet) {
	st.server.phase = opened
	m.serverData(st, p)
}

func (m *model) serverData(st *state, p *packet.Packet) {
	s := &st.server
	if s.mark != settled {
		m.fail("the server's kernel took a packet that is not proven: %+v", p)
	}
	s.acked = s.acked || s.sent && p.Ack == s.serverFirst()+dataSize
	if len(p.Payload()) == 0 || p.Seq != s.first() {
		return
	}
	s.got = true
	m.serverACK(st, 0, "")
}

func (s *end) listen() {
	s.phase, s.sent, s.acked, s.got = idle, false, false, false
}

// attackers returns what an attacker makes without the keys, with the first connection's
// true numbers, which takes somebody on the path: early, once the SYN is out, and once
// the SYN-ACK is. RSTs with true numbers are left out: they end any connection.
func (m *model) attackers() (early, late []int) {
	if !m.attack {
		return nil, nil
	}
	first, s := isns[0]+1, sisns[0]
	option := func(typ byte) []byte { return []byte{254, 6, 0x54, 0x48, typ, 1, 1, 1} }
	short := token.ShortT2{Server: m.machines[1].Own(1).Statement.Fingerprint()}
	full := token.FullT2{Statement: m.machines[1].Own(1).Statement.Bytes()}
	t3 := token.T3{}
	t1 := token.ShortT1{Client: m.machines[0].Own(1).Statement.Fingerprint(), Server: short.Server}
	for _, b := range []segment{
		{seq: first - 1 - p3 - token.ShortT1Size, flags: packet.SYN, options: option(1), payload: t1.Append(nil)},
		{fromServer: true, seq: s - token.ShortT2Size, ack: first - p3, flags: packet.SYN | packet.ACK,
			options: option(3), payload: short.Append(nil)},
		{fromServer: true, seq: s + 1 - 1 - uint32(len(full.Append(nil))), ack: first - p3,
			flags: packet.SYN | packet.ACK, options: option(4), payload: full.Append(nil)},
		{fromServer: true, seq: s - token.ShortT2Size, ack: first - p3, flags: packet.SYN | packet.ACK,
			options: option(3), payload: make([]byte, token.ShortT2Size)},
		{seq: first - p3, ack: s + 1, flags: packet.ACK, options: option(5),
			payload: append(t3.Append(nil), "EVIL!"...)},
		{seq: first - p3, ack: s + 1, flags: packet.ACK, options: option(5),
			payload: append(make([]byte, p3), "EVIL!"...)},
		{seq: first, ack: s + 1, flags: packet.ACK, payload: []byte("EVIL!")},
		{seq: first - 1, flags: packet.SYN},
		{seq: first + 99, flags: packet.SYN},
		{seq: first + 1<<20, flags: packet.RST},
		{fromServer: true, seq: s + 9, ack: first - p3 - 1, flags: packet.RST | packet.ACK},
		{fromServer: true, seq: s, ack: first - 7, flags: packet.SYN | packet.ACK},
		{fromServer: true, seq: s + 1, ack: first - p3, flags: packet.ACK},
	} {
		p := m.kernel(b)
		if _, ok := m.wireOf[p]; !ok {
			m.add(p)
		}
		if b.ack == s+1 || b.fromServer && b.seq-s+200 < 400 {
			late = append(late, m.wireOf[p])
		} else {
			early = append(early, m.wireOf[p])
		}
	}
	return early, late
}
