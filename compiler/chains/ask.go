package chains

import (
	"slices"

	nft "thole/ruleset"
)

// askChains judge. The packet's mark has the number of who asks in its lower half, its
// priority that of who listens. Where the answer leaves this node, the packet's mark is not
// ours: conntrack's says who asked, and the chains are those whose name ends in "_ct".
func (b *builder) askChains() []nft.Chain {
	list := []nft.Chain{
		{Name: "ask", Comment: "mark: who asks; priority: who listens", Rules: append(
			[]nft.Rule{because("its sender called another address", isCalled, byThisNode, jump("called"))},
			b.pair(sender, dport, "", "remember", sendersClass)...)},
		{Name: "ask_answer", Comment: "an answer. mark: who asked; priority: who answers", Rules: append(
			[]nft.Rule{because("its sender called another address", isCalled, byThisNode, jump("called"))},
			b.pair(sender, sport, "", "remember_answer", sendersClass)...)},
		{Name: "ask_ct", Comment: "conntrack's mark: who asked; priority: who answers",
			Rules: b.pair(ctClass, sport, "_ct", "remember_ct")},
		b.remember("remember", sender, dport), b.remember("remember_answer", sender, sport),
		b.remember("remember_ct", ctClass, sport),
		{Name: "ask_nobody", Comment: "the sender's side alone", Rules: []nft.Rule{
			rule(scratch(nft.MetaPriority, 0)),
			rule(isCalled, byThisNode, jump("called")),
			sendersClass,
			rule(jump("egress")),
			rule(goTo("settle")),
		}},
		{Name: "ask_nobody_ct", Comment: "the same", Rules: []nft.Rule{
			rule(scratch(nft.MetaPriority, 0)),
			rule(jump("egress_ct")),
			rule(goTo("settle")),
		}},
	}
	for _, of := range []struct {
		suffix string
		sender nft.Expr
	}{{"", sender}, {"_ct", ctClass}} {
		list = append(list,
			nft.Chain{Name: "ingress" + of.suffix,
				Comment: "what the listener's side says; to fall through is to allow", Rules: []nft.Rule{
					rule(nft.ByMap{Key: []nft.Expr{of.sender, listener}, Map: "ingress_peer"}),
					rule(nft.ByMap{Key: []nft.Expr{listener}, Map: "ingress_class"}),
				}},
			nft.Chain{Name: "egress" + of.suffix, Comment: "what the sender's side says; to fall through is to allow",
				Rules: []nft.Rule{
					rule(nft.ByMap{Key: []nft.Expr{of.sender, listener}, Map: "egress_peer"}),
					rule(nft.ByMap{Key: []nft.Expr{of.sender}, Map: "egress_class"}),
				}})
	}
	return list
}

// pair asks what both sides allow. Where workloads have numbers of their own, it asks first whether both are the same
// workload, and then looks up their classes. What both sides allow is remembered. "itself" is a set, and no part of
// "pair": an element with a verdict that leads to a chain makes the kernel check all chains again
// (nft_table_validate, net/netfilter/nf_tables_api.c), for each workload that begins.
func (b *builder) pair(from, port nft.Expr, suffix, remember string, itsClass ...nft.Rule) []nft.Rule {
	var rules []nft.Rule
	if b.MemberNumbers {
		itself := rule(nft.InSet{Key: []nft.Expr{from, listener}, Set: "itself"}, goTo("settle"))
		rules = slices.Concat([]nft.Rule{itself}, itsClass, []nft.Rule{listenersClass})
	}
	return append(rules,
		rule(nft.ByMap{Key: []nft.Expr{from, listener}, Map: "pair"}),
		rule(nft.InSet{Key: judgedKey(from, port), Set: b.judged()}, goTo("settle")),
		rule(jump("ingress"+suffix)),
		rule(jump("egress"+suffix)),
		rule(goTo(remember)))
}

func (b *builder) judged() string { return judgedSet(b.Epoch) }

func judgedKey(from, port nft.Expr) []nft.Expr { return []nft.Expr{from, listener, l4proto, port} }

// remember notes what both sides allow, by the numbers of classes. It does not where NAT led the connection here: the
// address that was called has a part in that.
func (b *builder) remember(name string, from, port nft.Expr) nft.Chain {
	return nft.Chain{Name: name, Comment: "both sides allow it", Rules: []nft.Rule{
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), isNot(nft.MetaL4Proto, nft.ProtoUDP), goTo("settle")),
		rule(isCalled, goTo("settle")),
		rule(nft.Update{Key: judgedKey(from, port), Set: b.judged()}, goTo("settle")),
		rule(nft.Count{Counter: JudgedCounter}, goTo("settle")),
	}}
}
