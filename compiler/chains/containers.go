package chains

import (
	nft "thole/ruleset"
)

// containers leads to where a container with a network of its own is asked: it is on this
// node. The packet's priority gets its class.
func (b *builder) containers(bridge, addr4, addr6 nft.Expr, then ...nft.Statement) []nft.Rule {
	if !b.Bridges {
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

func (b *builder) toContainer() nft.Chain {
	return nft.Chain{Name: "to_container", Comment: "priority: the container; who sends it?",
		Rules: b.lookupCgroup(b.numberToMark(nft.MetaMark, goTo("ask")), "discard")}
}

// askContainerAgain judges the answer of a container by what its asker called.
func askContainerAgain() nft.Chain {
	return nft.Chain{Name: "ask_container_again", Comment: "mark: who asked; priority: the container",
		Rules: []nft.Rule{
			rule(isCalled, jump("called")),
			rule(goTo("ask_answer")),
		}}
}
