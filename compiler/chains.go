package compiler

import (
	"fmt"
	"net/netip"
	"slices"

	nft "thole/ruleset"
)

// priority puts our chains behind other programs' filter chains: those see the
// packet as it came, while INPUT here uses the packet's mark and priority as
// scratch registers for the class of the listener and of the port.
const priority = 10

// A layout is what the chains depend on besides the contents of the maps.
type layout struct {
	levels []level // deepest first
	epoch  uint32  // shifted into its place in the mark
	deny   DenyMode
	audits []auditChain

	bridges bool // there are bridges of containers
	fleet   *Fleet
}

// A level is a depth in the cgroup tree, and which sets there are of it.
type level struct {
	depth   uint8
	bound   bool // cgroups of workloads
	free    bool // cgroups that are known to be unlabelled
	unknown bool // parents of containers
}

// whose asks, from the deepest level up, whose socket it is. The first cgroup that
// says something counts: hit returns what to do where it is bound, nobody is the
// chain for what is unlabelled. Below a parent of containers, what is not known yet
// is discarded.
func (l *layout) whose(hit func(depth uint8) []nft.Rule, nobody string) []nft.Rule {
	var rules []nft.Rule
	for _, at := range l.levels {
		key := []nft.Expr{cgroup(at.depth)}
		if at.bound {
			rules = append(rules, hit(at.depth)...)
		}
		if at.free {
			rules = append(rules, rule(nft.InSet{Key: key, Set: freeSet(at.depth)}, goTo(nobody)))
		}
		if at.unknown {
			rules = append(rules, because("its labels are not known yet", nft.InSet{Key: key, Set: unknownSet(at.depth)}, goTo("discard")))
		}
	}
	return append(rules, rule(goTo(nobody)))
}

// An auditChain records what an audit policy would have denied, and lets it pass.
type auditChain struct {
	name   string
	policy string
	stage  stage
}

// A stage is where a judgement is asked for.
type stage uint8

const (
	atIngress stage = iota // INPUT, the listener's side
	atEgress               // INPUT, the sender's side
	atLeave                // OUTPUT, the sender's side, to addresses outside
)

// chains returns all chains. docs/ARCHITECTURE.md draws them.
func (l *layout) chains() []nft.Chain {
	list := []nft.Chain{
		l.output(), l.outputReply(), l.replySYN("output_reply_syn"), l.replySYN("input_reply_syn"), {Name: "reply_syn_nobody", Rules: []nft.Rule{rule(accept)}}, l.outputAgain(), answerNobody(), l.answer(), l.outputUnasked(), outputPair(), outputFree(), l.senderNobody(), l.unlabelledOut(), l.sent(), l.leave(),
		l.input(), l.inputReply(), l.replyNobody(), l.inputAgain(), l.leaveAgain(), l.inputTCP(), l.inputUDP(), l.inputOther(), l.listenerNobody(), l.unlabelledIn(),
		l.decide(), l.stranger(), l.ask(), l.askNobody(), l.port(), answerPort(),
		l.settle("settle", l.epoch), l.settle("settle_out", l.epoch|markOut), l.refuse(), l.refuseOut(), l.discard(),
	}
	list = append(list, l.side("ingress", metaMark)...)
	list = append(list, l.side("egress", ctClass)...)
	if l.fleet != nil {
		list = append(list, l.fleetChains()...)
	}
	for _, a := range l.audits {
		list = append(list, a.chain(l.fleet != nil))
	}
	return list
}

// output sees what this node sends. It writes the sender's class into the mark, on
// every packet, unless it is there already: ports and class numbers are re-used. A
// new class is in no epoch, so that the connection is decided again.
func (l *layout) output() nft.Chain {
	c := nft.Chain{Name: "output", Hook: nft.Output, Priority: priority}
	if l.fleet != nil {
		c.Rules = append(c.Rules, rule(is(nft.MetaMark, Sent), goTo("fleet_sent")), rule(is(nft.MetaMark, SentOut), goTo("fleet_sent")))
	}
	c.Rules = append(c.Rules, rule(is(nft.CtDirection, nft.DirReply), goTo("output_reply")))
	if l.fleet != nil {
		c.Rules = append(c.Rules,
			rule(masked(nft.CtMark, remoteMask|markOut, remoteClass|markOut), goTo("output_fleet")),
			because("fleet_ask denied it", masked(nft.CtMark, markPending|markDead|markOut, markPending|markDead|markOut),
				is(nft.MetaL4Proto, nft.ProtoTCP), maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn), goTo("discard")))
	}
	c.Rules = append(c.Rules, l.whose(func(depth uint8) []nft.Rule {
		return []nft.Rule{
			rule(maskedNot(nft.CtMark, markClass, 0), nft.InSet{Key: []nft.Expr{cgroup(depth), ctClass}, Set: sameSet(depth)}, goTo("sent")),
			rule(nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{cgroup(depth)}, Map: memberMap(depth)}, goTo("sent")),
			rule(nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("sent")),
		}
	}, "sender_nobody")...)
	return c
}

// outputUnasked sees answers on connections that INPUT settled with no listener. A
// workload's socket may not answer there: it has a UDP port that another was asked
// on, or is bound to a device, so that no lookup on lo finds it. Only where both
// sides allow everything it may (a SYN that met a time-wait socket is not settled
// either).
func (l *layout) outputUnasked() nft.Chain {
	reset := because("nobody listens: it carries nothing, and the client need not wait", is(nft.MetaL4Proto, nft.ProtoTCP), anyOf(nft.TCPFlags, nft.TCPRst), accept)
	return nft.Chain{Name: "output_unasked", Comment: "what was asked reached no workload that was found: who answers?", Rules: append([]nft.Rule{reset}, l.whose(func(depth uint8) []nft.Rule {
		return []nft.Rule{
			rule(reachesItself(depth), accept),
			rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("output_pair")),
		}
	}, "output_free")...)}
}

// replySYN sees a SYN that conntrack takes for an answer, because a SYN left from the other port before. It answers
// nothing, it opens a connection: a process that sent from a port before its present owner listened there could so be
// called past the policies. Only what is unlabelled may.
func (l *layout) replySYN(name string) nft.Chain {
	workload := func(depth uint8) []nft.Rule {
		return []nft.Rule{rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("discard"))}
	}
	involved := because("a workload sent from the other port", maskedNot(nft.CtMark, markClass, 0), masked(nft.CtMark, elsewhere, 0), goTo("discard"))
	return nft.Chain{Name: name, Comment: "a SYN is no answer", Rules: append([]nft.Rule{involved}, l.whose(workload, "reply_syn_nobody")...)}
}

// isSYN holds for what opens a connection of TCP.
func isSYN(verdict nft.Verdict) nft.Rule {
	return rule(is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.TCPFlags, tcpOpening, nft.TCPSyn), verdict)
}

func outputPair() nft.Chain {
	return nft.Chain{Name: "output_pair", Rules: []nft.Rule{
		itsClass,
		rule(nft.ByMap{Key: []nft.Expr{ctClass, metaMark}, Map: "pair"}),
		rule(anyOf(nft.CtState, nft.StateRelated), accept),
		rule(goTo("discard")),
	}}
}

// outputFree lets what is unlabelled answer, but on a connection that a workload
// opened only after its own side was asked. (A SYN-ACK has no full socket: of it,
// "meta skuid" would say that of the listener.)
func outputFree() nft.Chain {
	return nft.Chain{Name: "output_free", Rules: []nft.Rule{
		rule(is(nft.MetaL4Proto, nft.ProtoTCP), maskedNot(nft.CtMark, markClass, 0), masked(nft.CtMark, elsewhere, 0), fullSocket(nft.SocketMark), goTo("discard")),
		because("UDP is never settled here", is(nft.MetaL4Proto, nft.ProtoUDP), maskedNot(nft.CtMark, markClass, 0), masked(nft.CtMark, elsewhere|markDead, 0), goTo("answer_nobody")),
		rule(masked(nft.CtMark, markDead, 0), accept),
		rule(anyOf(nft.CtState, nft.StateRelated), accept),
		rule(goTo("discard")),
	}}
}

// senderNobody sees what no workload's socket sends: something unlabelled, or the
// kernel for a connection.
func (l *layout) senderNobody() nft.Chain {
	return nft.Chain{Name: "sender_nobody", Rules: []nft.Rule{
		rule(fullSocket(nft.SkUID), maskedNot(nft.CtMark, markClass, 0), setMark(0, 0)),
		rule(masked(nft.CtMark, markClass, 0), goTo("unlabelled_out")),
		rule(anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked), accept),
		rule(goTo("sent")),
	}}
}

// sent lets pass what is decided, or what INPUT will decide, where the listener is known.
func (l *layout) sent() nft.Chain {
	return nft.Chain{Name: "sent", Comment: "by a workload", Rules: []nft.Rule{
		because("a SYN may have the mark of another connection: of its ports, or of its control", maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn), masked(nft.CtMark, markEpoch|markDead, l.epoch), accept),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.CtMark, markEpoch|markDead, l.epoch), accept),
		because("INPUT decides; oif is the one before NAT", is(nft.MetaOif, nft.IfindexLo), is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.CtStatus, nft.StatusDNAT, 0), accept),
		because("conntrack does not know it: it leaves no workload", anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked), goTo("discard")),
		rule(anyOf(nft.CtStatus, nft.StatusDNAT), is(nft.FibDaddrType, nft.RTNLocal), accept),
		rule(anyOf(nft.CtStatus, nft.StatusDNAT), goTo("leave")),
		rule(v4, within(nft.IPDaddr, groups[0]), goTo("leave")),
		rule(v6, within(nft.IP6Daddr, groups[1]), goTo("leave")),
		rule(is(nft.MetaOif, nft.IfindexLo), accept),
		rule(goTo("leave")),
	}}
}

func (l *layout) outputReply() nft.Chain {
	c := nft.Chain{Name: "output_reply", Comment: "answers belong to their connection"}
	if l.fleet != nil {
		c.Rules = append(c.Rules, isSYN(goTo("output_reply_syn")),
			because("it was in the queue when the proof came", is(nft.MetaMark, Unproven), is(nft.MetaL4Proto, nft.ProtoTCP),
				masked(nft.TCPFlags, nft.TCPSyn|nft.TCPAck, nft.TCPSyn|nft.TCPAck), masked(nft.CtMark, remoteMask|markPending|markOut, remoteClass), drop),
			because("a handshake that another node began", is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.CtMark, markPending|markOut, markPending), l.queue()),
			because("proven, and not decided yet", is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.CtMark, remoteMask|markPending|markOut|markEpoch|markDead, remoteClass), goTo("fleet_reply")))
	}
	c.Rules = append(c.Rules,
		because("most of TCP", maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn), masked(nft.CtMark, markEpoch|markDead, l.epoch), accept))
	if l.fleet == nil {
		c.Rules = append(c.Rules, isSYN(goTo("output_reply_syn")))
	}
	c.Rules = append(c.Rules, []nft.Rule{
		rule(masked(nft.CtMark, markEpoch|markDead, l.epoch), accept),
		rule(masked(nft.CtMark, markEpoch, 0), goTo("output_unasked")),
		because("its acknowledgements are decided", is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.CtMark, markDead, 0), accept),
		because("our own answers: the kernel attaches them to the connection as related", anyOf(nft.CtState, nft.StateRelated), accept),
		rule(is(nft.MetaL4Proto, nft.ProtoTCP), anyOf(nft.TCPFlags, nft.TCPRst), accept),
		rule(masked(nft.CtMark, markDead, 0), goTo("output_again")),
		rule(goTo("discard")),
	}...)
	return c
}

// outputAgain decides the connection of an answer that was allowed in an older epoch:
// who asked may never send again. A connection of TCP is decided when it acknowledges.
func (l *layout) outputAgain() nft.Chain {
	c := nft.Chain{Name: "output_again", Comment: "an answer, allowed before the last revocation: may it be given still?", Rules: []nft.Rule{
		rule(isNot(nft.MetaL4Proto, nft.ProtoUDP), goTo("answer_nobody")),
	}}
	c.Rules = append(c.Rules, l.whose(func(depth uint8) []nft.Rule {
		return []nft.Rule{
			rule(is(nft.MetaOif, nft.IfindexLo), reachesItself(depth), goTo("settle")),
			rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("answer")),
		}
	}, "answer_nobody")...)
	return c
}

// answer finds out whom a workload answers: here the class that asked, elsewhere that
// of the address, whose number may be another's by now. (Here INPUT compares it.)
func (l *layout) answer() nft.Chain {
	c := nft.Chain{Name: "answer", Rules: []nft.Rule{rule(is(nft.MetaOif, nft.IfindexLo), goTo("ask"))}}
	c.Rules = append(c.Rules, l.outside(oifName, ipDaddr, ip6Daddr)...)
	return c
}

func answerNobody() nft.Chain {
	return nft.Chain{Name: "answer_nobody", Rules: []nft.Rule{rule(scratch(nft.MetaMark, 0)), rule(goTo("ask_nobody"))}}
}

func (l *layout) unlabelledOut() nft.Chain {
	return nft.Chain{Name: "unlabelled_out", Rules: []nft.Rule{
		rule(masked(nft.CtMark, markSeen, 0), setMark(allOnes, markSeen)),
		rule(nft.Count{Counter: "unlabelled"}, accept),
	}}
}

// leave decides what goes to addresses outside this node: first what differs by
// address, protocol and port, then by class. What goes to a container with a network of
// its own does not leave this node; its first packet has its mark written.
func (l *layout) leave() nft.Chain {
	key := func(e ...nft.Expr) []nft.Expr { return append([]nft.Expr{ctClass}, e...) }
	c := nft.Chain{Name: "leave", Comment: "to addresses outside this node", Rules: []nft.Rule{
		neighbourDiscovery,
		because("an error about a connection", anyOf(nft.CtState, nft.StateRelated), is(nft.MetaL4Proto, nft.ProtoICMP), accept),
		rule(anyOf(nft.CtState, nft.StateRelated), is(nft.MetaL4Proto, nft.ProtoICMPv6), accept),
	}}
	c.Rules = append(c.Rules, itsClass)
	c.Rules = append(c.Rules, l.containers(oifName, ipDaddr, ip6Daddr)...)
	if l.fleet != nil {
		opens := []nft.Statement{is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.TCPFlags, tcpOpening, nft.TCPSyn), nft.InSet{Key: key(), Set: "introduced"}}
		c.Rules = append(c.Rules,
			rule(slices.Concat(opens, []nft.Statement{v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"}, goTo("introduce")})...),
			rule(slices.Concat(opens, []nft.Statement{v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"}, goTo("introduce")})...))
	}
	c.Rules = append(c.Rules,
		rule(v4, is(nft.MetaL4Proto, nft.ProtoICMP), nft.ByMap{Key: key(ipDaddr, icmp), Map: "leave_icmp4"}),
		rule(v6, is(nft.MetaL4Proto, nft.ProtoICMPv6), nft.ByMap{Key: key(ip6Daddr, icmp6), Map: "leave_icmp6"}),
		rule(v4, nft.ByMap{Key: key(ipDaddr, l4proto, dport), Map: "leave4"}),
		rule(v6, nft.ByMap{Key: key(ip6Daddr, l4proto, dport), Map: "leave6"}),
		rule(v4, within(nft.IPDaddr, groups[0]), nft.ByMap{Key: key(), Map: "leave_group"}),
		rule(v4, within(nft.IPDaddr, groups[0]), goTo("settle_out")),
		rule(v6, within(nft.IP6Daddr, groups[1]), nft.ByMap{Key: key(), Map: "leave_group"}),
		rule(v6, within(nft.IP6Daddr, groups[1]), goTo("settle_out")),
		rule(nft.ByMap{Key: key(), Map: "leave_class"}),
		rule(goTo("settle_out")))
	return c
}

// containers asks where the other end is a container with a network of its own.
func (l *layout) containers(bridge, addr4, addr6 nft.Expr) []nft.Rule {
	if !l.bridges {
		return nil
	}
	return []nft.Rule{
		rule(v4, nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{addr4}, Map: "to_container4"}, goTo("ask")),
		rule(v6, nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{addr6}, Map: "to_container6"}, goTo("ask")),
		because("a container whose labels are not known yet", v4, nft.InSet{Key: []nft.Expr{addr4}, Set: "container_net4"}, goTo("discard")),
		rule(v6, nft.InSet{Key: []nft.Expr{addr6}, Set: "container_net6"}, goTo("discard")),
		because("a container, nobody knows which: unlabelled", v6, within(addr6.Field, linkLocal), nft.InSet{Key: []nft.Expr{bridge}, Set: "bridges"}, scratch(nft.MetaMark, 0), goTo("ask")),
	}
}

// input sees what reaches this node.
func (l *layout) input() nft.Chain {
	return nft.Chain{Name: "input", Hook: nft.Input, Priority: priority, Rules: []nft.Rule{
		rule(is(nft.CtDirection, nft.DirReply), goTo("input_reply")),
		rule(is(nft.MetaL4Proto, nft.ProtoTCP), goTo("input_tcp")),
		rule(is(nft.MetaL4Proto, nft.ProtoUDP), goTo("input_udp")),
		rule(goTo("input_other")),
	}}
}

// listener puts the class of the listener into the packet's mark.
func (l *layout) listener() []nft.Rule {
	return l.whose(func(depth uint8) []nft.Rule {
		return []nft.Rule{
			rule(is(nft.MetaIif, nft.IfindexLo), reachesItself(depth), goTo("settle")),
			rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("decide")),
		}
	}, "listener_nobody")
}

func (l *layout) inputTCP() nft.Chain {
	decided := because("a SYN may be one of ports used before", maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn), masked(nft.CtMark, markEpoch|markDead|markOut, l.epoch), accept)
	return nft.Chain{Name: "input_tcp", Rules: append([]nft.Rule{decided}, l.listener()...)}
}

// inputReply lets an answer of UDP through only to a socket of the class that asked.
func (l *layout) inputReply() nft.Chain {
	c := nft.Chain{Name: "input_reply", Comment: "an answer is for the class that asked, not for who has its UDP port now", Rules: []nft.Rule{
		because("TCP", maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn), accept),
		rule(is(nft.MetaL4Proto, nft.ProtoTCP), goTo("input_reply_syn")),
		rule(anyOf(nft.CtState, nft.StateRelated), accept),
		rule(isNot(nft.MetaL4Proto, nft.ProtoUDP), goTo("input_again")),
	}}
	c.Rules = append(c.Rules, l.whose(func(depth uint8) []nft.Rule {
		return []nft.Rule{
			rule(nft.InSet{Key: []nft.Expr{cgroup(depth), ctClass}, Set: sameSet(depth)}, goTo("input_again")),
			rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{cgroup(depth)}, Map: classMap(depth)}, goTo("discard")),
		}
	}, "reply_nobody")...)
	return c
}

func (l *layout) replyNobody() nft.Chain {
	return nft.Chain{Name: "reply_nobody", Rules: []nft.Rule{
		rule(masked(nft.CtMark, markClass, 0), accept),
		rule(goTo("discard")),
	}}
}

// inputAgain decides the connection of an answer from elsewhere that was allowed in an
// older epoch, for a workload that may never send again. What comes over lo OUTPUT has
// decided.
func (l *layout) inputAgain() nft.Chain {
	forged := append([]nft.Statement{is(nft.MetaL4Proto, nft.ProtoUDP), isNot(nft.MetaIif, nft.IfindexLo)}, ownSource...)
	return nft.Chain{Name: "input_again", Rules: []nft.Rule{
		because("this node's own address, from outside", append(forged, goTo("discard"))...),
		rule(masked(nft.CtMark, markEpoch|markDead, l.epoch), accept),
		rule(masked(nft.CtMark, markClass, 0), accept),
		rule(is(nft.MetaIif, nft.IfindexLo), accept),
		rule(masked(nft.CtMark, markDead, markDead), goTo("discard")),
		because("the next request is decided", is(nft.MetaL4Proto, nft.ProtoICMP), goTo("discard")),
		rule(is(nft.MetaL4Proto, nft.ProtoICMPv6), goTo("discard")),
		rule(goTo("leave_again")),
	}}
}

// leaveAgain is leave, asked by an answer.
func (l *layout) leaveAgain() nft.Chain {
	return nft.Chain{Name: "leave_again", Comment: "may what it answers leave still?", Rules: slices.Concat([]nft.Rule{itsClass}, l.containers(iifName, ipSaddr, ip6Saddr), []nft.Rule{
		rule(v4, nft.ByMap{Key: []nft.Expr{ctClass, ipSaddr, l4proto, sport}, Map: "leave4"}),
		rule(v6, nft.ByMap{Key: []nft.Expr{ctClass, ip6Saddr, l4proto, sport}, Map: "leave6"}),
		rule(nft.ByMap{Key: []nft.Expr{ctClass}, Map: "leave_class"}),
		rule(goTo("settle_out")),
	})}
}

// inputUDP decides every packet: a UDP port changes hands. What goes to a group or
// to all is delivered to all their sockets, but the kernel finds one of them at
// most: there the sender alone decides, at its OUTPUT.
func (l *layout) inputUDP() nft.Chain {
	c := nft.Chain{Name: "input_udp", Comment: "a port changes hands: every packet is decided", Rules: []nft.Rule{
		because("injected: no socket sent it", is(nft.MetaIif, nft.IfindexLo), is(nft.CtMark, 0), v4, within(nft.IPDaddr, groups[0]), nft.Count{Counter: "injected"}, drop),
		rule(is(nft.MetaIif, nft.IfindexLo), is(nft.CtMark, 0), v6, within(nft.IP6Daddr, groups[1]), nft.Count{Counter: "injected"}, drop),
		because("decided by the sender alone", v4, within(nft.IPDaddr, groups[0]), accept),
		rule(v6, within(nft.IP6Daddr, groups[1]), accept),
		because("a workload's own, come back", isNot(nft.MetaIif, nft.IfindexLo), maskedNot(nft.CtMark, markClass, 0), masked(nft.CtMark, elsewhere, 0), is(nft.FibDaddrType, nft.RTNBroadcast), goTo("discard")),
		rule(isNot(nft.MetaIif, nft.IfindexLo), is(nft.FibDaddrType, nft.RTNBroadcast), accept),
		rule(is(nft.MetaIif, nft.IfindexLo), maskedNot(nft.CtMark, markClass, 0), is(nft.FibDaddrType, nft.RTNBroadcast), goTo("discard")),
	}}
	c.Rules = append(c.Rules, l.listener()...)
	return c
}

// inputOther sees what has no listener that could be found: its sender alone decides.
func (l *layout) inputOther() nft.Chain {
	return nft.Chain{Name: "input_other", Comment: "no listener can be found: the sender alone decides", Rules: []nft.Rule{
		rule(masked(nft.CtMark, markEpoch|markDead|markOut, l.epoch), accept),
		rule(isNot(nft.MetaIif, nft.IfindexLo), accept),
		rule(masked(nft.CtMark, markClass, 0), accept),
		rule(anyOf(nft.CtState, nft.StateRelated), accept),
		rule(v4, within(nft.IPDaddr, groups[0]), accept),
		rule(v6, within(nft.IP6Daddr, groups[1]), accept),
		neighbourDiscovery,
		rule(scratch(nft.MetaMark, 0)),
		rule(goTo("ask_nobody")),
	}}
}

// listenerNobody sees what no workload's socket was found for. Only where a full
// socket was found it is something unlabelled. A SYN may meet the time-wait socket of
// an earlier connection, the last ACK of a handshake finds a request: these pass
// unsettled, and are decided at the first packet that finds the socket, or at the
// first answer (output_unasked).
func (l *layout) listenerNobody() nft.Chain {
	return nft.Chain{Name: "listener_nobody", Rules: []nft.Rule{
		because("no workload sent it", anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked), goTo("unlabelled_in")),
		rule(masked(nft.CtMark, markClass, 0), goTo("unlabelled_in")),
		rule(isNot(nft.MetaIif, nft.IfindexLo), goTo("unlabelled_in")),
		rule(scratch(nft.MetaMark, 0)),
		rule(is(nft.MetaL4Proto, nft.ProtoUDP), goTo("ask_nobody")),
		rule(fullSocket(nft.SocketMark), goTo("ask_nobody")),
	}}
}

func (l *layout) unlabelledIn() nft.Chain {
	return nft.Chain{Name: "unlabelled_in", Rules: []nft.Rule{
		because("it was denied by who had the port before", masked(nft.CtMark, markDead, markDead), setMark(markClass|markSeen, 0)),
		because("a time-wait socket is not who will get it", is(nft.MetaL4Proto, nft.ProtoTCP), fullSocket(nft.SocketMark), setMark(markClass|markSeen, l.epoch)),
		rule(nft.Count{Counter: "unlabelled"}, accept),
	}}
}

// decide finds out who sent it. The class of a sender on this node was written into
// the conntrack mark at OUTPUT, or the bit that an unlabelled socket sent it; what
// has neither was injected on lo by a raw socket.
func (l *layout) decide() nft.Chain {
	return nft.Chain{Name: "decide", Rules: []nft.Rule{
		rule(is(nft.MetaIif, nft.IfindexLo), isNot(nft.CtMark, 0), goTo("ask")),
		rule(anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked), goTo("discard")),
		because("injected: no socket sent it", is(nft.MetaIif, nft.IfindexLo), nft.Count{Counter: "injected"}, drop),
		rule(goTo("stranger")),
	}}
}

// stranger gives who comes from elsewhere than lo a class: containers with a network
// of their own by their address on their bridge, all else by its address.
func (l *layout) stranger() nft.Chain {
	c := nft.Chain{Name: "stranger", Comment: "the class of who comes from elsewhere than lo", Rules: []nft.Rule{
		because("this node's own address, from outside", append(slices.Clone(ownSource), goTo("discard"))...),
	}}
	if l.fleet != nil {
		proven := masked(nft.CtMark, remoteMask|markOut, remoteClass)
		c.Rules = append(c.Rules,
			because("it proved its labels", proven, believed, goTo("ask")),
			because("its certificate was revoked", proven, goTo("refuse")))
	}
	c.Rules = append(c.Rules, l.outside(iifName, ipSaddr, ip6Saddr)...)
	return c
}

// outside asks with the class of an address that is not on this node.
func (l *layout) outside(bridge, addr4, addr6 nft.Expr) []nft.Rule {
	var rules []nft.Rule
	if l.bridges {
		rules = append(rules,
			rule(v4, nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{bridge, addr4}, Map: "container4"}, goTo("ask")),
			rule(v6, nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{bridge, addr6}, Map: "container6"}, goTo("ask")),
			because("a container whose labels are not known yet, or a forged address", nft.InSet{Key: []nft.Expr{bridge}, Set: "bridges"}, goTo("discard")))
	}
	return append(rules,
		rule(setMark(0, elsewhere)),
		rule(v4, nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{addr4}, Map: "address4"}),
		rule(v6, nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{addr6}, Map: "address6"}),
		rule(goTo("ask")))
}

// ask asks both sides: at once where both allow the pair everything, else one by one.
func (l *layout) ask() nft.Chain {
	return nft.Chain{Name: "ask", Comment: "ct mark: class of the sender; mark: of the listener; priority: of the port", Rules: []nft.Rule{
		itsClass,
		rule(nft.ByMap{Key: []nft.Expr{ctClass, metaMark}, Map: "pair"}),
		rule(jump("ingress")),
		rule(jump("egress")),
		rule(goTo("settle")),
	}}
}

// askNobody asks the sender's side alone.
func (l *layout) askNobody() nft.Chain {
	return nft.Chain{Name: "ask_nobody", Rules: []nft.Rule{
		itsClass,
		rule(jump("egress")),
		because("not settled: see output_unasked", is(nft.MetaL4Proto, nft.ProtoUDP), nft.Count{Counter: "allowed"}, accept),
		rule(goTo("settle")),
	}}
}

// side returns the chains that ask one side of a connection. What it says of a peer,
// or of all others, may depend on the port; only then the port's class is looked up.
// To fall through is to allow, but where ports are listed: there it is to deny.
func (l *layout) side(name string, self nft.Expr) []nft.Chain {
	peer, class := name+"_peer", name+"_class"
	both := []nft.Expr{ctClass, metaMark}
	withPort := func(key ...nft.Expr) []nft.Expr { return append(key, metaPriority) }
	return []nft.Chain{
		{Name: name, Comment: "what the " + name + " side says; to fall through is to allow", Rules: []nft.Rule{
			rule(nft.ByMap{Key: both, Map: peer}),
			rule(nft.ByMap{Key: []nft.Expr{self}, Map: class}),
		}},
		{Name: peer + "_ports", Rules: []nft.Rule{
			rule(jump("port")),
			rule(nft.ByMap{Key: withPort(both...), Map: peer + "_port"}),
			rule(nft.ByMap{Key: both, Map: peer + "_rest"}),
			rule(goTo("refuse")),
		}},
		{Name: class + "_ports", Rules: []nft.Rule{
			rule(jump("port")),
			rule(nft.ByMap{Key: withPort(self), Map: class + "_port"}),
			rule(nft.ByMap{Key: []nft.Expr{self}, Map: class + "_rest"}),
			rule(goTo("refuse")),
		}},
	}
}

// port puts the class of the port, or of the ICMP type, into the packet's priority.
func (l *layout) port() nft.Chain {
	return nft.Chain{Name: "port", Rules: []nft.Rule{
		rule(scratch(nft.MetaPriority, 0)),
		rule(is(nft.CtDirection, nft.DirReply), goTo("answer_port")),
		rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{l4proto, dport}, Map: "ports"}),
		rule(v4, is(nft.MetaL4Proto, nft.ProtoICMP), nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{icmp}, Map: "icmp4"}),
		rule(v6, is(nft.MetaL4Proto, nft.ProtoICMPv6), nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{icmp6}, Map: "icmp6"}),
	}}
}

// answerPort is port for an answer: it comes from the port that was asked.
func answerPort() nft.Chain {
	return nft.Chain{Name: "answer_port", Rules: []nft.Rule{
		rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{l4proto, sport}, Map: "ports"}),
	}}
}

// settle writes the epoch: until it changes, no packet of this connection is asked
// about again. What conntrack does not know can not be settled, and goes nowhere.
func (l *layout) settle(name string, bits uint32) nft.Chain {
	c := nft.Chain{Name: name}
	switch {
	case l.fleet == nil:
	case bits&markOut == 0:
		c.Rules = []nft.Rule{because("its proof is still to come", masked(nft.CtMark, markPending|markOut, markPending), nft.Count{Counter: "allowed"}, accept)}
	default:
		opens := []nft.Statement{is(nft.MetaL4Proto, nft.ProtoTCP), masked(nft.TCPFlags, tcpOpening, nft.TCPSyn)}
		c.Rules = []nft.Rule{
			rule(append(slices.Clone(opens), v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"}, goTo("introduce"))...),
			rule(append(slices.Clone(opens), v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"}, goTo("introduce"))...),
		}
	}
	c.Rules = append(c.Rules,
		rule(setMark(markClass|markSeen, bits), nft.Count{Counter: "allowed"}, accept),
		rule(goTo("discard")))
	return c
}

// refuse denies at INPUT: sources on this node are answered, others are not. What
// conntrack does not know is never answered: it may be a stray of a live connection.
func (l *layout) refuse() nft.Chain {
	c := nft.Chain{Name: "refuse", Rules: []nft.Rule{
		rule(anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked), goTo("discard")),
	}}
	if l.deny == DenyReject {
		c.Rules = append(c.Rules, rule(goTo("refuse_out")))
		return c
	}
	c.Rules = append(c.Rules, rule(is(nft.MetaIif, nft.IfindexLo), goTo("refuse_out")))
	if l.bridges {
		c.Rules = append(c.Rules, rule(nft.InSet{Key: []nft.Expr{iifName}, Set: "bridges"}, goTo("refuse_out")))
	}
	if l.bridges || l.fleet != nil {
		c.Rules = append(c.Rules, because("sent by this node, to a container or to another node", is(nft.MetaIif, 0), goTo("refuse_out")))
	}
	c.Rules = append(c.Rules, rule(setMark(allOnes, markDead), nft.Count{Counter: "denied"}, drop))
	return c
}

// refuseOut denies, with an answer at once.
func (l *layout) refuseOut() nft.Chain {
	c := nft.Chain{Name: "refuse_out", Rules: []nft.Rule{
		rule(setMark(allOnes, markDead), nft.Count{Counter: "denied"}),
	}}
	if l.deny == DenyDrop {
		c.Rules = append(c.Rules, rule(drop))
		return c
	}
	c.Rules = append(c.Rules,
		rule(is(nft.MetaL4Proto, nft.ProtoTCP), nft.Reject{With: nft.TCPReset}),
		rule(nft.Reject{With: nft.AdminProhibited}))
	return c
}

func (l *layout) discard() nft.Chain {
	return nft.Chain{Name: "discard", Rules: []nft.Rule{rule(nft.Count{Counter: "discarded"}, drop)}}
}

// chain records a new connection and allows it. At INPUT the sender's side is asked
// first, since only what would be allowed is recorded.
func (a auditChain) chain(fleet bool) nft.Chain {
	c := nft.Chain{Name: a.name, Comment: "audit policy " + a.policy + " would deny"}
	if a.stage == atIngress {
		c.Rules = append(c.Rules, rule(jump("egress")))
	}
	settled := goTo("settle")
	if a.stage == atLeave {
		settled = goTo("settle_out")
	}
	if fleet && a.stage == atEgress {
		asked := masked(nft.CtMark, markPending|markOut, markPending|markOut)
		c.Rules = append(c.Rules,
			because("fleet_ask asks: it settles", asked, nft.Count{Counter: AuditCounter(a.policy)}),
			rule(asked, nft.Log{Prefix: "thole: would deny, policy " + a.policy + ": ", PerSecond: 10}),
			rule(asked, verdictReturn))
	}
	fresh := anyOf(nft.CtState, nft.StateNew)
	c.Rules = append(c.Rules,
		rule(fresh, nft.Count{Counter: AuditCounter(a.policy)}),
		rule(fresh, nft.Log{Prefix: "thole: would deny, policy " + a.policy + ": ", PerSecond: 10}),
		rule(settled))
	return c
}

// AuditCounter names the counter of connections that an audit policy would have denied.
func AuditCounter(policy string) string { return "would_deny_" + policy }

// counters are those that every table has.
var counters = []string{"allowed", "denied", "discarded", "injected", "unlabelled"}

// tcpOpening are the flags that tell a SYN from all else.
const tcpOpening = nft.TCPFin | nft.TCPSyn | nft.TCPRst | nft.TCPAck

// The expressions, matches and verdicts of the chains above.
var (
	ctClass      = nft.Expr{Field: nft.CtMark, Mask: markClass}
	metaMark     = nft.Expr{Field: nft.MetaMark}
	metaPriority = nft.Expr{Field: nft.MetaPriority}
	l4proto      = nft.Expr{Field: nft.MetaL4Proto}
	sport        = nft.Expr{Field: nft.THSport}
	dport        = nft.Expr{Field: nft.THDport}
	ipSaddr      = nft.Expr{Field: nft.IPSaddr}
	ipDaddr      = nft.Expr{Field: nft.IPDaddr}
	ip6Saddr     = nft.Expr{Field: nft.IP6Saddr}
	iifName      = nft.Expr{Field: nft.MetaIifName}
	oifName      = nft.Expr{Field: nft.MetaOifName}
	ip6Daddr     = nft.Expr{Field: nft.IP6Daddr}
	icmp         = nft.Expr{Field: nft.ICMPTypeOf}
	icmp6        = nft.Expr{Field: nft.ICMPv6TypeOf}

	v4 = is(nft.MetaNFProto, nft.NFProtoIPv4)
	v6 = is(nft.MetaNFProto, nft.NFProtoIPv6)

	// ownSource holds where the source is an address of this node. IPv4 has its check for martians; IPv6 has none.
	ownSource = []nft.Statement{v6, is(nft.FibSaddrType, nft.RTNLocal)}

	linkLocal = netip.MustParsePrefix("fe80::/10")

	// RFC 4861, 4: solicitations, advertisements, redirects.
	neighbourDiscovery = because("neighbour discovery", is(nft.MetaL4Proto, nft.ProtoICMPv6), between(nft.ICMPv6TypeOf, 133, 137), accept)

	accept        = nft.Verdict{Kind: nft.Accept}
	drop          = nft.Verdict{Kind: nft.Drop}
	verdictReturn = nft.Verdict{Kind: nft.Return}
)

func cgroup(depth uint8) nft.Expr   { return nft.Expr{Field: nft.SocketCgroup, Level: depth} }
func classMap(depth uint8) string   { return fmt.Sprintf("class%d", depth) }
func sameSet(depth uint8) string    { return fmt.Sprintf("same%d", depth) }
func memberMap(depth uint8) string  { return fmt.Sprintf("member%d", depth) }
func itselfSet(depth uint8) string  { return fmt.Sprintf("itself%d", depth) }
func freeSet(depth uint8) string    { return fmt.Sprintf("free%d", depth) }
func unknownSet(depth uint8) string { return fmt.Sprintf("unknown%d", depth) }

// reachesItself holds where the mark has the socket's own workload, of a class whose
// members may not reach each other.
func reachesItself(depth uint8) nft.InSet {
	return nft.InSet{Key: []nft.Expr{cgroup(depth), ctClass}, Set: itselfSet(depth)}
}

// itsClass has the mark say the class where it has the number of one of its members: it
// does not reach itself, and policies know no more than the class.
var itsClass = rule(nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{ctClass}, Map: "group"})

func rule(s ...nft.Statement) nft.Rule { return nft.Rule{Statements: s} }

func because(comment string, s ...nft.Statement) nft.Rule {
	return nft.Rule{Statements: s, Comment: comment}
}

func is(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Equal, Value: value}
}

func isNot(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.NotEqual, Value: value}
}

func anyOf(f nft.Field, bits uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Any, Value: bits}
}

func masked(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Masked, Mask: mask, Value: value}
}

func maskedNot(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.MaskedNot, Mask: mask, Value: value}
}

// fullSocket holds where there is a socket, and not just a request for one.
func fullSocket(f nft.Field) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.AtLeast}
}

func within(f nft.Field, p netip.Prefix) nft.Match {
	r := nft.AddressRange(p.Addr(), lastAddr(p))
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

func between(f nft.Field, from, to uint64) nft.Match {
	r := nft.Span(from, to)
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

func setMark(and, or uint32) nft.SetBits { return nft.SetBits{Target: nft.CtMark, And: and, Or: or} }

func scratch(f nft.Field, value uint32) nft.SetBits { return nft.SetBits{Target: f, Or: value} }

func jump(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Jump, Chain: chain} }
func goTo(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Goto, Chain: chain} }
