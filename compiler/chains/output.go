package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// outputChains see what this node sends, and is no answer. What stays on the node is judged
// at INPUT, which knows the listener: here it gets the number of the socket that sends it.
// What leaves is judged here.
func (b *builder) outputChains() []nft.Chain {
	return []nft.Chain{
		{Name: "prerouting", Hook: nft.Prerouting, Priority: rawPriority - 10,
			Comment: "what comes over lo and has no connection was sent by no socket", Rules: []nft.Rule{
				rule(anyOf(nft.CtState, nft.StateInvalid), onLo, scratch(nft.MetaMark, mark.Injected)),
			}},
		b.output(),
		{Name: "output_here", Comment: "it stays on this node", Rules: []nft.Rule{
			because("most datagrams: no group", isUDP, within(nft.IPDaddr, loopback4), goTo("output_by")),
			because("it is decided: has the same workload sent it?", b.decided(), isTCP, notSYN,
				maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("output_same")),
			because("it was answered, and more is to be said: has who asked sent it?", b.answered(), isTCP, notSYN,
				maskedNot(nft.CtMark, mark.ClassMask, 0), goTo("output_asker")),
			rule(isTCP, goTo("output_by")),
			because("no group", v4, within(nft.IPDaddr, loopback4), goTo("output_by")),
			because("all who listen there get it: its sender alone decides", v4, within(nft.IPDaddr, multicast4),
				goTo("output_group")),
			rule(v6, within(nft.IP6Daddr, multicast6), goTo("output_group")),
			rule(goTo("output_by")),
		}},
		{Name: "output_by", Comment: "who sends it?", Rules: b.lookupCgroup(b.numberToMark(nft.MetaMark, accept),
			"output_by_nobody")},
		{Name: "output_by_nobody", Rules: []nft.Rule{
			because("nobody but us says who sends", sentBy, scratch(nft.MetaMark, 0)),
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		{Name: "output_same", Comment: "by who opened the connection?", Rules: b.sameWorkload(accept, "output_other")},
		{Name: "output_asker", Rules: b.sameWorkload(goTo("output_asked"), "output_by")},
		{Name: "output_asked", Rules: []nft.Rule{
			rule(nft.Copy{Target: nft.MetaMark, Source: nft.CtMark, And: mark.ClassMask, Or: mark.Asker}, accept),
		}},
		{Name: "output_other", Comment: "by another: a raw socket, or one whose labels changed",
			Rules: b.lookupCgroup(b.numberToMark(nft.MetaMark, accept), "output_other_nobody")},
		{Name: "output_other_nobody", Rules: []nft.Rule{
			because("something unlabelled: INPUT judges it", fullSocket(nft.SkUID), scratch(nft.MetaMark, mark.Sender),
				accept),
			because("the kernel, for the connection", accept),
		}},
	}
}

func (b *builder) output() nft.Chain {
	c := nft.Chain{Name: "output", Hook: nft.Output, Priority: priority}
	if b.Fleet {
		c.Rules = append(c.Rules, rule(is(nft.MetaMark, mark.Sent), goTo("fleet_sent")),
			rule(is(nft.MetaMark, mark.SentOut), goTo("fleet_sent")))
	}
	c.Rules = append(c.Rules, rule(isAnswer, goTo("output_reply")))
	if b.Fleet {
		c.Rules = append(c.Rules, rule(masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass|mark.OutBit),
			goTo("output_fleet")))
	}
	c.Rules = append(c.Rules,
		rule(toLo, masked(nft.CtStatus, nft.StatusDNAT, 0), goTo("output_here")),
		because("oif is the one before NAT", isCalled, is(nft.FibDaddrType, nft.RTNLocal), goTo("output_here")),
		rule(goTo("output_leaves")))
	return c
}
