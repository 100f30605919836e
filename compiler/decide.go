package compiler

import (
	"fmt"
	"slices"
	"time"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// decideChains judge. The packet's mark has the number of who asks in its lower half, its
// priority that of who listens. Where the answer leaves this node, the packet's mark is not
// ours: conntrack's says who asked, and the chains are those whose name ends in "_ct".
func (l *layout) decideChains() []nft.Chain {
	list := []nft.Chain{
		{Name: "ask", Comment: "mark: who asks; priority: who listens", Rules: append(
			[]nft.Rule{because("its sender called another address", isCalled, byThisNode, jump("called"))},
			l.pair(sender, dport, "", "remember", sendersClass)...)},
		{Name: "ask_answer", Comment: "an answer. mark: who asked; priority: who answers", Rules: append(
			[]nft.Rule{because("its sender called another address", isCalled, byThisNode, jump("called"))},
			l.pair(sender, sport, "", "remember_answer", sendersClass)...)},
		{Name: "ask_ct", Comment: "conntrack's mark: who asked; priority: who answers",
			Rules: l.pair(ctClass, sport, "_ct", "remember_ct")},
		l.remember("remember", sender, dport), l.remember("remember_answer", sender, sport),
		l.remember("remember_ct", ctClass, sport),
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
		l.settle(), l.settleHere(),
		{Name: "answered", Comment: "this answer was judged", Rules: []nft.Rule{
			because("by the asking node's end", isNot(nft.MetaIif, 0), accept),
			rule(toLo, accept),
			rule(scratch(nft.MetaPriority, 0), jump("may_be_wrapped")),
			rule(accept),
		}},
		l.refuse(), l.refuseOut(),
		{Name: "discard", Rules: []nft.Rule{rule(nft.Count{Counter: "discarded"}, drop)}},
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

// pair asks what both sides allow: first for the workloads themselves, and where they have
// numbers of their own once more for their classes. What both sides allow is remembered.
func (l *layout) pair(from, port nft.Expr, suffix, remember string, itsClass ...nft.Rule) []nft.Rule {
	pair := rule(nft.ByMap{Key: []nft.Expr{from, listener}, Map: "pair"})
	rules := []nft.Rule{pair}
	if l.groups {
		rules = slices.Concat(rules, itsClass, []nft.Rule{listenersClass, pair})
	}
	return append(rules,
		rule(nft.InSet{Key: judgedKey(from, port), Set: l.judged()}, goTo("settle")),
		rule(jump("ingress"+suffix)),
		rule(jump("egress"+suffix)),
		rule(goTo(remember)))
}

// How long, and of how many connections, it is remembered that both sides allow them.
const (
	judgedTimeout = 5 * time.Minute
	judgedSize    = 65536
)

// JudgedCounter counts what is not remembered, because too much is: it is judged every time.
const JudgedCounter = "judged_full"

// judgedSet names the set of what was allowed in an epoch. The next epoch has a set of its own: a packet that still
// runs the rules of the last one may add to it after it was emptied.
func judgedSet(epoch uint32) string { return fmt.Sprintf("judged_%d", mark.EpochIn(epoch)) }

func (l *layout) judged() string { return judgedSet(l.epoch) }

func judgedKey(from, port nft.Expr) []nft.Expr { return []nft.Expr{from, listener, l4proto, port} }

func (l *lowering) declareJudged(epoch uint32) {
	l.declareSet(nft.Set{Name: judgedSet(epoch), Key: []nft.Type{nft.Mark, nft.ClassID, nft.InetProto, nft.InetService},
		Timeout: judgedTimeout, Size: judgedSize,
		Comment: "sender . listener . protocol . port: allowed in this epoch"})
}

// remember notes what both sides allow, by the numbers of classes. It does not where NAT led the connection here: the
// address that was called has a part in that.
func (l *layout) remember(name string, from, port nft.Expr) nft.Chain {
	return nft.Chain{Name: name, Comment: "both sides allow it", Rules: []nft.Rule{
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), isNot(nft.MetaL4Proto, nft.ProtoUDP), goTo("settle")),
		rule(isCalled, goTo("settle")),
		rule(nft.Update{Key: judgedKey(from, port), Set: l.judged()}, goTo("settle")),
		rule(nft.Count{Counter: JudgedCounter}, goTo("settle")),
	}}
}

// settle writes the epoch: until it changes, no packet of this connection is judged again.
// A packet that conntrack does not know is discarded.
func (l *layout) settle() nft.Chain {
	// Requests on this node come first, because they are most. What conntrack does not know has no direction.
	here := []nft.Statement{isRequest, onLo}
	if l.fleet != nil { // no packet on lo may prove the connection of another node
		here = append(here, masked(nft.CtMark, mark.PendingBit, 0))
	}
	c := nft.Chain{Name: "settle", Comment: "it is allowed", Rules: []nft.Rule{
		rule(slices.Concat([]nft.Statement{isTCP}, here, []nft.Statement{goTo("settle_here")})...),
		rule(append(slices.Clone(here), fromMark(l.epoch), nft.Count{Counter: "allowed"}, accept)...),
		because("each answer of UDP is judged", isAnswer, isNot(nft.MetaL4Proto, nft.ProtoTCP), goTo("answered")),
		rule(isAnswer, toLo, l.heard(), fromMark(l.epoch), nft.Count{Counter: "allowed"}, accept),
		because("who is found for what the asker sends next?", isAnswer, toLo,
			fromMark(l.epoch|mark.OpenBit|mark.DeadBit), accept),
		rule(isAnswer, setMark(mark.ClassMask, l.epoch), nft.Count{Counter: "allowed"}, goTo("answered")),
		rule(unknownCt, goTo("discard")),
	}}
	if l.fleet != nil {
		c.Rules = append(c.Rules, because("its proof is still to come", masked(nft.CtMark, mark.PendingBit|mark.OutBit,
			mark.PendingBit), nft.Count{Counter: "allowed"}, accept))
	}
	c.Rules = append(c.Rules,
		because("to a container", is(nft.MetaIif, 0), fromMark(l.epoch), scratch(nft.MetaMark, 0),
			scratch(nft.MetaPriority, 0), nft.Count{Counter: "allowed"}, goTo("left")),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), fromMark(l.epoch), nft.Count{Counter: "allowed"}, accept),
		rule(onLo, goTo("settle_here")),
		rule(isSYN, fromMark(l.epoch|mark.OpenBit), accept),
		rule(fromMark(l.epoch), nft.Count{Counter: "allowed"}, accept))
	return c
}

// settleHere notes what a request of TCP on this node says of who has its connection.
func (l *layout) settleHere() nft.Chain {
	return nft.Chain{Name: "settle_here", Rules: []nft.Rule{
		rule(isSYN, fromMark(l.epoch|mark.OpenBit), accept),
		rule(l.answered(), fromMark(l.epoch), nft.Count{Counter: "allowed"}, accept),
		because("who answers?", fromMark(l.epoch|mark.OpenBit|mark.OutBit), accept),
	}}
}

// fromMark writes conntrack's mark: the number of who asks, from the packet's, and the bits.
func fromMark(bits uint32) nft.Copy {
	return nft.Copy{Target: nft.CtMark, Source: nft.MetaMark, And: mark.ClassMask, Or: bits}
}

// refuse denies at INPUT: sources on this node are answered, others are not. What
// conntrack does not know is never answered: it may be a stray of a live connection. Nor is
// an answer of UDP: who gets the error may be another with the same port.
func (l *layout) refuse() nft.Chain {
	c := nft.Chain{Name: "refuse", Comment: "it is denied", Rules: []nft.Rule{
		rule(unknownCt, goTo("discard")),
		because("no answer that is allowed: perhaps a request the other way", isAnswer, isUDP, is(nft.MetaIif, 0), toLo,
			goTo("output_request")),
		rule(isAnswer, isUDP, goTo("discard")),
	}}
	if l.deny == DenyReject {
		c.Rules = append(c.Rules, rule(goTo("refuse_out")))
		return c
	}
	c.Rules = append(c.Rules, rule(onLo, goTo("refuse_out")))
	if l.bridges {
		c.Rules = append(c.Rules, rule(nft.InSet{Key: []nft.Expr{iifName}, Set: "bridges"}, goTo("refuse_out")))
	}
	c.Rules = append(c.Rules,
		because("sent by this node", is(nft.MetaIif, 0), goTo("refuse_out")),
		rule(isTCP, setMark(mark.AllBits&^mark.OpenBit, mark.DeadBit)),
		rule(nft.Count{Counter: "denied"}, drop))
	return c
}

// refuseOut denies, with an answer at once. It ends a connection that was allowed before the
// last revocation, but none that is another's.
func (l *layout) refuseOut() nft.Chain {
	return nft.Chain{Name: "refuse_out", Rules: []nft.Rule{
		because("it is another's, which may have it", isTCP, notSYN, l.decided(), goTo("discard")),
		because("who sends it has not asked", isTCP, notSYN, isRequest, l.answered(),
			maskedNot(nft.CtMark, mark.ClassMask, 0), notAsker, goTo("discard")),
		because("nothing was allowed", isTCP, isSYN, masked(nft.CtMark, mark.PendingBit, 0),
			nft.Count{Counter: "denied"}, l.reset()),
		rule(isTCP, setMark(mark.AllBits&^mark.OpenBit, mark.DeadBit)),
		rule(nft.Count{Counter: "denied"}),
		rule(isTCP, l.reset()),
		rule(l.rejects(nft.Reject{With: nft.AdminProhibited})),
	}}
}

// rejects answers what is denied, if anything does.
func (l *layout) rejects(with nft.Reject) nft.Statement {
	if l.deny == DenyDrop {
		return drop
	}
	return with
}

func (l *layout) reset() nft.Statement { return l.rejects(nft.Reject{With: nft.TCPReset}) }

// chain records a new connection and allows it. At INPUT the sender's side is asked
// first, since only what would be allowed is recorded.
func (a auditChain) chain(fleet bool) nft.Chain {
	c := nft.Chain{Name: a.name(), Comment: "audit policy " + a.policy + " would deny"}
	if a.unsaid {
		said := a
		said.unsaid = false
		c.Rules = append([]nft.Rule{
			because("but for the address that was called", masked(nft.MetaMark, mark.CalledAudited, mark.CalledAudited),
				verdictReturn),
		}, said.chain(fleet).Rules...) // not by goto: the kernel follows 16 chains
		return c
	}
	if a.stage == atIngress {
		leaves := []nft.Statement{isAnswer, is(nft.MetaIif, 0), leavesNode}
		c.Rules = append(c.Rules,
			because("see ask_ct", append(slices.Clone(leaves), jump("egress_ct"))...),
			rule(append(slices.Clone(leaves), goTo("settle"))...),
			rule(jump("egress")))
	}
	settled := map[stage]nft.Verdict{atIngress: goTo("settle"), atEgress: goTo("settle"), atLeave: verdictReturn,
		atCalled: goTo("called_allowed")}[a.stage]
	if fleet && a.stage == atEgress {
		asked := masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass|mark.OutBit)
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
