package compiler

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"thole/compiler/mark"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A Fleet is where other nodes are, and how the datapath is reached.
type Fleet struct {
	Networks []netip.Prefix
	Queue    uint16 // NFQUEUE
}

// addRemote makes a class of what another node proved, also where no policy tells two of them apart: the connections of
// today keep its number when the policies of tomorrow do.
func (cs *classes) addRemote(r *policy.Remote) *workloadClass {
	c := &workloadClass{remote: r, first: r.Workload(), size: 1}
	cs.remotes = append(cs.remotes, c)
	return c
}

// Allows reports whether the egress of a workload of this node, by the number of its
// class, allows a connection to what a workload of another node proved to be. Audit
// policies do not count.
func (r *Result) Allows(from, to uint32, p policy.Protocol, port uint16) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, other := numbered(r.classes.workloads, from), numbered(r.classes.remotes, to)
	if other == nil {
		other = numbered(r.classes.workloads, to)
	}
	return c != nil && other != nil && r.classes.allows(r.classes.judge(c, egress, other.id), p, port)
}

// AllowsAddress is Allows for an address outside this node at which nothing was proven.
// What it does not know it allows: the table judges such a connection as well.
func (r *Result) AllowsAddress(from uint32, to netip.AddrPort, p policy.Protocol) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := numbered(r.classes.workloads, from)
	return c == nil || r.classes.allows(r.classes.judgeAddresses(c, r.classes.addresses.of(to.Addr())), p, to.Port())
}

// allows reports whether a row allows connections to a port.
func (cs *classes) allows(row *row, p policy.Protocol, port uint16) bool {
	for i, at := range row.ports {
		if slices.ContainsFunc(cs.ports.classes[at].spans, func(s span) bool {
			return s.proto == uint8(p) && s.from <= port && port <= s.to
		}) {
			return row.judgements[i+1].ruling != deny
		}
	}
	return row.judgements[0].ruling != deny
}

// numbered returns the class with a number, nil if there is none.
func numbered(list []*workloadClass, n uint32) *workloadClass {
	for _, c := range list {
		if c.number == n {
			return c
		}
	}
	return nil
}

// How long a handshake may take: a little longer than Linux sends SYNs again by default
// (tcp_syn_retries 6: 127 s), and how many there may be.
const (
	pendingTimeout = 130 * time.Second
	pendingSize    = 65536
)

// What may come to userspace without belonging to a handshake that goes on, which is
// what isSYN one: packets with our option a second, and at once. Who has proven himself
// lately has allowances of his own (as an address: claimed names are never what is
// limited), one for T1 short and one for what anybody may say again, T1 full; all others
// share one, of which an address has a part. More is dropped.
var (
	knownLimit    = nft.Limit{PerSecond: 10_000, Burst: 20_000}
	anewLimit     = nft.Limit{PerSecond: 1000, Burst: 2000}
	strangerLimit = nft.Limit{PerSecond: 100, Burst: 200}
	sharedLimit   = nft.Limit{PerSecond: 1000, Burst: 2000}
)

// Who is remembered for that. Where a set is full, its rule ends: what it would have let
// pass is dropped.
const (
	knownTimeout = 10 * time.Minute
	meterTimeout = 10 * time.Second
	knownSize    = 16384
	floodCounter = "flooded"
)

// declareFleet makes the sets of connections between nodes.
func (l *lowering) declareFleet() {
	if l.fleet == nil {
		return
	}
	for i, address := range []nft.Type{nft.IPv4Addr, nft.IPv6Addr} {
		v := families[i]
		l.declareSet(nft.Set{Name: "fleet" + v, Key: []nft.Type{address}, Interval: true,
			Comment: "where other nodes are"})
		l.declareSet(nft.Set{Name: "pending" + v, Key: []nft.Type{address, nft.InetService, address, nft.InetService},
			Timeout: pendingTimeout, Size: pendingSize,
			Comment: "connections whose handshake goes on, as their answers come in"})
		timed := func(name, comment string, timeout time.Duration) {
			l.declareSet(nft.Set{Name: name + v, Key: []nft.Type{address}, Timeout: timeout, Size: knownSize,
				Comment: comment})
		}
		timed("known", "who has proven himself lately", knownTimeout)
		timed("short", "how often known addresses begin as who they are known for", meterTimeout)
		timed("full", "how often they say anew who they are", meterTimeout)
		timed("stranger", "how often others do", meterTimeout)
	}
	l.declareSet(nft.Set{Name: "remotes", Key: []nft.Type{nft.Mark},
		Comment: "workloads of other nodes that are believed"})
	l.declareSet(nft.Set{Name: "introduced", Key: []nft.Type{nft.ClassID},
		Comment: "who may reach other nodes' workloads by their labels"})
	for _, n := range disjoint(l.fleet.Networks) {
		l.add("fleet"+families[version(n.Addr())], nft.Element{Key: []nft.Value{nft.Prefix(n)}})
	}
}

// believe enters a workload of another node whose certificate is believed.
func (l *lowering) believe(c *workloadClass) {
	if !c.remote.Ended {
		l.add("remotes", nft.Element{Key: []nft.Value{class(c.number)},
			Comment: strings.TrimSpace(l.commentOf(c.first))})
	}
}

// introduce enters a class that may reach other nodes' workloads by their labels.
func (l *lowering) introduce(c *workloadClass) {
	if l.fleet != nil && slices.ContainsFunc(c.dockets[egress].entries, entry.allowsByLabel) {
		l.add("introduced", nft.Element{Key: []nft.Value{class(c.number)},
			Comment: strings.TrimSpace(l.commentOf(c.first))})
	}
}

// allowsByLabel reports whether the rule may allow something because of its labels.
func (e entry) allowsByLabel() bool {
	return (e.sort == allows || e.sort == auditAllows) && (e.same != nil || e.byLabel || e.remotes > 0)
}

// fleetChains see what is exchanged with other nodes before its labels are proven.
// Userspace (datapath) takes the tokens off and puts them on; the packet's mark is
// what its verdict on a packet from there says. docs/ARCHITECTURE.md draws them.
func (l *layout) fleetChains() []nft.Chain {
	return append(l.introduce(), fleetUntracked(), l.fleetClear(), l.fleetIn(), l.fleetBegin(), l.fleetShared(),
		l.fleetMark(), l.fleetVerdict(), fleetTake(), l.fleetAnswer(),
		l.outputFleet(), l.fleetAgain(), fleetNobody(), l.fleetAsk(), egressFleet(), l.fleetReply(), l.fleetDecide(),
		l.fleetSent(), fleetOurs())
}

// fromFleet is a rule for TCP of other nodes, for each version of IP.
func fromFleet(then ...nft.Statement) []nft.Rule {
	one := func(v nft.Match, saddr nft.Expr, set string) nft.Rule {
		tcp := []nft.Statement{isNot(nft.MetaIif, nft.IfindexLo), is(nft.MetaL4Proto, nft.ProtoTCP), v}
		return rule(slices.Concat(tcp, []nft.Statement{nft.InSet{Key: []nft.Expr{saddr}, Set: set}}, then)...)
	}
	return []nft.Rule{one(v4, ipSaddr, "fleet4"), one(v6, ip6Saddr, "fleet6")}
}

// pendingTuple is a rule for packets whose connection, as its answers come in, is pending.
func pendingTuple(do func(set string, key []nft.Expr) []nft.Statement, match ...nft.Statement) []nft.Rule {
	one := func(v nft.Match, saddr, daddr nft.Expr, set string) nft.Rule {
		tcp := []nft.Statement{isNot(nft.MetaIif, nft.IfindexLo), is(nft.MetaL4Proto, nft.ProtoTCP), v}
		return rule(slices.Concat(tcp, match, do(set, []nft.Expr{saddr, sport, daddr, dport}))...)
	}
	return []nft.Rule{one(v4, ipSaddr, ipDaddr, "pending4"), one(v6, ip6Saddr, ip6Daddr, "pending6")}
}

func (l *layout) queue() nft.Queue { return nft.Queue{Number: l.fleet.Queue} }

// fleetUntracked: a reset for who answers would end conntrack's entry of the connect, for
// which the kernel still waits for the answer.
func fleetUntracked() nft.Chain {
	return nft.Chain{Name: "fleet_untracked", Hook: nft.Output, Priority: rawPriority,
		Comment: "resets by which the datapath takes back a connect",
		Rules: []nft.Rule{rule(is(nft.MetaMark, mark.SentOut), is(nft.MetaL4Proto, nft.ProtoTCP),
			anyOf(nft.TCPFlags, nft.TCPRst), nft.Notrack{})}}
}

// fleetClear: only our own verdicts set our bits of a mark.
func (l *layout) fleetClear() nft.Chain {
	return nft.Chain{Name: "fleet_clear", Hook: nft.Prerouting, Priority: rawPriority - 1,
		Comment: "what comes from other nodes has no mark of ours",
		Rules:   fromFleet(scratch(nft.MetaMark, 0))}
}

func (l *layout) fleetIn() nft.Chain {
	c := nft.Chain{Name: "fleet_in", Hook: nft.Prerouting, Priority: rawPriority,
		Comment: "before conntrack: tokens, and answers and resets that are about them"}
	look := func(set string, key []nft.Expr) []nft.Statement {
		return []nft.Statement{nft.InSet{Key: key, Set: set}, l.queue()}
	}
	c.Rules = append(c.Rules, pendingTuple(look, tholeOption)...)
	// what is forwarded is others'
	c.Rules = append(c.Rules, fromFleet(tholeOption, is(nft.FibDaddrType, nft.RTNLocal), goTo("fleet_begin"))...)
	c.Rules = append(c.Rules, pendingTuple(look, anyOf(nft.TCPFlags, nft.TCPRst))...)
	c.Rules = append(c.Rules, pendingTuple(look, masked(nft.TCPFlags, nft.TCPSyn|nft.TCPAck, nft.TCPSyn|nft.TCPAck))...)
	// A SYN without a token that meets the request of one with: INPUT would find no socket to judge.
	c.Rules = append(c.Rules, pendingTuple(look, masked(nft.TCPFlags, tcpOpening, nft.TCPSyn))...)
	return c
}

// fleetBegin bounds what may begin. What is over a limit is dropped, never passed: a rule
// that is over its limit ends, and so does one whose set is full.
func (l *layout) fleetBegin() nft.Chain {
	c := nft.Chain{Name: "fleet_begin", Comment: "a token, of no handshake that goes on"}
	for i, saddr := range []nft.Expr{ipSaddr, ip6Saddr} {
		version, set, key := []nft.Match{v4, v6}[i], families[i], []nft.Expr{saddr}
		known := nft.InSet{Key: key, Set: "known" + set}
		c.Rules = append(c.Rules,
			rule(is(nft.MetaL4Proto, nft.ProtoTCP), is(nft.TCPToken, shortT1), version, known,
				nft.Update{Key: key, Set: "short" + set, Limit: knownLimit}, l.queue()),
			rule(is(nft.MetaL4Proto, nft.ProtoTCP), isNot(nft.TCPToken, shortT1), version, known,
				nft.Update{Key: key, Set: "full" + set, Limit: anewLimit}, l.queue()),
			rule(version, known, nft.Count{Counter: floodCounter}, drop),
			rule(version, nft.Update{Key: key, Set: "stranger" + set, Limit: strangerLimit}, goTo("fleet_shared")))
	}
	c.Rules = append(c.Rules, rule(nft.Count{Counter: floodCounter}, drop))
	return c
}

func (l *layout) fleetShared() nft.Chain {
	return nft.Chain{Name: "fleet_shared", Comment: "of all who are not known", Rules: []nft.Rule{
		rule(sharedLimit, l.queue()),
		rule(nft.Count{Counter: floodCounter}, drop),
	}}
}

// fleetMark: of a connection that another node opened and has not proven, nothing but
// the proof passes.
func (l *layout) fleetMark() nft.Chain {
	c := nft.Chain{Name: "fleet_mark", Hook: nft.Prerouting, Priority: manglePriority,
		Comment: "behind conntrack: what the verdict said, and what has no proof"}
	c.Rules = append(c.Rules, fromFleet(isNot(nft.MetaMark, 0), jump("fleet_verdict"))...)
	for _, icmp := range []uint32{nft.ProtoICMP, nft.ProtoICMPv6} {
		c.Rules = append(c.Rules, because("it quotes numbers of the wire", isNot(nft.MetaIif, nft.IfindexLo),
			is(nft.MetaL4Proto, icmp),
			anyOf(nft.CtState, nft.StateRelated), masked(nft.CtMark, mark.PendingBit, mark.PendingBit), l.queue()))
	}
	c.Rules = append(c.Rules,
		rule(is(nft.CtDirection, nft.DirReply), masked(nft.CtMark, mark.PendingBit|mark.OutBit,
			mark.PendingBit|mark.OutBit), goTo("fleet_answer")),
		because("no proof came with it", isNot(nft.MetaIif, nft.IfindexLo), is(nft.MetaL4Proto, nft.ProtoTCP),
			masked(nft.TCPFlags, nft.TCPRst, 0),
			is(nft.CtDirection, nft.DirOriginal), masked(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit),
			scratch(nft.MetaMark, mark.Ungated), l.queue()))
	return c
}

// fleetVerdict holds what a verdict says against the connection that there is: only a
// new one begins to be pending, and only a pending one is proven.
func (l *layout) fleetVerdict() nft.Chain {
	const all = mark.RemoteMask | mark.PendingBit | mark.OutBit
	original, reply := is(nft.CtDirection, nft.DirOriginal), is(nft.CtDirection, nft.DirReply)
	server, client := masked(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit),
		masked(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit|mark.OutBit)
	return nft.Chain{Name: "fleet_verdict", Comment: "mark: what the verdict said", Rules: []nft.Rule{
		because("T1 was good", masked(nft.MetaMark, all, mark.RemoteClass|mark.PendingBit), original,
			anyOf(nft.CtState, nft.StateNew), goTo("fleet_take")),
		rule(masked(nft.MetaMark, all, mark.RemoteClass|mark.PendingBit), original, server, goTo("fleet_take")),
		because("T2 was good", masked(nft.MetaMark, all, mark.RemoteClass|mark.PendingBit|mark.OutBit), reply, client,
			goTo("fleet_take")),
		because("T3 was good", masked(nft.MetaMark, all, mark.RemoteClass), original, server, goTo("fleet_take")),
		because("who answers has no Thole", is(nft.MetaMark, mark.Plain), reply, client,
			setMark(mark.AllBits&^mark.PendingBit, 0)),
		because("it proves nothing: but proven it is already", is(nft.MetaMark, mark.Unproven),
			masked(nft.CtMark, all, mark.RemoteClass), scratch(nft.MetaMark, 0), accept),
		rule(is(nft.MetaMark, mark.Unproven), l.queue()),
		rule(scratch(nft.MetaMark, 0)),
	}}
}

func fleetTake() nft.Chain {
	c := nft.Chain{Name: "fleet_take", Rules: []nft.Rule{
		rule(nft.Copy{Target: nft.CtMark, Source: nft.MetaMark}),
		rule(scratch(nft.MetaMark, 0)),
	}}
	update := func(set string, key []nft.Expr) []nft.Statement {
		return []nft.Statement{nft.Update{Key: key, Set: set}}
	}
	proof := maskedNot(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit) // T1 proves no presence
	c.Rules = append(c.Rules,
		rule(proof, v4, nft.Update{Key: []nft.Expr{ipSaddr}, Set: "known4"}),
		rule(proof, v6, nft.Update{Key: []nft.Expr{ip6Saddr}, Set: "known6"}))
	c.Rules = append(c.Rules, pendingTuple(update, masked(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit))...)
	c.Rules = append(c.Rules, rule(accept))
	return c
}

// fleetAnswer sees answers to a connection that this node opened and has not proven.
func (l *layout) fleetAnswer() nft.Chain {
	return nft.Chain{Name: "fleet_answer", Comment: "to a connection of ours that is pending", Rules: []nft.Rule{
		because("nobody has looked at it", is(nft.MetaL4Proto, nft.ProtoTCP),
			maskedNot(nft.CtMark, mark.RemoteMask, mark.RemoteClass),
			masked(nft.TCPFlags, nft.TCPSyn|nft.TCPAck|nft.TCPRst, nft.TCPSyn|nft.TCPAck), goTo("discard")),
		because("our proof has arrived", is(nft.MetaL4Proto, nft.ProtoTCP),
			masked(nft.CtMark, mark.RemoteMask, mark.RemoteClass), masked(nft.TCPFlags, nft.TCPSyn|nft.TCPRst, 0),
			anyOf(nft.CtState, nft.StateEstablished), setMark(mark.AllBits&^mark.PendingBit, 0)),
	}}
}

// introduce sends a SYN's labels with it.
func (l *layout) introduce() []nft.Chain {
	return []nft.Chain{
		{Name: "introduce", Comment: "a connection to another node: its labels go with it",
			Rules: l.whose(l.itsMark(nft.CtMark, goTo("introduce_by")), "discard")},
		{Name: "introduce_by", Rules: []nft.Rule{
			ctsClass,
			rule(setMark(mark.ClassMask, mark.PendingBit|mark.OutBit)),
			rule(scratch(nft.MetaPriority, 0)),
			rule(jump("may_be_wrapped")),
			rule(isTCP, v4, nft.Update{Key: []nft.Expr{ipDaddr, dport, ipSaddr, sport}, Set: "pending4"}),
			rule(isTCP, v6, nft.Update{Key: []nft.Expr{ip6Daddr, dport, ip6Saddr, sport}, Set: "pending6"}),
			rule(l.queue()),
		}},
	}
}

// believed holds where who has the class of the mark is believed to be what it proved.
// What is not in the set is asked about nothing: maps hold what is said of most, too.
var believed = nft.InSet{Key: []nft.Expr{ctClass}, Set: "remotes"}

// outputFleet sees what goes out on connections whose other end proved its labels.
func (l *layout) outputFleet() nft.Chain {
	return nft.Chain{Name: "output_fleet", Comment: "to a workload of another node", Rules: []nft.Rule{
		rule(jump("may_be_wrapped")),
		because("our proof goes with it", masked(nft.CtMark, mark.PendingBit, mark.PendingBit), l.queue()),
		rule(isTCP, notSYN, masked(nft.CtMark, mark.EpochMask|mark.DeadBit, l.epoch), accept),
		because("it was denied", isTCP, notSYN, masked(nft.CtMark, mark.DeadBit, mark.DeadBit), goTo("discard")),
		rule(believed, goTo("fleet_again")),
		because("its certificate was revoked", goTo("refuse")),
	}}
}

// fleetAgain finds out who sends.
func (l *layout) fleetAgain() nft.Chain {
	return nft.Chain{Name: "fleet_again", Rules: l.whose(l.itsMark(nft.MetaMark, goTo("fleet_ask")), "fleet_nobody")}
}

// fleetNobody lets pass what the kernel sends for the connection. A full socket that is
// no workload's has no part in it.
func fleetNobody() nft.Chain {
	return nft.Chain{Name: "fleet_nobody", Rules: []nft.Rule{
		rule(fullSocket(nft.SkUID), goTo("discard")),
		rule(accept),
	}}
}

func (l *layout) fleetAsk() nft.Chain {
	return nft.Chain{Name: "fleet_ask", Comment: "mark: who sends; ct mark: class of the other node's workload",
		Rules: []nft.Rule{
			sendersClass,
			rule(jump("egress_fleet")),
			rule(scratch(nft.MetaMark, 0)),
			rule(setMark(mark.ClassMask, l.epoch|mark.OutBit), nft.Count{Counter: "allowed"}, accept),
		}}
}

func egressFleet() nft.Chain {
	return nft.Chain{Name: "egress_fleet", Comment: "what the sender's side says; to fall through is to allow",
		Rules: []nft.Rule{
			rule(nft.ByMap{Key: []nft.Expr{sender, ctClass}, Map: "egress_remote"}),
			rule(nft.ByMap{Key: []nft.Expr{sender}, Map: "egress_class"}),
		}}
}

// fleetReply decides a connection that was just proven, where its own packet did not: the
// last ACK of a handshake finds a request, and no socket.
func (l *layout) fleetReply() nft.Chain {
	return nft.Chain{Name: "fleet_reply", Comment: "the first answer to what another node's workload proved to be",
		Rules: []nft.Rule{
			because("the kernel's own", is(nft.MetaL4Proto, nft.ProtoTCP), anyOf(nft.TCPFlags, nft.TCPSyn|nft.TCPRst),
				accept),
			rule(believed, goTo("fleet_decide")),
			because("its certificate was revoked", goTo("refuse")),
		}}
}

func (l *layout) fleetDecide() nft.Chain {
	return nft.Chain{Name: "fleet_decide", Rules: l.whose(l.itsNumber(goTo("ask_ct")), "answer_nobody")}
}

// fleetSent lets pass what userspace sends for a connection: resets, a SYN without a
// token, a proof alone. A workload that gives its packets that mark is none of that.
func (l *layout) fleetSent() nft.Chain {
	return nft.Chain{Name: "fleet_sent", Comment: "sent by the datapath",
		Rules: l.whose(l.itsNumber(goTo("discard")), "fleet_ours")}
}

func fleetOurs() nft.Chain {
	return nft.Chain{Name: "fleet_ours", Rules: []nft.Rule{
		rule(scratch(nft.MetaMark, 0)),
		rule(accept),
	}}
}

// Priorities of PREROUTING (linux/netfilter_ipv4.h).
const (
	rawPriority    = -300
	manglePriority = -150
)

// tholeOption is there in packets that carry a token (RFC 6994: experiments share its kind).
var tholeOption = nft.Match{Left: nft.Expr{Field: nft.TCPOption, Level: 254}, Op: nft.Equal, Value: 1}

// shortT1 is what TCPToken is of T1 short (docs/PROTOCOL.md). Who writes it falsely gets no
// more than he who sends T1 short.
const shortT1 = 1
