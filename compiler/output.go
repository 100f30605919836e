package compiler

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// outputChains see what this node sends, and is no answer. What stays on the node is judged
// at INPUT, which knows the listener: here it gets the number of the socket that sends it.
// What leaves is judged here.
func (l *layout) outputChains() []nft.Chain {
	return []nft.Chain{
		{Name: "prerouting", Hook: nft.Prerouting, Priority: rawPriority - 10,
			Comment: "what comes over lo and has no connection was sent by no socket", Rules: []nft.Rule{
				rule(anyOf(nft.CtState, nft.StateInvalid), onLo, scratch(nft.MetaMark, mark.Injected)),
			}},
		l.output(),
		{Name: "output_here", Comment: "it stays on this node", Rules: []nft.Rule{
			because("most datagrams: no group", isUDP, within(nft.IPDaddr, loopback4), goTo("output_by")),
			because("it is decided: has the same workload sent it?", l.decided(), isTCP, notSYN,
				maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("output_same")),
			because("it was answered, and more is to be said: has who asked sent it?", l.answered(), isTCP, notSYN,
				maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("output_asker")),
			rule(isTCP, goTo("output_by")),
			because("no group", v4, within(nft.IPDaddr, loopback4), goTo("output_by")),
			because("all who listen there get it: its sender alone decides", v4, within(nft.IPDaddr, groups[0]),
				goTo("output_group")),
			rule(v6, within(nft.IP6Daddr, groups[1]), goTo("output_group")),
			rule(goTo("output_by")),
		}},
		{Name: "output_by", Comment: "who sends it?", Rules: l.whose(l.itsMark(nft.MetaMark, accept),
			"output_by_nobody")},
		{Name: "output_by_nobody", Rules: []nft.Rule{
			because("nobody but us says who sends", sentBy, scratch(nft.MetaMark, 0)),
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		{Name: "output_same", Comment: "by who opened the connection?", Rules: l.sameAs(accept, "output_other")},
		{Name: "output_asker", Rules: l.sameAs(goTo("output_asked"), "output_by")},
		{Name: "output_asked", Rules: []nft.Rule{
			rule(nft.Copy{Target: nft.MetaMark, Source: nft.CtMark, And: mark.ClassMask, Or: mark.Asker}, accept),
		}},
		{Name: "output_other", Comment: "by another: a raw socket, or one whose labels changed",
			Rules: l.whose(l.itsMark(nft.MetaMark, accept), "output_other_nobody")},
		{Name: "output_other_nobody", Rules: []nft.Rule{
			because("something unlabelled: INPUT judges it", fullSocket(nft.SkUID), scratch(nft.MetaMark, mark.Sender),
				accept),
			because("the kernel, for the connection", accept),
		}},
	}
}

func (l *layout) output() nft.Chain {
	c := nft.Chain{Name: "output", Hook: nft.Output, Priority: priority}
	if l.fleet != nil {
		c.Rules = append(c.Rules, rule(is(nft.MetaMark, mark.Sent), goTo("fleet_sent")),
			rule(is(nft.MetaMark, mark.SentOut), goTo("fleet_sent")))
	}
	c.Rules = append(c.Rules, rule(isAnswer, goTo("output_reply")))
	if l.fleet != nil {
		c.Rules = append(c.Rules, rule(masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass|mark.OutBit),
			goTo("output_fleet")))
	}
	c.Rules = append(c.Rules,
		rule(toLo, masked(nft.CtStatus, nft.StatusDNAT, 0), goTo("output_here")),
		because("oif is the one before NAT", isCalled, is(nft.FibDaddrType, nft.RTNLocal), goTo("output_here")),
		rule(goTo("output_leaves")))
	return c
}

// leaveChains judge what goes to addresses outside this node. They leave the packet's mark
// alone: other programs route by it. A packet that is judged loses its priority.
func (l *layout) leaveChains() []nft.Chain {
	judged := []nft.Rule{
		because("a SYN may have the mark of an older connection of its ports", isTCP, notSYN, l.decided(),
			maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("leaves_same_tcp")),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), l.decided(), maskedNot(nft.CtMark, mark.ClassMask, 0),
			goTo("leaves_same")),
		rule(goTo("leaves")),
	}
	who := l.whose(l.itsNumber(goTo("leave")), "leaves_nobody")
	return slices.Concat([]nft.Chain{
		{Name: "output_leaves", Comment: "it leaves this node", Rules: append(wrappings(), judged...)},
		{Name: "output_group", Comment: "to a group, on this node", Rules: judged},
		{Name: "leaves_same_tcp", Comment: "by who opened the connection?",
			Rules: l.whose(l.sameOrNumber, "leaves_other_nobody")},
		{Name: "leaves_other_nobody", Rules: []nft.Rule{
			because("something unlabelled, on a workload's connection", fullSocket(nft.SkUID), goTo("discard")),
			because("the kernel, for the connection", accept),
		}},
		{Name: "leaves_same", Comment: "by who sent the first one?", Rules: l.whose(l.sameOrNumber, "leaves_nobody")},
		{Name: "leaves", Comment: "who sends it?", Rules: who},
		{Name: "leaves_nobody", Rules: []nft.Rule{
			begins,
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		{Name: "settle_out", Comment: "it may leave",
			Rules: append(l.introduces(), l.whose(l.itsMark(nft.CtMark, goTo("settled_out")), "discard")...)},
		{Name: "settled_out", Rules: []nft.Rule{
			ctsClass,
			rule(setMark(mark.ClassMask, l.epoch|mark.OutBit)),
			rule(scratch(nft.MetaPriority, 0), nft.Count{Counter: "allowed"}, goTo("left")),
		}},
	}, tunnelChains(), l.leave())
}

// sameOrNumber lets pass what the workload that conntrack's mark has sends to the outside, and judges what another one
// sends.
func (l *layout) sameOrNumber(depth uint8) []nft.Rule {
	return append([]nft.Rule{l.sameAt(depth, goTo("left"))}, l.itsNumber(goTo("leave"))(depth)...)
}

// leave decides by address, protocol and port, where rules name them, and else by class.
func (l *layout) leave() []nft.Chain {
	list := []nft.Chain{
		{Name: "leave", Comment: "to addresses outside this node; priority: number of the sender",
			Rules: slices.Concat([]nft.Rule{
				because("conntrack does not know it: it leaves no workload", unknownCt, goTo("discard")),
				listenersClass,
				neighbourDiscovery,
				because("an error about a connection", anyOf(nft.CtState, nft.StateRelated),
					is(nft.MetaL4Proto, nft.ProtoICMP), accept),
				rule(anyOf(nft.CtState, nft.StateRelated), is(nft.MetaL4Proto, nft.ProtoICMPv6), accept),
			},
				l.containers(oifName, ipDaddr, ip6Daddr, goTo("to_container")),
				[]nft.Rule{because("NAT changed whom its sender called, and that is not this node", isCalled,
					leavesNode, jump("leave_called"))},
				l.opening(),
				[]nft.Rule{rule(jump("leave_says")), rule(goTo("settle_out"))})},
		{Name: "leave_says", Comment: "what the sender's side says; to return is to allow", Rules: append(
			saidOf("leave", listener, ipDaddr, ip6Daddr, dport),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		l.leaveCalled(),
		{Name: "leave_says_called", Comment: "the same, of the address that was called", Rules: append(
			saidOf("leave", listener, called4, called6, calledPort),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		{Name: "leave_denies", Comment: "of the address that is reached, for what is denied",
			Rules: saidOf("leave", listener, ipDaddr, ip6Daddr, dport)},
		l.leaveAgain(), l.leaveAgainCalled(),
		{Name: "leave_says_again", Rules: append(
			saidOf("leave", listener, ipSaddr, ip6Saddr, sport),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		{Name: "leave_denies_again", Comment: "leave_denies, for its answer",
			Rules: saidOf("leave", listener, reached4, reached6, reachedPort)},
	}
	if l.fleet != nil {
		list = append(list, nft.Chain{Name: "leave_denies_called", Comment: "of the address that was called",
			Rules: saidOf("leave", listener, called4, called6, calledPort)})
	}
	return list
}

// leaveCalled judges by the address that was called. What is reached may be denied, too.
func (l *layout) leaveCalled() nft.Chain {
	c := nft.Chain{Name: "leave_called", Comment: "NAT changed the destination"}
	if l.bridges {
		c.Rules = append(c.Rules,
			because("a container of this node: labels alone count",
				nft.InSet{Key: []nft.Expr{called4}, Set: "container_net4"}, verdictReturn),
			rule(nft.InSet{Key: []nft.Expr{called6}, Set: "container_net6"}, verdictReturn))
	}
	if opening := l.opening(); opening != nil {
		c.Rules = append(c.Rules, because("before labels allow it", isTCP, isSYN, jump("leave_denies_called")))
		c.Rules = append(c.Rules, opening...)
	}
	c.Rules = append(c.Rules,
		rule(jump("leave_says_called")),
		rule(jump("leave_denies")),
		rule(goTo("settle_out")))
	return c
}

// opening leads a SYN to a node of the fleet to where its sender's labels are said, if these may
// allow it something.
func (l *layout) opening() []nft.Rule {
	if l.fleet == nil {
		return nil
	}
	opens := []nft.Statement{isTCP, isSYN, nft.InSet{Key: []nft.Expr{listener}, Set: "introduced"}}
	return []nft.Rule{
		rule(slices.Concat(opens, []nft.Statement{v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"},
			goTo("introduce")})...),
		rule(slices.Concat(opens, []nft.Statement{v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"},
			goTo("introduce")})...),
	}
}

// leaveAgain is leave, asked by an answer from elsewhere.
func (l *layout) leaveAgain() nft.Chain {
	return nft.Chain{Name: "leave_again", Comment: "may what it answers leave still? priority: who asked",
		Rules: []nft.Rule{
			listenersClass,
			rule(isCalled, jump("leave_again_called")),
			rule(jump("leave_says_again")),
			rule(goTo("settle_out")),
		}}
}

// leaveAgainCalled is leaveCalled, asked by an answer. At INPUT it still has the address that was reached as its
// source: NAT puts the called one there behind this hook.
func (l *layout) leaveAgainCalled() nft.Chain {
	c := nft.Chain{Name: "leave_again_called", Comment: "NAT changed the destination of what it answers"}
	if l.bridges {
		c.Rules = append(c.Rules,
			rule(nft.InSet{Key: []nft.Expr{called4}, Set: "container_net4"}, verdictReturn),
			rule(nft.InSet{Key: []nft.Expr{called6}, Set: "container_net6"}, verdictReturn))
	}
	c.Rules = append(c.Rules, ifCalledHere()...)
	c.Rules = append(c.Rules, rule(jump("leave_denies_again")), rule(jump("leave_says_called")),
		rule(goTo("settle_out")))
	return c
}

// containers leads to where a container with a network of its own is asked: it is on this
// node. The packet's priority gets its class.
func (l *layout) containers(bridge, addr4, addr6 nft.Expr, then ...nft.Statement) []nft.Rule {
	if !l.bridges {
		return nil
	}
	do := func(s ...nft.Statement) nft.Rule { return rule(append(s, then...)...) }
	return []nft.Rule{
		do(v4, nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{addr4}, Map: "to_container4"}),
		do(v6, nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{addr6}, Map: "to_container6"}),
		because("a container whose labels are not known yet", v4,
			nft.InSet{Key: []nft.Expr{addr4}, Set: "container_net4"}, goTo("discard")),
		rule(v6, nft.InSet{Key: []nft.Expr{addr6}, Set: "container_net6"}, goTo("discard")),
		do(v6, within(addr6.Field, linkLocal), nft.InSet{Key: []nft.Expr{bridge}, Set: "bridges"},
			scratch(nft.MetaPriority, 0)),
	}
}

func (l *layout) toContainer() nft.Chain {
	return nft.Chain{Name: "to_container", Comment: "priority: the container; who sends it?",
		Rules: l.whose(l.itsMark(nft.MetaMark, goTo("ask")), "discard")}
}

// introduces leads SYNs to other nodes that go by address to where their labels are said.
func (l *layout) introduces() []nft.Rule {
	if l.fleet == nil {
		return nil
	}
	return []nft.Rule{
		rule(isTCP, isSYN, v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"}, goTo("introduce")),
		rule(isTCP, isSYN, v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"}, goTo("introduce")),
	}
}
