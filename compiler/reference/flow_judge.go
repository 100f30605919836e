package reference

import (
	"maps"
	"slices"

	"thole/compiler/policy"
)

// JudgeFlow says which packets of f pass. The list ends with the packet that ends the flow: a connection of TCP whose
// packet is refused sends no more.
func JudgeFlow(s Set, f Flow) []bool {
	f.Packets = slices.Clone(f.Packets)
	s.identifyAll(f.endpoints()...)
	if f.Protocol == protocolTCP {
		return judgeStream(s, f)
	}
	return judgeDatagrams(s, f)
}

// found is the end whose socket nftables finds for p. A receiver that is bound to a device looks like no workload's:
// see docs/SECURITY.md, "What it does not protect from".
func (p Packet) found() Endpoint {
	switch p.Finds {
	case FindsOther:
		return p.Other
	case FindsNothing:
		return Endpoint{}
	default:
		return p.To
	}
}

// A tuple is what is remembered of a flow of UDP.
type tuple struct {
	set Set
	Flow

	known bool  // conntrack has an entry
	back  bool  // its first packet was one from the server's port
	asked bool  // a request passed between ends of which one at least is a workload
	asker party // the last sender of such a request
}

func judgeDatagrams(s Set, f Flow) []bool {
	t := tuple{set: s, Flow: f}
	var verdicts []bool
	for _, p := range f.Packets {
		if !t.known {
			t.back = p.Back
		}
		passes := t.passes(p)
		// What leaves the node, or comes from outside, and is refused leaves no entry behind.
		t.known = t.known || passes || t.onNode()
		verdicts = append(verdicts, passes)
	}
	return verdicts
}

// passes judges a datagram.
//
// "A datagram is judged each time, in both directions": a request by the sockets that send and receive it, an answer by
// the socket that answers and the workload that asked.
func (t *tuple) passes(p Packet) bool {
	switch {
	case p.Back == t.back:
		return t.request(p)
	case p.From.outside():
		return t.answerFromOutside(p)
	case p.To.outside():
		// "Answers belong to the connection": the end outside asked.
		return t.allows(p.To, p.From, t.back)
	default:
		return t.answerHere(p)
	}
}

func (t *tuple) allows(from, to Endpoint, back bool) bool {
	return Judge(t.set, t.connection(from, to, back)).Allowed
}

func (t *tuple) request(p Packet) bool {
	to := p.found()
	if !t.allows(p.From, to, p.Back) {
		return false
	}
	if p.From.Workload != nil || to.Workload != nil {
		t.asked, t.asker = true, remember(p.From, to)
	}
	return true
}

// answerFromOutside: an answer is for the workload that asked, not for the one that has its port now. Unlabelled
// processes receive what comes.
func (t *tuple) answerFromOutside(p Packet) bool {
	to := p.found()
	return to.unlabelled() || t.asked && t.asker.is(t.set.Policies, to)
}

// answerHere: "A datagram that goes back on this node passes if it is an answer to what is allowed, or if it would be
// allowed as a request."
//
// Decided: where the workload that asked may ask the socket that answers, the datagram is an answer, and not a request
// to the present owner of the port. What unlabelled processes send each other always passes.
func (t *tuple) answerHere(p Packet) bool {
	to := p.found()
	switch {
	case p.From.unlabelled() && to.unlabelled():
		return true
	case t.asked && t.allows(t.asker.Endpoint, p.From, t.back):
		return t.asker.is(t.set.Policies, to) && t.allows(to, p.From, t.back)
	case p.Finds == FindsNothing && p.From.Workload != nil:
		return false // it may be an answer to who may not have it
	default:
		return t.allows(p.From, to, p.Back)
	}
}

// A stream is what is remembered of a connection of TCP.
type stream struct {
	set Set
	Flow

	opener   party // the sender of the last packet that was judged
	asked    bool  // a listener was found at the SYN
	heard    bool  // on this node: a socket was found for data that may have it
	answered bool  // on this node: a socket answered that may
	decided  bool  // the socket that has the connection is known, and may be reached by opener
}

func judgeStream(set Set, f Flow) []bool {
	s := stream{set: set, Flow: f}
	var verdicts []bool
	for _, p := range f.Packets {
		passes, ends := s.passes(p)
		verdicts = append(verdicts, passes)
		if ends {
			break
		}
	}
	return verdicts
}

// passes judges a packet, and says whether its refusal ends the connection.
//
// "A connection is settled by the sockets that really have it": on this node, the socket that is found for data and the
// one that answers decide together, in either order. The SYN is judged by the listener that nftables finds, so that
// most refusals come at once.
func (s *stream) passes(p Packet) (passes, ends bool) {
	switch p.Kind {
	case Open:
		passes = s.opens(p)
		return passes, !passes
	case Answer:
		if !s.decided && !s.allows(s.opener.Endpoint, p.From) {
			return false, true
		}
		s.settle(p.From)
		return true, false
	default:
		return s.data(p)
	}
}

func (s *stream) allows(from, to Endpoint) bool {
	return Judge(s.set, s.connection(from, to, false)).Allowed
}

// opens judges a SYN. On this node a listener behind a socket in TIME_WAIT is found; for a SYN from outside it is not.
func (s *stream) opens(p Packet) bool {
	s.decided = p.To.outside()
	s.asked = p.Finds != FindsNothing && (p.Finds != FindsTimeWait || s.onNode())
	if !s.asked {
		s.opener = party{p.From, true}
		return true
	}
	s.opener = remember(p.From, p.found())
	return s.allows(p.From, p.found())
}

func (s *stream) data(p Packet) (passes, ends bool) {
	switch {
	case s.decided && s.belongs(p):
		return true, false
	case p.To.outside():
		return s.leaves(p), false
	case p.Finds == FindsNothing:
		// Before the first answer the client has to send it again. Afterwards each answer is judged.
		return s.answered && s.opener.is(s.set.Policies, p.From), false
	case s.decided:
		return s.intrudes(p), false
	case p.Finds == FindsRequest:
		return s.asked && !s.answered, false // if there was no judgement, likewise
	}
	passes = s.allows(p.From, p.found())
	if !passes && s.answered && s.opener.Workload != nil && !s.opener.is(s.set.Policies, p.From) {
		return false, false // it cannot end another's connection
	}
	s.opener = remember(p.From, p.found())
	s.heard = true
	// From outside, the socket that is found is the one that has it.
	s.decided = passes && (s.answered || p.From.outside())
	return passes, !passes
}

// belongs reports whether the workload that opened the decided connection has sent p.
func (s *stream) belongs(p Packet) bool {
	return s.opener.is(s.set.Policies, p.From) && s.allows(p.From, p.To)
}

// settle: server may be reached by the opener.
func (s *stream) settle(server Endpoint) {
	if !s.decided {
		s.opener, s.answered = remember(s.opener.Endpoint, server), true
		s.decided = s.heard || !s.onNode()
	}
}

// leaves judges what another process sends on a connection to an address outside. An unlabelled process cannot speak in
// a workload's name.
func (s *stream) leaves(p Packet) bool {
	if p.From.unlabelled() || !s.allows(p.From, p.To) {
		return false
	}
	s.opener = remember(p.From, p.To)
	return true
}

// intrudes judges what another process sends on a decided connection of this node, with a raw socket. If it may speak
// to the server, the next answer is judged as one to it; if not, the connection goes on.
func (s *stream) intrudes(p Packet) bool {
	if !s.allows(p.From, p.found()) {
		return false
	}
	s.opener = remember(p.From, p.found())
	s.heard, s.answered, s.decided = true, false, false
	return true
}

// A party is an end as the table remembers it from a packet that passed.
type party struct {
	Endpoint
	itself bool // it is that very workload; else any that no policy tells apart from it
}

// remember is the sender of a packet that was judged with the socket of found.
//
// Decided: only a workload that calls itself is remembered as itself. So where nftables finds another's socket for its
// call, it is judged like its equal when its own socket answers.
func remember(sender, found Endpoint) party {
	if sender.Workload == nil || sender == found {
		return party{sender, true}
	}
	equal := *sender.Workload
	return party{Endpoint{Workload: &equal}, false}
}

// is reports whether e is the party, or is taken for it.
func (p party) is(policies []policy.Policy, e Endpoint) bool {
	switch {
	case p.Endpoint == e:
		return true
	case p.Workload == nil || e.Workload == nil:
		return false
	default:
		return alike(policies, p.Workload, e.Workload) && (!p.itself || reachesEquals(policies, p.Workload))
	}
}

// alike reports whether no policy tells two workloads apart.
func alike(policies []policy.Policy, a, b *policy.Workload) bool {
	if onlyDoubtful(a) != onlyDoubtful(b) {
		return false
	}
	c := Case{Set: Set{Policies: policies}}
	for _, s := range selectors(&c) {
		for _, u := range []use{permits, restricts} {
			if selectorMatches(*s, u, a) != selectorMatches(*s, u, b) {
				return false
			}
		}
	}
	for _, p := range peers(&c) {
		if p.SameLabels != nil && !alikeIn(*p.SameLabels, a, b) {
			return false
		}
	}
	return true
}

// alikeIn reports whether two workloads have the same values of what s compares.
func alikeIn(s policy.SameLabels, a, b *policy.Workload) bool {
	if s.All && (!maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Doubtful, b.Doubtful)) {
		return false
	}
	for _, key := range s.Keys {
		mine, have := a.Label(key)
		theirs, has := b.Label(key)
		if have != has || mine != theirs || doubtful(a, key) != doubtful(b, key) {
			return false
		}
	}
	return true
}

// reachesEquals reports whether another workload that no policy tells apart from w may reach w by everything, and
// nothing is recorded. Such workloads are not told apart by the table either.
func reachesEquals(policies []policy.Policy, w *policy.Workload) bool {
	equal := *w
	for _, c := range transports(policies) {
		c.From, c.To = Endpoint{Workload: &equal}, Endpoint{Workload: w}
		if !allows(enforced(policies), c) || wouldDeny(policies, []Connection{c}) != "" {
			return false
		}
	}
	return true
}

// transports are all protocols, ports and types that policies can tell apart, without ends.
func transports(policies []policy.Policy) []Connection {
	all := []Connection{{Protocol: protocolSCTP}, {Protocol: 47}}
	for _, port := range mentionedPorts(Case{Set: Set{Policies: policies}}) {
		all = append(all, Connection{Protocol: protocolTCP, Port: port}, Connection{Protocol: protocolUDP, Port: port})
	}
	for kind := range 256 {
		for _, protocol := range []uint8{protocolICMP, protocolICMPv6} {
			all = append(all, Connection{Protocol: protocol, ICMPType: uint8(kind)})
		}
	}
	return all
}
