package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// outsideChains judge what goes to addresses outside this node. They leave the packet's mark
// alone: other programs route by it. A packet that is judged loses its priority.
func (b *builder) outsideChains() []nft.Chain {
	judged := []nft.Rule{
		because("a SYN may have the mark of an older connection of its ports", isTCP, notSYN, b.decided(),
			maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("leaves_same_tcp")),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), b.decided(), maskedNot(nft.CtMark, mark.ClassMask, 0),
			goTo("leaves_same")),
		rule(goTo("leaves")),
	}
	who := b.lookupCgroup(b.numberToPriority(goTo("leave")), "leaves_nobody")
	return append([]nft.Chain{
		{Name: "output_leaves", Comment: "it leaves this node", Rules: append(wrappings(), judged...)},
		{Name: "output_group", Comment: "to a group, on this node", Rules: judged},
		{Name: "leaves_same_tcp", Comment: "by who opened the connection?",
			Rules: b.lookupCgroup(b.sameOrNumber, "leaves_other_nobody")},
		{Name: "leaves_other_nobody", Rules: []nft.Rule{
			because("something unlabelled, on a workload's connection", fullSocket(nft.SkUID), goTo("discard")),
			because("the kernel, for the connection", accept),
		}},
		{Name: "leaves_same", Comment: "by who sent the first one?",
			Rules: b.lookupCgroup(b.sameOrNumber, "leaves_nobody")},
		{Name: "leaves", Comment: "who sends it?", Rules: who},
		{Name: "leaves_nobody", Rules: []nft.Rule{
			begins,
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		{Name: "settle_out", Comment: "it may leave",
			Rules: append(b.introduces(),
				b.lookupCgroup(b.numberToMark(nft.CtMark, goTo("settled_out")), "discard")...)},
		{Name: "settled_out", Rules: []nft.Rule{
			ctsClass,
			rule(setMark(mark.ClassMask, b.epochBits|mark.OutBit)),
			rule(scratch(nft.MetaPriority, 0), nft.Count{Counter: "allowed"}, goTo("left")),
		}},
	}, b.leave()...)
}

// sameOrNumber lets pass what the workload that conntrack's mark has sends to the outside, and judges what another one
// sends.
func (b *builder) sameOrNumber(depth uint8) []nft.Rule {
	return append([]nft.Rule{b.sameWorkloadAt(depth, goTo("left"))}, b.numberToPriority(goTo("leave"))(depth)...)
}

// leave decides by address, protocol and port, where rules name them, and else by class.
func (b *builder) leave() []nft.Chain {
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
				b.containers(oifName, ipDaddr, ip6Daddr, goTo("to_container")),
				[]nft.Rule{because("NAT changed whom its sender called, and that is not this node", isCalled,
					leavesNode, jump("leave_called"))},
				b.opening(),
				[]nft.Rule{rule(jump("leave_says")), rule(goTo("settle_out"))})},
		{Name: "leave_says", Comment: "what the sender's side says; to return is to allow", Rules: append(
			saidOf("leave", listener, ipDaddr, ip6Daddr, dport),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		b.leaveCalled(),
		{Name: "leave_says_called", Comment: "the same, of the address that was called", Rules: append(
			saidOf("leave", listener, called4, called6, calledPort),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		{Name: "leave_denies", Comment: "of the address that is reached, for what is denied",
			Rules: saidOf("leave", listener, ipDaddr, ip6Daddr, dport)},
		b.leaveAgain(), b.leaveAgainCalled(),
		{Name: "leave_says_again", Rules: append(
			saidOf("leave", listener, ipSaddr, ip6Saddr, sport),
			rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "leave_class"}))},
		{Name: "leave_denies_again", Comment: "leave_denies, for its answer",
			Rules: saidOf("leave", listener, reached4, reached6, reachedPort)},
	}
	if b.Fleet {
		list = append(list, nft.Chain{Name: "leave_denies_called", Comment: "of the address that was called",
			Rules: saidOf("leave", listener, called4, called6, calledPort)})
	}
	return list
}

// leaveCalled judges by the address that was called. What is reached may be denied, too.
func (b *builder) leaveCalled() nft.Chain {
	c := nft.Chain{Name: "leave_called", Comment: "NAT changed the destination"}
	if b.Bridges {
		c.Rules = append(c.Rules,
			because("a container of this node: labels alone count",
				nft.InSet{Key: []nft.Expr{called4}, Set: "container_net4"}, verdictReturn),
			rule(nft.InSet{Key: []nft.Expr{called6}, Set: "container_net6"}, verdictReturn))
	}
	if opening := b.opening(); opening != nil {
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
func (b *builder) opening() []nft.Rule {
	if !b.Fleet {
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

// introduces leads SYNs to other nodes that go by address to where their labels are said.
func (b *builder) introduces() []nft.Rule {
	if !b.Fleet {
		return nil
	}
	return []nft.Rule{
		rule(isTCP, isSYN, v4, nft.InSet{Key: []nft.Expr{ipDaddr}, Set: "fleet4"}, goTo("introduce")),
		rule(isTCP, isSYN, v6, nft.InSet{Key: []nft.Expr{ip6Daddr}, Set: "fleet6"}, goTo("introduce")),
	}
}

// leaveAgain is leave, asked by an answer from elsewhere.
func (b *builder) leaveAgain() nft.Chain {
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
func (b *builder) leaveAgainCalled() nft.Chain {
	c := nft.Chain{Name: "leave_again_called", Comment: "NAT changed the destination of what it answers"}
	if b.Bridges {
		c.Rules = append(c.Rules,
			rule(nft.InSet{Key: []nft.Expr{called4}, Set: "container_net4"}, verdictReturn),
			rule(nft.InSet{Key: []nft.Expr{called6}, Set: "container_net6"}, verdictReturn))
	}
	c.Rules = append(c.Rules, ifCalledHere()...)
	c.Rules = append(c.Rules, rule(jump("leave_denies_again")), rule(jump("leave_says_called")),
		rule(goTo("settle_out")))
	return c
}
