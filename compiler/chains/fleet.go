package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// How many packets with our option may reach userspace in a second, and at once, although they belong to no handshake
// that is in progress: they may begin one. An address that proved itself recently has two limits of its own, one for
// T1 short, and one for T1 full, which anybody can repeat. (The limit is the address's, because a claimed name proves
// nothing.) All other addresses share one limit, and each has a part of it. What is over a limit is dropped.
var (
	knownLimit    = nft.Limit{PerSecond: 10_000, Burst: 20_000}
	anewLimit     = nft.Limit{PerSecond: 1000, Burst: 2000}
	strangerLimit = nft.Limit{PerSecond: 100, Burst: 200}
	sharedLimit   = nft.Limit{PerSecond: 1000, Burst: 2000}
)

// fleetChains see what is exchanged with other nodes before its labels are proven.
// Userspace (datapath) takes the tokens off and puts them on; the packet's mark is
// what its verdict on a packet from there says. docs/ARCHITECTURE.md draws them.
func (b *builder) fleetChains() []nft.Chain {
	return append(b.introduce(), fleetUntracked(), b.fleetClear(), b.fleetIn(), b.fleetBegin(), b.fleetShared(),
		b.fleetMark(), b.fleetVerdict(), fleetTake(), b.fleetAnswer(),
		b.outputFleet(), b.fleetAgain(), fleetNobody(), b.fleetAsk(), egressFleet(), b.fleetReply(), b.fleetDecide(),
		b.fleetSent(), fleetOurs())
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

func (b *builder) queue() nft.Queue { return nft.Queue{Number: b.Queue} }

// fleetUntracked: a reset for who answers would end conntrack's entry of the connect, for
// which the kernel still waits for the answer.
func fleetUntracked() nft.Chain {
	return nft.Chain{Name: "fleet_untracked", Hook: nft.Output, Priority: rawPriority,
		Comment: "resets by which the datapath takes back a connect",
		Rules: []nft.Rule{rule(is(nft.MetaMark, mark.SentOut), is(nft.MetaL4Proto, nft.ProtoTCP),
			anyOf(nft.TCPFlags, nft.TCPRst), nft.Notrack{})}}
}

// fleetClear: only our own verdicts set our bits of a mark.
func (b *builder) fleetClear() nft.Chain {
	return nft.Chain{Name: "fleet_clear", Hook: nft.Prerouting, Priority: rawPriority - 1,
		Comment: "what comes from other nodes has no mark of ours",
		Rules:   fromFleet(scratch(nft.MetaMark, 0))}
}

func (b *builder) fleetIn() nft.Chain {
	c := nft.Chain{Name: "fleet_in", Hook: nft.Prerouting, Priority: rawPriority,
		Comment: "before conntrack: tokens, and answers and resets that are about them"}
	look := func(set string, key []nft.Expr) []nft.Statement {
		return []nft.Statement{nft.InSet{Key: key, Set: set}, b.queue()}
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
func (b *builder) fleetBegin() nft.Chain {
	c := nft.Chain{Name: "fleet_begin", Comment: "a token, of no handshake that goes on"}
	for _, f := range families {
		version, set, key := f.match, f.suffix, []nft.Expr{f.saddr}
		known := nft.InSet{Key: key, Set: "known" + set}
		c.Rules = append(c.Rules,
			rule(is(nft.MetaL4Proto, nft.ProtoTCP), is(nft.TCPToken, shortT1), version, known,
				nft.Update{Key: key, Set: "short" + set, Limit: knownLimit}, b.queue()),
			rule(is(nft.MetaL4Proto, nft.ProtoTCP), isNot(nft.TCPToken, shortT1), version, known,
				nft.Update{Key: key, Set: "full" + set, Limit: anewLimit}, b.queue()),
			rule(version, known, nft.Count{Counter: floodCounter}, drop),
			rule(version, nft.Update{Key: key, Set: "stranger" + set, Limit: strangerLimit}, goTo("fleet_shared")))
	}
	c.Rules = append(c.Rules, rule(nft.Count{Counter: floodCounter}, drop))
	return c
}

func (b *builder) fleetShared() nft.Chain {
	return nft.Chain{Name: "fleet_shared", Comment: "of all who are not known", Rules: []nft.Rule{
		rule(sharedLimit, b.queue()),
		rule(nft.Count{Counter: floodCounter}, drop),
	}}
}

// fleetMark: of a connection that another node opened and has not proven, nothing but
// the proof passes.
func (b *builder) fleetMark() nft.Chain {
	c := nft.Chain{Name: "fleet_mark", Hook: nft.Prerouting, Priority: manglePriority,
		Comment: "behind conntrack: what the verdict said, and what has no proof"}
	c.Rules = append(c.Rules, fromFleet(isNot(nft.MetaMark, 0), jump("fleet_verdict"))...)
	for _, icmp := range []uint32{nft.ProtoICMP, nft.ProtoICMPv6} {
		c.Rules = append(c.Rules, because("it quotes numbers of the wire", isNot(nft.MetaIif, nft.IfindexLo),
			is(nft.MetaL4Proto, icmp),
			anyOf(nft.CtState, nft.StateRelated), masked(nft.CtMark, mark.PendingBit, mark.PendingBit), b.queue()))
	}
	c.Rules = append(c.Rules,
		rule(is(nft.CtDirection, nft.DirReply), masked(nft.CtMark, mark.PendingBit|mark.OutBit,
			mark.PendingBit|mark.OutBit), goTo("fleet_answer")),
		because("no proof came with it", isNot(nft.MetaIif, nft.IfindexLo), is(nft.MetaL4Proto, nft.ProtoTCP),
			masked(nft.TCPFlags, nft.TCPRst, 0),
			is(nft.CtDirection, nft.DirOriginal), masked(nft.CtMark, mark.PendingBit|mark.OutBit, mark.PendingBit),
			scratch(nft.MetaMark, mark.Ungated), b.queue()))
	return c
}

// fleetVerdict holds what a verdict says against the connection that there is: only a
// new one begins to be pending, and only a pending one is proven.
func (b *builder) fleetVerdict() nft.Chain {
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
		rule(is(nft.MetaMark, mark.Unproven), b.queue()),
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
func (b *builder) fleetAnswer() nft.Chain {
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
func (b *builder) introduce() []nft.Chain {
	return []nft.Chain{
		{Name: "introduce", Comment: "a connection to another node: its labels go with it",
			Rules: b.lookupCgroup(b.numberToMark(nft.CtMark, goTo("introduce_by")), "discard")},
		{Name: "introduce_by", Rules: []nft.Rule{
			ctsClass,
			rule(setMark(mark.ClassMask, mark.PendingBit|mark.OutBit)),
			rule(scratch(nft.MetaPriority, 0)),
			rule(jump("may_be_wrapped")),
			rule(isTCP, v4, nft.Update{Key: []nft.Expr{ipDaddr, dport, ipSaddr, sport}, Set: "pending4"}),
			rule(isTCP, v6, nft.Update{Key: []nft.Expr{ip6Daddr, dport, ip6Saddr, sport}, Set: "pending6"}),
			rule(b.queue()),
		}},
	}
}

// believed holds where who has the class of the mark is believed to be what it proved.
// What is not in the set is asked about nothing: maps hold what is said of most, too.
var believed = nft.InSet{Key: []nft.Expr{ctClass}, Set: "remotes"}

// outputFleet sees what goes out on connections whose other end proved its labels.
func (b *builder) outputFleet() nft.Chain {
	return nft.Chain{Name: "output_fleet", Comment: "to a workload of another node", Rules: []nft.Rule{
		rule(jump("may_be_wrapped")),
		because("our proof goes with it", masked(nft.CtMark, mark.PendingBit, mark.PendingBit), b.queue()),
		rule(isTCP, notSYN, masked(nft.CtMark, mark.EpochMask|mark.DeadBit, b.epochBits), accept),
		because("it was denied", isTCP, notSYN, masked(nft.CtMark, mark.DeadBit, mark.DeadBit), goTo("discard")),
		rule(believed, goTo("fleet_again")),
		because("its certificate was revoked", goTo("refuse")),
	}}
}

// fleetAgain finds out who sends.
func (b *builder) fleetAgain() nft.Chain {
	return nft.Chain{Name: "fleet_again",
		Rules: b.lookupCgroup(b.numberToMark(nft.MetaMark, goTo("fleet_ask")), "fleet_nobody")}
}

// fleetNobody lets pass what the kernel sends for the connection. A full socket that is
// no workload's has no part in it.
func fleetNobody() nft.Chain {
	return nft.Chain{Name: "fleet_nobody", Rules: []nft.Rule{
		rule(fullSocket(nft.SkUID), goTo("discard")),
		rule(accept),
	}}
}

func (b *builder) fleetAsk() nft.Chain {
	return nft.Chain{Name: "fleet_ask", Comment: "mark: who sends; ct mark: class of the other node's workload",
		Rules: []nft.Rule{
			sendersClass,
			rule(jump("egress_fleet")),
			rule(scratch(nft.MetaMark, 0)),
			rule(setMark(mark.ClassMask, b.epochBits|mark.OutBit), nft.Count{Counter: "allowed"}, accept),
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
func (b *builder) fleetReply() nft.Chain {
	return nft.Chain{Name: "fleet_reply", Comment: "the first answer to what another node's workload proved to be",
		Rules: []nft.Rule{
			because("the kernel's own", is(nft.MetaL4Proto, nft.ProtoTCP), anyOf(nft.TCPFlags, nft.TCPSyn|nft.TCPRst),
				accept),
			rule(believed, goTo("fleet_decide")),
			because("its certificate was revoked", goTo("refuse")),
		}}
}

func (b *builder) fleetDecide() nft.Chain {
	return nft.Chain{Name: "fleet_decide", Rules: b.lookupCgroup(b.numberToPriority(goTo("ask_ct")), "answer_nobody")}
}

// fleetSent lets pass what userspace sends for a connection: resets, a SYN without a
// token, a proof alone. A workload that gives its packets that mark is none of that.
func (b *builder) fleetSent() nft.Chain {
	return nft.Chain{Name: "fleet_sent", Comment: "sent by the datapath",
		Rules: b.lookupCgroup(b.numberToPriority(goTo("discard")), "fleet_ours")}
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
