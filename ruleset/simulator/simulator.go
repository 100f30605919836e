package simulator

import (
	"fmt"
	"net/netip"

	nft "thole/ruleset"
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
	Verdict  nft.VerdictKind // Accept or Drop
	Rejected bool            // with an answer; Verdict is Drop
	Queued   bool            // userspace has the verdict; Accept until then
	Counted  []string        // the counters that counted it, in order
	Logged   []string
}

// A Simulator runs packets through a table of family inet. It does what the kernel does (linux:
// net/netfilter/nf_tables_core.c, nft_do_chain), slowly. It remembers what rules add to sets.
type Simulator struct {
	table  *nft.Table
	chains map[string]*nft.Chain
	hashed map[string]map[string]*nft.Element // sets without ranges, by key
	sets   map[string]*nft.Set
}

// New returns one for t, which must not change any more.
func New(t *nft.Table) *Simulator {
	s := &Simulator{table: t, chains: map[string]*nft.Chain{}, hashed: map[string]map[string]*nft.Element{},
		sets: map[string]*nft.Set{}}
	for i := range t.Chains {
		s.chains[t.Chains[i].Name] = &t.Chains[i]
	}
	for i := range t.Sets {
		set := &t.Sets[i]
		s.sets[set.Name] = set
		if !set.Interval {
			index := make(map[string]*nft.Element, len(set.Elements))
			for j := range set.Elements {
				index[hashKey(set.Elements[j].Key)] = &set.Elements[j]
			}
			s.hashed[set.Name] = index
		}
	}
	return s
}

func hashKey(key []nft.Value) string {
	words := make([]nft.Word, len(key))
	for i, v := range key {
		words[i] = v.From
	}
	return hashWords(words)
}

func hashWords(words []nft.Word) string {
	b := make([]byte, 0, 64)
	for _, w := range words {
		b = append(b, w[:]...)
	}
	return string(b)
}

// readAll returns the fields' values, false where the kernel could not load one.
func readAll(key []nft.Expr, p *Packet) ([]nft.Word, bool) {
	words := make([]nft.Word, len(key))
	for i, e := range key {
		w, ok := p.read(e)
		if !ok {
			return nil, false
		}
		words[i] = w
	}
	return words, true
}

// Run passes p through the base chain at hook. It changes p's conntrack mark, mark
// and priority, as the rules say.
func (s *Simulator) Run(hook nft.Hook, p *Packet) Outcome {
	out := Outcome{Verdict: nft.Accept}
	for i := range s.table.Chains {
		if c := &s.table.Chains[i]; c.Hook == hook {
			s.chain(c, p, &out)
		}
	}
	return out
}

// chain runs one chain and says whether a final verdict was reached.
func (s *Simulator) chain(c *nft.Chain, p *Packet, out *Outcome) (final bool) {
	for i := range c.Rules {
		switch v := s.rule(&c.Rules[i], p, out); v.Kind {
		case nft.NoVerdict:
		case nft.Return:
			return false
		case nft.Jump:
			if s.chain(s.chains[v.Chain], p, out) {
				return true
			}
		case nft.Goto:
			return s.chain(s.chains[v.Chain], p, out)
		default:
			out.Verdict = v.Kind
			return true
		}
	}
	return false
}

// rule runs the statements until one does not hold or a verdict is reached.
func (s *Simulator) rule(r *nft.Rule, p *Packet, out *Outcome) nft.Verdict {
	for _, st := range r.Statements {
		switch st := st.(type) {
		case nft.Match:
			if !p.holds(st) {
				return nft.Verdict{}
			}
		case nft.InSet:
			if s.lookup(st.Set, st.Key, p) == nil {
				return nft.Verdict{}
			}
		case nft.ByMap:
			e := s.lookup(st.Map, st.Key, p)
			if e == nil {
				return nft.Verdict{}
			}
			return e.Verdict
		case nft.SetByMap:
			e := s.lookup(st.Map, st.Key, p)
			if e == nil || !p.set(st.Target, 0, e.Number) {
				return nft.Verdict{}
			}
		case nft.SetBits:
			if !p.set(st.Target, st.And, st.Or) {
				return nft.Verdict{}
			}
		case nft.Copy:
			v, ok := p.number(nft.Expr{Field: st.Source})
			if !ok || !p.set(st.Target, 0, v&st.And|st.Or) {
				return nft.Verdict{}
			}
		case nft.Rewrite:
			if !p.rewrite(st) {
				return nft.Verdict{}
			}
		case nft.Flip:
			p.flip(st.Field)
		case nft.Update:
			if !s.update(st, p) {
				return nft.Verdict{}
			}
		case nft.Notrack, nft.Limit: // packets come seldom
		case nft.Queue:
			out.Queued = true
			return nft.Verdict{Kind: nft.Accept}
		case nft.Count:
			out.Counted = append(out.Counted, st.Counter)
		case nft.Log:
			out.Logged = append(out.Logged, st.Prefix)
		case nft.Reject:
			out.Rejected = true
			return nft.Verdict{Kind: nft.Drop}
		case nft.Verdict:
			return st
		default:
			panic(fmt.Sprintf("simulator: no simulation of %T", st))
		}
	}
	return nft.Verdict{}
}

// rewrite puts an address into the packet.
func (p *Packet) rewrite(r nft.Rewrite) bool {
	to, ok := p.tuple(r.Source)
	if !ok || to.Is4() != (r.Target == nft.IPDaddr) {
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
func (p *Packet) tuple(f nft.Field) (a netip.Addr, ok bool) {
	if p.Conntrack == nil {
		return a, false
	}
	switch f {
	case nft.CtOriginalIPSaddr, nft.CtOriginalIP6Saddr:
		a = p.Conntrack.Caller
	case nft.CtOriginalIPDaddr, nft.CtOriginalIP6Daddr:
		a = p.Conntrack.Called.Addr()
	case nft.CtReplyIPSaddr, nft.CtReplyIP6Saddr:
		a = p.Conntrack.Reached.Addr()
	}
	return a, a.IsValid() && a.Is4() == (f.Bytes() == nft.IPv4Addr.Bytes())
}

// port returns a port of one of the tuples.
func (c *Conntrack) port(of func(*Conntrack) netip.AddrPort) (uint32, bool) {
	if c == nil {
		return 0, false
	}
	return uint32(of(c).Port()), of(c).IsValid()
}

// flip changes the highest bit of a field. Another source port finds another socket.
func (p *Packet) flip(f nft.Field) {
	switch f {
	case nft.THSport:
		p.FromPort ^= 0x8000
		p.Socket, p.Hidden = p.Hidden, p.Socket
	case nft.TCPSequence:
		p.OutOfWindow = !p.OutOfWindow
	}
}

// set writes a mark. Without a conntrack entry it writes nothing, and fails only where
// it would have to read the mark first (linux: net/netfilter/nft_ct.c).
func (p *Packet) set(target nft.Field, and, or uint32) bool {
	switch target {
	case nft.MetaMark:
		p.Mark = p.Mark&and | or
	case nft.MetaPriority:
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
func (s *Simulator) update(u nft.Update, p *Packet) bool {
	if s.lookup(u.Set, u.Key, p) != nil {
		return true
	}
	words, ok := readAll(u.Key, p)
	index := s.hashed[u.Set]
	if !ok || uint32(len(index)) >= s.sets[u.Set].Size {
		return false
	}
	index[hashWords(words)] = &nft.Element{}
	return true
}

// lookup returns the element for the key, or nil if there is none or a field can
// not be read.
func (s *Simulator) lookup(set string, key []nft.Expr, p *Packet) *nft.Element {
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

func inside(words []nft.Word, key []nft.Value) bool {
	for i, w := range words {
		if w.Compare(key[i].From) < 0 || w.Compare(key[i].To) > 0 {
			return false
		}
	}
	return true
}

// holds reports whether a match holds for the packet.
func (p *Packet) holds(m nft.Match) bool {
	w, ok := p.read(m.Left)
	if !ok {
		return false
	}
	v := uint32(w.Uint64())
	switch m.Op {
	case nft.Equal:
		return v == m.Value
	case nft.NotEqual:
		return v != m.Value
	case nft.AtLeast:
		return v >= m.Value
	case nft.Any:
		return v&m.Value != 0
	case nft.Masked:
		return v&m.Mask == m.Value
	case nft.MaskedNot:
		return v&m.Mask != m.Value
	default: // InRange
		return m.From.Compare(w) <= 0 && w.Compare(m.To) <= 0
	}
}

// read returns a field's value, false where the kernel could not load it.
func (p *Packet) read(e nft.Expr) (nft.Word, bool) {
	switch e.Field {
	case nft.SocketCgroup:
		if p.Socket == nil || p.Socket.Request || len(p.Socket.Cgroups) < int(e.Level) {
			return nft.Word{}, false
		}
		return nft.Number(p.Socket.Cgroups[e.Level-1]).From, true
	case nft.MetaIifName:
		return nft.Interface(p.IifName).From, true
	case nft.MetaOifName:
		return nft.Interface(p.OifName).From, true
	case nft.CtOriginalIPSaddr, nft.CtOriginalIP6Saddr, nft.CtOriginalIPDaddr, nft.CtOriginalIP6Daddr,
		nft.CtReplyIPSaddr, nft.CtReplyIP6Saddr:
		a, ok := p.tuple(e.Field)
		if !ok {
			return nft.Word{}, false
		}
		return nft.Address(a).From, true
	case nft.IPSaddr, nft.IP6Saddr:
		return nft.Address(p.From).From, p.From.Is4() == (e.Field == nft.IPSaddr)
	case nft.IPDaddr, nft.IP6Daddr:
		return nft.Address(p.To).From, p.To.Is4() == (e.Field == nft.IPDaddr)
	}
	v, ok := p.number(e)
	if e.Mask != 0 {
		v &= e.Mask
	}
	return nft.Number(uint64(v)).From, ok
}

// number reads the fields of at most four bytes.
func (p *Packet) number(e nft.Expr) (uint32, bool) {
	if inTransport(e.Field) {
		return p.transport(e.Field)
	}
	switch e.Field {
	case nft.CtDirection, nft.CtState, nft.CtMark, nft.CtStatus, nft.CtOriginalProtoDst, nft.CtReplyProtoSrc:
		return p.connection(e.Field)
	case nft.MetaMark:
		return p.Mark, true
	case nft.MetaPriority:
		return p.Priority, true
	case nft.MetaL4Proto:
		return uint32(p.L4Proto), true
	case nft.MetaNFProto:
		return p.version(nft.NFProtoIPv4, nft.NFProtoIPv6), true
	case nft.MetaProtocol:
		return p.version(nft.EtherIPv4, nft.EtherIPv6), true
	case nft.MetaIif:
		return p.Iif, true
	case nft.MetaOif:
		return p.Oif, true
	case nft.SocketMark, nft.SkUID:
		return 0, p.Socket != nil && !p.Socket.Request
	case nft.SocketTransparent:
		return 0, p.Socket != nil
	case nft.FibDaddrType:
		return p.RouteType, true
	case nft.FibSaddrType:
		return p.SourceType, true
	case nft.MetaOifKind:
		return 1, p.Kind != ""
	case nft.RtIPsec:
		return map[bool]uint32{true: 1}[p.IPsec], true
	case nft.FragmentOffset:
		return nft.FragmentMask, p.Fragment
	}
	panic(fmt.Sprintf("simulator: no simulation of field %d", e.Field))
}

// inTransport says that f is in the header of TCP, UDP or ICMP, or behind it.
func inTransport(f nft.Field) bool {
	switch f {
	case nft.THSport, nft.THDport, nft.TCPFlags, nft.TCPOption, nft.TCPToken, nft.TCPSequence,
		nft.ICMPTypeOf, nft.ICMPv6TypeOf, nft.InnerByte, nft.InnerWord:
		return true
	default:
		return false
	}
}

// connection reads what conntrack knows of the packet.
func (p *Packet) connection(f nft.Field) (uint32, bool) {
	known := p.Conntrack != nil
	switch {
	case f == nft.CtState:
		return p.State, true
	case f == nft.CtDirection && known:
		return p.Direction, true
	case f == nft.CtMark && known:
		return p.Conntrack.Mark, true
	case f == nft.CtStatus && known:
		return p.Conntrack.Status, true
	case f == nft.CtOriginalProtoDst:
		return p.Conntrack.port(func(c *Conntrack) netip.AddrPort { return c.Called })
	case f == nft.CtReplyProtoSrc:
		return p.Conntrack.port(func(c *Conntrack) netip.AddrPort { return c.Reached })
	}
	return 0, false
}

// transport reads the header of TCP, UDP or ICMP, and what is behind it. A fragment has it only if it is the first.
func (p *Packet) transport(f nft.Field) (uint32, bool) {
	if p.Fragment {
		return 0, false
	}
	switch f {
	case nft.THSport:
		return uint32(p.FromPort), true
	case nft.THDport:
		return uint32(p.Port), true
	case nft.TCPOption, nft.TCPToken:
		return 0, p.L4Proto == nft.ProtoTCP
	case nft.TCPFlags:
		return uint32(p.TCPFlags), p.L4Proto == nft.ProtoTCP
	case nft.ICMPTypeOf:
		return uint32(p.ICMPType), p.L4Proto == nft.ProtoICMP
	case nft.ICMPv6TypeOf:
		return uint32(p.ICMPType), p.L4Proto == nft.ProtoICMPv6
	case nft.InnerByte, nft.InnerWord:
		return 0, p.Carries
	}
	panic(fmt.Sprintf("simulator: no simulation of field %d", f))
}

// version is one of two numbers, by the packet's version of IP.
func (p *Packet) version(v4, v6 uint32) uint32 {
	if p.To.Is4() {
		return v4
	}
	return v6
}
