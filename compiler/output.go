package compiler

import (
	"slices"

	nft "thole/ruleset"
)

// outputChains see what this node sends, and is no answer. What stays on the node is judged
// at INPUT, which knows the listener: here it gets the number of the socket that sends it.
// What leaves is judged here.
func (l *layout) outputChains() []nft.Chain {
	return []nft.Chain{
		{Name: "prerouting", Hook: nft.Prerouting, Priority: rawPriority - 10, Comment: "what comes over lo and has no connection was sent by no socket", Rules: []nft.Rule{
			rule(onLo, anyOf(nft.CtState, nft.StateInvalid), scratch(nft.MetaMark, injectedMark)),
		}},
		l.output(),
		{Name: "output_here", Comment: "it stays on this node", Rules: []nft.Rule{
			because("it is decided: has the same workload sent it?", isTCP, notSYN, l.decided(), maskedNot(nft.CtMark, markClass, 0), goTo("output_same")),
			rule(isTCP, goTo("output_by")),
			because("all who listen there get it: its sender alone decides", v4, within(nft.IPDaddr, groups[0]), goTo("output_leaves")),
			rule(v6, within(nft.IP6Daddr, groups[1]), goTo("output_leaves")),
			rule(goTo("output_by")),
		}},
		{Name: "output_by", Comment: "who sends it?", Rules: l.whose(l.itsMark(nft.MetaMark, accept), "output_by_nobody")},
		{Name: "output_by_nobody", Rules: []nft.Rule{
			because("nobody but us says who sends", sentBy, scratch(nft.MetaMark, 0)),
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		{Name: "output_same", Comment: "by who opened the connection?", Rules: l.whose(l.whoseMark(accept), "output_other")},
		{Name: "output_other", Comment: "by another: a raw socket, or one whose labels changed", Rules: l.whose(l.itsMark(nft.MetaMark, accept), "output_other_nobody")},
		{Name: "output_other_nobody", Rules: []nft.Rule{
			because("something unlabelled: INPUT judges it", fullSocket(nft.SkUID), scratch(nft.MetaMark, senderMark), accept),
			because("the kernel, for the connection", accept),
		}},
	}
}

func (l *layout) output() nft.Chain {
	c := nft.Chain{Name: "output", Hook: nft.Output, Priority: priority}
	if l.fleet != nil {
		c.Rules = append(c.Rules, rule(is(nft.MetaMark, Sent), goTo("fleet_sent")), rule(is(nft.MetaMark, SentOut), goTo("fleet_sent")))
	}
	c.Rules = append(c.Rules, rule(isAnswer, goTo("output_reply")))
	if l.fleet != nil {
		c.Rules = append(c.Rules, rule(masked(nft.CtMark, remoteMask|markOut, remoteClass|markOut), goTo("output_fleet")))
	}
	c.Rules = append(c.Rules,
		rule(toLo, masked(nft.CtStatus, nft.StatusDNAT, 0), goTo("output_here")),
		because("oif is the one before NAT", anyOf(nft.CtStatus, nft.StatusDNAT), is(nft.FibDaddrType, nft.RTNLocal), goTo("output_here")),
		rule(goTo("output_leaves")))
	return c
}

// leaveChains judge what goes to addresses outside this node. They leave the packet's mark
// alone: other programs route by it. A packet that is judged loses its priority.
func (l *layout) leaveChains() []nft.Chain {
	leaves := []nft.Rule{
		because("a SYN may have the mark of an older connection of its ports", isTCP, notSYN, l.decided(), maskedNot(nft.CtMark, markClass, 0), goTo("leaves_same_tcp")),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), l.decided(), maskedNot(nft.CtMark, markClass, 0), goTo("leaves_same")),
		rule(goTo("leaves")),
	}
	who := l.whose(l.itsNumber(goTo("leave")), "leaves_nobody")
	return []nft.Chain{
		{Name: "output_leaves", Comment: "it leaves this node", Rules: leaves},
		{Name: "leaves_same_tcp", Comment: "by who opened the connection?", Rules: l.whose(l.whoseMark(accept), "leaves_other")},
		{Name: "leaves_other", Rules: l.whose(l.itsNumber(goTo("leave")), "leaves_other_nobody")},
		{Name: "leaves_other_nobody", Rules: []nft.Rule{
			because("something unlabelled, on a workload's connection", fullSocket(nft.SkUID), goTo("discard")),
			because("the kernel, for the connection", accept),
		}},
		{Name: "leaves_same", Comment: "by who sent the first one?", Rules: l.whose(l.whoseMark(accept), "leaves")},
		{Name: "leaves", Comment: "who sends it?", Rules: who},
		{Name: "leaves_nobody", Rules: []nft.Rule{rule(nft.Count{Counter: "unlabelled"}, accept)}},
		l.leave(),
		{Name: "settle_out", Comment: "it may leave", Rules: append(l.introduces(), l.whose(l.itsMark(nft.CtMark, goTo("settled_out")), "discard")...)},
		{Name: "settled_out", Rules: []nft.Rule{
			ctsClass,
			rule(setMark(markClass, l.epoch|markOut)),
			rule(scratch(nft.MetaPriority, 0), nft.Count{Counter: "allowed"}, accept),
		}},
		l.leaveAgain(),
	}
}

// leave decides first by what differs by address, protocol and port, then by class.
func (l *layout) leave() nft.Chain {
	key := func(e ...nft.Expr) []nft.Expr { return append([]nft.Expr{listener}, e...) }
	c := nft.Chain{Name: "leave", Comment: "to addresses outside this node; priority: class of the sender", Rules: []nft.Rule{
		because("conntrack does not know it: it leaves no workload", unknownCt, goTo("discard")),
		listenersClass,
		neighbourDiscovery,
		because("an error about a connection", anyOf(nft.CtState, nft.StateRelated), is(nft.MetaL4Proto, nft.ProtoICMP), accept),
		rule(anyOf(nft.CtState, nft.StateRelated), is(nft.MetaL4Proto, nft.ProtoICMPv6), accept),
	}}
	c.Rules = append(c.Rules, l.containers(oifName, ipDaddr, ip6Daddr, goTo("to_container"))...)
	if l.fleet != nil {
		opening := []nft.Statement{isTCP, isSYN, nft.InSet{Key: key(), Set: "introduced"}}
		c.Rules = append(c.Rules,
			rule(slices.Concat(opening, []nft.Statement{v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"}, goTo("introduce")})...),
			rule(slices.Concat(opening, []nft.Statement{v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"}, goTo("introduce")})...))
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

// leaveAgain is leave, asked by an answer from elsewhere.
func (l *layout) leaveAgain() nft.Chain {
	return nft.Chain{Name: "leave_again", Comment: "may what it answers leave still? priority: who asked", Rules: []nft.Rule{
		listenersClass,
		rule(v4, nft.ByMap{Key: []nft.Expr{listener, ipSaddr, l4proto, sport}, Map: "leave4"}),
		rule(v6, nft.ByMap{Key: []nft.Expr{listener, ip6Saddr, l4proto, sport}, Map: "leave6"}),
		rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}),
		rule(goTo("settle_out")),
	}}
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
		because("a container whose labels are not known yet", v4, nft.InSet{Key: []nft.Expr{addr4}, Set: "container_net4"}, goTo("discard")),
		rule(v6, nft.InSet{Key: []nft.Expr{addr6}, Set: "container_net6"}, goTo("discard")),
		do(v6, within(addr6.Field, linkLocal), nft.InSet{Key: []nft.Expr{bridge}, Set: "bridges"}, scratch(nft.MetaPriority, 0)),
	}
}

func (l *layout) toContainer() nft.Chain {
	return nft.Chain{Name: "to_container", Comment: "priority: the container; who sends it?", Rules: l.whose(l.itsMark(nft.MetaMark, goTo("ask")), "discard")}
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
