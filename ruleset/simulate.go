package ruleset

import (
	"fmt"
	"net/netip"
)

// A Conntrack is a connection's entry: what the table keeps of it.
type Conntrack struct {
	Mark   uint32
	Status uint32 // Status* bits

	// The two tuples, where NAT made something of them (StatusDNAT).
	Caller  netip.Addr     // who opened the connection
	Called  netip.AddrPort // whom it called
	Reached netip.AddrPort // whom it reaches
}

// A Socket is what the kernel finds for a packet.
type Socket struct {
	// Cgroups are the ids of the socket's cgroup and its ancestors: index 0 is the
	// one directly below the root (level 1).
	Cgroups []uint64
	// Request: a connection request that has no full socket yet.
	Request bool
}

// A Packet is all that the statements of a Table can read of one.
type Packet struct {
	Direction uint32     // DirOriginal, DirReply
	State     uint32     // one State* bit
	Conntrack *Conntrack // nil: none
	Socket    *Socket    // nil: none. OUTPUT: of the sender; INPUT: of the listener that a look-up finds
	Hidden    *Socket    // INPUT: what a look-up finds while THSport is flipped; nil: none

	L4Proto  uint8
	From, To netip.Addr
	FromPort uint16 // of TCP, UDP, SCTP
	Port     uint16 // destination
	TCPFlags uint8
	Carries  bool // something behind the header of TCP or UDP
	Fragment bool // of IPv6, and not the first: it has no header but that of IP
	ICMPType uint8

	Iif, Oif  uint32 // interface indexes; 0: none
	RouteType uint32 // RTN*: what the routing tables say of To; another address may be put there: Routes
	Path

	Mark, Priority uint32

	OutOfWindow bool // TCPSequence is flipped: the receiver acknowledges it, and delivers nothing
}

// A Path is where a packet comes from and leads to, beyond the indexes of its interfaces.
type Path struct {
	IifName    string
	OifName    string
	Kind       string                // what software made the interface Oif, if any
	IPsec      bool                  // the route leads through IPsec
	Routes     map[netip.Addr]uint32 // RTN*: RouteType of other addresses
	SourceType uint32                // RTN*: what the routing tables say of From
}

// An Outcome is what a base chain did with a packet.
type Outcome struct {
	Verdict  VerdictKind // Accept or Drop
	Rejected bool        // with an answer; Verdict is Drop
	Queued   bool        // userspace has the verdict; Accept until then
	Counted  []string    // the counters that counted it, in order
	Logged   []string
}

// A Simulator runs packets through a table of family inet. It does what the kernel does (linux:
// net/netfilter/nf_tables_core.c, nft_do_chain), slowly. It remembers what rules add to sets.
type Simulator struct {
	table  *Table
	chains map[string]*Chain
	hashed map[string]map[string]*Element // sets without ranges, by key
	sets   map[string]*Set
}

// NewSimulator returns one for t, which must not change any more.
func NewSimulator(t *Table) *Simulator {
	s := &Simulator{table: t, chains: map[string]*Chain{}, hashed: map[string]map[string]*Element{},
		sets: map[string]*Set{}}
	for i := range t.Chains {
		s.chains[t.Chains[i].Name] = &t.Chains[i]
	}
	for i := range t.Sets {
		set := &t.Sets[i]
		s.sets[set.Name] = set
		if !set.Interval {
			index := make(map[string]*Element, len(set.Elements))
			for j := range set.Elements {
				index[hashKey(set.Elements[j].Key)] = &set.Elements[j]
			}
			s.hashed[set.Name] = index
		}
	}
	return s
}

func hashKey(key []Value) string {
	words := make([]Word, len(key))
	for i, v := range key {
		words[i] = v.From
	}
	return hashWords(words)
}

func hashWords(words []Word) string {
	b := make([]byte, 0, 64)
	for _, w := range words {
		b = append(b, w[:]...)
	}
	return string(b)
}

// readAll returns the fields' values, false where the kernel could not load one.
func readAll(key []Expr, p *Packet) ([]Word, bool) {
	words := make([]Word, len(key))
	for i, e := range key {
		w, ok := e.read(p)
		if !ok {
			return nil, false
		}
		words[i] = w
	}
	return words, true
}

// Run passes p through the base chain at hook. It changes p's conntrack mark, mark
// and priority, as the rules say.
func (s *Simulator) Run(hook Hook, p *Packet) Outcome {
	out := Outcome{Verdict: Accept}
	for i := range s.table.Chains {
		if c := &s.table.Chains[i]; c.Hook == hook {
			s.chain(c, p, &out)
		}
	}
	return out
}

// chain runs one chain and says whether a final verdict was reached.
func (s *Simulator) chain(c *Chain, p *Packet, out *Outcome) (final bool) {
	for i := range c.Rules {
		switch v := s.rule(&c.Rules[i], p, out); v.Kind {
		case NoVerdict:
		case Return:
			return false
		case Jump:
			if s.chain(s.chains[v.Chain], p, out) {
				return true
			}
		case Goto:
			return s.chain(s.chains[v.Chain], p, out)
		default:
			out.Verdict = v.Kind
			return true
		}
	}
	return false
}

// rule runs the statements until one does not hold or a verdict is reached.
func (s *Simulator) rule(r *Rule, p *Packet, out *Outcome) Verdict {
	for _, st := range r.Statements {
		switch st := st.(type) {
		case Match:
			if !st.holds(p) {
				return Verdict{}
			}
		case InSet:
			if s.lookup(st.Set, st.Key, p) == nil {
				return Verdict{}
			}
		case ByMap:
			e := s.lookup(st.Map, st.Key, p)
			if e == nil {
				return Verdict{}
			}
			return e.Verdict
		case SetByMap:
			e := s.lookup(st.Map, st.Key, p)
			if e == nil || !p.set(st.Target, 0, e.Number) {
				return Verdict{}
			}
		case SetBits:
			if !p.set(st.Target, st.And, st.Or) {
				return Verdict{}
			}
		case Copy:
			v, ok := Expr{Field: st.Source}.number(p)
			if !ok || !p.set(st.Target, 0, v&st.And|st.Or) {
				return Verdict{}
			}
		case Rewrite:
			if !p.rewrite(st) {
				return Verdict{}
			}
		case Flip:
			p.flip(st.Field)
		case Update:
			if !s.update(st, p) {
				return Verdict{}
			}
		case Notrack, Limit: // packets come seldom
		case Queue:
			out.Queued = true
			return Verdict{Kind: Accept}
		case Count:
			out.Counted = append(out.Counted, st.Counter)
		case Log:
			out.Logged = append(out.Logged, st.Prefix)
		case Reject:
			out.Rejected = true
			return Verdict{Kind: Drop}
		case Verdict:
			return st
		default:
			panic(fmt.Sprintf("ruleset: no simulation of %T", st))
		}
	}
	return Verdict{}
}

// rewrite puts an address into the packet.
func (p *Packet) rewrite(r Rewrite) bool {
	to, ok := p.tuple(r.Source)
	if !ok || to.Is4() != (r.Target == IPDaddr) {
		return false
	}
	if p.Routes == nil {
		p.Routes = map[netip.Addr]uint32{}
	}
	p.Routes[p.To] = p.RouteType
	p.To, p.RouteType = to, p.Routes[to]
	return true
}

// tuple returns an address of one of conntrack's tuples.
func (p *Packet) tuple(f Field) (a netip.Addr, ok bool) {
	if p.Conntrack == nil {
		return a, false
	}
	switch f {
	case CtOriginalIPSaddr, CtOriginalIP6Saddr:
		a = p.Conntrack.Caller
	case CtOriginalIPDaddr, CtOriginalIP6Daddr:
		a = p.Conntrack.Called.Addr()
	case CtReplyIPSaddr, CtReplyIP6Saddr:
		a = p.Conntrack.Reached.Addr()
	}
	return a, a.IsValid() && a.Is4() == (f.Bytes() == IPv4Addr.Bytes())
}

// port returns a port of one of the tuples.
func (c *Conntrack) port(of func(*Conntrack) netip.AddrPort) (uint32, bool) {
	if c == nil {
		return 0, false
	}
	return uint32(of(c).Port()), of(c).IsValid()
}

// flip changes the highest bit of a field. Another source port finds another socket.
func (p *Packet) flip(f Field) {
	switch f {
	case THSport:
		p.FromPort ^= 0x8000
		p.Socket, p.Hidden = p.Hidden, p.Socket
	case TCPSequence:
		p.OutOfWindow = !p.OutOfWindow
	}
}

// set writes a mark. Without a conntrack entry it writes nothing, and fails only where
// it would have to read the mark first (linux: net/netfilter/nft_ct.c).
func (p *Packet) set(target Field, and, or uint32) bool {
	switch target {
	case MetaMark:
		p.Mark = p.Mark&and | or
	case MetaPriority:
		p.Priority = p.Priority&and | or
	default:
		if p.Conntrack == nil {
			return and == 0
		}
		p.Conntrack.Mark = p.Conntrack.Mark&and | or
	}
	return true
}

// update adds the key to the set, for good, unless it is full. Packets come seldom: no Limit is reached.
func (s *Simulator) update(u Update, p *Packet) bool {
	if s.lookup(u.Set, u.Key, p) != nil {
		return true
	}
	words, ok := readAll(u.Key, p)
	index := s.hashed[u.Set]
	if !ok || uint32(len(index)) >= s.sets[u.Set].Size {
		return false
	}
	index[hashWords(words)] = &Element{}
	return true
}

// lookup returns the element for the key, or nil if there is none or a field can
// not be read.
func (s *Simulator) lookup(set string, key []Expr, p *Packet) *Element {
	words, ok := readAll(key, p)
	if !ok {
		return nil
	}
	if index, ok := s.hashed[set]; ok {
		return index[hashWords(words)]
	}
	elements := s.sets[set].Elements
	for i := range elements {
		if inside(words, elements[i].Key) {
			return &elements[i]
		}
	}
	return nil
}

func inside(words []Word, key []Value) bool {
	for i, w := range words {
		if w.Compare(key[i].From) < 0 || w.Compare(key[i].To) > 0 {
			return false
		}
	}
	return true
}

func (m Match) holds(p *Packet) bool {
	w, ok := m.Left.read(p)
	if !ok {
		return false
	}
	v := uint32(w.Uint64())
	switch m.Op {
	case Equal:
		return v == m.Value
	case NotEqual:
		return v != m.Value
	case AtLeast:
		return v >= m.Value
	case Any:
		return v&m.Value != 0
	case Masked:
		return v&m.Mask == m.Value
	case MaskedNot:
		return v&m.Mask != m.Value
	default: // InRange
		return m.From.Compare(w) <= 0 && w.Compare(m.To) <= 0
	}
}

// read returns the field's value, false where the kernel could not load it.
func (e Expr) read(p *Packet) (Word, bool) {
	switch e.Field {
	case SocketCgroup:
		if p.Socket == nil || p.Socket.Request || len(p.Socket.Cgroups) < int(e.Level) {
			return Word{}, false
		}
		return Number(p.Socket.Cgroups[e.Level-1]).From, true
	case MetaIifName:
		return Interface(p.IifName).From, true
	case MetaOifName:
		return Interface(p.OifName).From, true
	case CtOriginalIPSaddr, CtOriginalIP6Saddr, CtOriginalIPDaddr, CtOriginalIP6Daddr, CtReplyIPSaddr, CtReplyIP6Saddr:
		a, ok := p.tuple(e.Field)
		if !ok {
			return Word{}, false
		}
		return Address(a).From, true
	case IPSaddr, IP6Saddr:
		return Address(p.From).From, p.From.Is4() == (e.Field == IPSaddr)
	case IPDaddr, IP6Daddr:
		return Address(p.To).From, p.To.Is4() == (e.Field == IPDaddr)
	}
	v, ok := e.number(p)
	if e.Mask != 0 {
		v &= e.Mask
	}
	return Number(uint64(v)).From, ok
}

// number reads the fields of at most four bytes.
func (e Expr) number(p *Packet) (uint32, bool) {
	if e.Field.inTransport() {
		return p.transport(e.Field)
	}
	switch e.Field {
	case CtDirection, CtState, CtMark, CtStatus, CtOriginalProtoDst, CtReplyProtoSrc:
		return p.connection(e.Field)
	case MetaMark:
		return p.Mark, true
	case MetaPriority:
		return p.Priority, true
	case MetaL4Proto:
		return uint32(p.L4Proto), true
	case MetaNFProto:
		return p.version(NFProtoIPv4, NFProtoIPv6), true
	case MetaProtocol:
		return p.version(EtherIPv4, EtherIPv6), true
	case MetaIif:
		return p.Iif, true
	case MetaOif:
		return p.Oif, true
	case SocketMark, SkUID:
		return 0, p.Socket != nil && !p.Socket.Request
	case SocketTransparent:
		return 0, p.Socket != nil
	case FibDaddrType:
		return p.RouteType, true
	case FibSaddrType:
		return p.SourceType, true
	case MetaOifKind:
		return 1, p.Kind != ""
	case RtIPsec:
		return map[bool]uint32{true: 1}[p.IPsec], true
	case FragmentOffset:
		return FragmentMask, p.Fragment
	}
	panic(fmt.Sprintf("ruleset: no simulation of field %d", e.Field))
}

// connection reads what conntrack knows of the packet.
func (p *Packet) connection(f Field) (uint32, bool) {
	known := p.Conntrack != nil
	switch {
	case f == CtState:
		return p.State, true
	case f == CtDirection && known:
		return p.Direction, true
	case f == CtMark && known:
		return p.Conntrack.Mark, true
	case f == CtStatus && known:
		return p.Conntrack.Status, true
	case f == CtOriginalProtoDst:
		return p.Conntrack.port(func(c *Conntrack) netip.AddrPort { return c.Called })
	case f == CtReplyProtoSrc:
		return p.Conntrack.port(func(c *Conntrack) netip.AddrPort { return c.Reached })
	}
	return 0, false
}

// transport reads the header of TCP, UDP or ICMP, and what is behind it. A fragment has it only if it is the first.
func (p *Packet) transport(f Field) (uint32, bool) {
	if p.Fragment {
		return 0, false
	}
	switch f {
	case THSport:
		return uint32(p.FromPort), true
	case THDport:
		return uint32(p.Port), true
	case TCPOption, TCPToken:
		return 0, p.L4Proto == ProtoTCP
	case TCPFlags:
		return uint32(p.TCPFlags), p.L4Proto == ProtoTCP
	case ICMPTypeOf:
		return uint32(p.ICMPType), p.L4Proto == ProtoICMP
	case ICMPv6TypeOf:
		return uint32(p.ICMPType), p.L4Proto == ProtoICMPv6
	case InnerByte, InnerWord:
		return 0, p.Carries
	}
	panic(fmt.Sprintf("ruleset: no simulation of field %d", f))
}

// version is one of two numbers, by the packet's version of IP.
func (p *Packet) version(v4, v6 uint32) uint32 {
	if p.To.Is4() {
		return v4
	}
	return v6
}
