package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// natChains judge the address that a process of this node called, where NAT led the
// connection to a workload, a container or something unlabelled of this node. Rules that speak
// of addresses mean the one that was called; those that speak of labels, the one that gets it.
// A rule that denies either denies the connection; a rule that allows one allows it.
func (b *builder) natChains() []nft.Chain {
	asked := masked(nft.MetaMark, mark.CalledAllowed, mark.CalledAllowed)
	allowed := func(bits uint32) []nft.Rule {
		return []nft.Rule{rule(nft.SetBits{Target: nft.MetaMark, And: mark.AllBits, Or: bits})}
	}
	return []nft.Chain{
		b.called(),
		{Name: "called_here", Comment: "an address of this node: labels alone count", Rules: restore()},
		{Name: "called_allowed", Comment: "egress allows the address that was called",
			Rules: allowed(mark.CalledAllowed | mark.CalledAudited)},
		{Name: "called_allowed_but_audited", Comment: "and would not with the audit policies",
			Rules: allowed(mark.CalledAllowed)},
		{Name: "egress_unsaid", Comment: "no rule allows the sender this listener", Rules: []nft.Rule{
			because("the packet's mark is not ours", isAnswer, is(nft.MetaIif, 0), leavesNode, goTo("refuse")),
			because("but the address that it called", asked, verdictReturn),
			rule(goTo("refuse")),
		}},
	}
}

// called puts the address that was called into the packet for as long as it takes to ask whether
// it is this node's.
func (b *builder) called() nft.Chain {
	c := nft.Chain{Name: "called", Comment: "the address that was called, outside this node; that it reaches itself " +
		"does not count", Rules: append([]nft.Rule{
		because("a request the other way: its sender called nobody by it", isAnswer, onLo, verdictReturn),
	}, ifCalledHere()...)}
	if b.Bridges {
		c.Rules = append(c.Rules,
			rule(nft.InSet{Key: []nft.Expr{called4}, Set: "container_net4"}, verdictReturn),
			rule(nft.InSet{Key: []nft.Expr{called6}, Set: "container_net6"}, verdictReturn))
	}
	c.Rules = append(c.Rules, sendersClass, listenersClass)
	c.Rules = append(c.Rules, saidOf("called", sender, called4, called6, calledPort)...)
	return c
}

// ifCalledHere goes to called_here where the address that was called is this node's.
func ifCalledHere() []nft.Rule {
	return append([]nft.Rule{
		rule(v4, nft.Rewrite{Target: nft.IPDaddr, Source: nft.CtOriginalIPDaddr}),
		rule(v6, nft.Rewrite{Target: nft.IP6Daddr, Source: nft.CtOriginalIP6Daddr}),
		rule(is(nft.FibDaddrType, nft.RTNLocal), goTo("called_here")),
	}, restore()...)
}

// restore puts the destination back into the packet: whom the connection reaches or, in an answer,
// who opened it.
func restore() []nft.Rule {
	asked := is(nft.CtDirection, nft.DirOriginal)
	return []nft.Rule{
		rule(asked, v4, nft.Rewrite{Target: nft.IPDaddr, Source: nft.CtReplyIPSaddr}),
		rule(asked, v6, nft.Rewrite{Target: nft.IP6Daddr, Source: nft.CtReplyIP6Saddr}),
		rule(isAnswer, v4, nft.Rewrite{Target: nft.IPDaddr, Source: nft.CtOriginalIPSaddr}),
		rule(isAnswer, v6, nft.Rewrite{Target: nft.IP6Daddr, Source: nft.CtOriginalIP6Saddr}),
	}
}

// saidOf asks what rules say of an address and port of the packet, or of conntrack's: those of
// conntrack have their type by protocol.
func saidOf(maps string, who, addr4, addr6, port nft.Expr) []nft.Rule {
	look := func(name string, match []nft.Statement, key ...nft.Expr) nft.Rule {
		return rule(append(match, nft.ByMap{Key: append([]nft.Expr{who}, key...), Map: maps + name})...)
	}
	rules := []nft.Rule{
		look("_icmp4", []nft.Statement{v4, is(nft.MetaL4Proto, nft.ProtoICMP)}, addr4, icmp),
		look("_icmp6", []nft.Statement{v6, is(nft.MetaL4Proto, nft.ProtoICMPv6)}, addr6, icmp6),
	}
	if port.Field == nft.THSport || port.Field == nft.THDport {
		return append(rules, look("4", []nft.Statement{v4}, addr4, l4proto, port),
			look("6", []nft.Statement{v6}, addr6, l4proto, port))
	}
	var others []nft.Statement
	for _, p := range []uint32{nft.ProtoTCP, nft.ProtoUDP, nft.ProtoSCTP} {
		of := is(nft.MetaL4Proto, p)
		rules = append(rules, look("4", []nft.Statement{v4, of}, addr4, l4proto, port),
			look("6", []nft.Statement{v6, of}, addr6, l4proto, port))
		others = append(others, isNot(nft.MetaL4Proto, p))
	}
	return append(rules,
		look("4", append([]nft.Statement{v4}, others...), addr4, l4proto, dport),
		look("6", append([]nft.Statement{v6}, others...), addr6, l4proto, dport))
}

var (
	called4    = nft.Expr{Field: nft.CtOriginalIPDaddr}
	called6    = nft.Expr{Field: nft.CtOriginalIP6Daddr}
	calledPort = nft.Expr{Field: nft.CtOriginalProtoDst}

	reached4    = nft.Expr{Field: nft.CtReplyIPSaddr}
	reached6    = nft.Expr{Field: nft.CtReplyIP6Saddr}
	reachedPort = nft.Expr{Field: nft.CtReplyProtoSrc}

	// isCalled holds where NAT changed the destination; byThisNode, at INPUT and OUTPUT, for what
	// does not come in from elsewhere.
	isCalled   = anyOf(nft.CtStatus, nft.StatusDNAT)
	byThisNode = between(nft.MetaIif, 0, nft.IfindexLo)
)
