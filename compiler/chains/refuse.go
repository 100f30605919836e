package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// refuseChains are the chains for what is denied, and for what is discarded without an answer.
func (b *builder) refuseChains() []nft.Chain {
	return []nft.Chain{
		b.refuse(), b.refuseOut(),
		{Name: "discard", Rules: []nft.Rule{rule(nft.Count{Counter: "discarded"}, drop)}},
	}
}

// refuse denies at INPUT: sources on this node are answered, others are not. What
// conntrack does not know is never answered: it may be a stray of a live connection. Nor is
// an answer of UDP: who gets the error may be another with the same port.
func (b *builder) refuse() nft.Chain {
	c := nft.Chain{Name: "refuse", Comment: "it is denied", Rules: []nft.Rule{
		rule(unknownCt, goTo("discard")),
		because("no answer that is allowed: perhaps a request the other way", isAnswer, isUDP, is(nft.MetaIif, 0), toLo,
			goTo("output_request")),
		rule(isAnswer, isUDP, goTo("discard")),
	}}
	if b.Deny == DenyReject {
		c.Rules = append(c.Rules, rule(goTo("refuse_out")))
		return c
	}
	c.Rules = append(c.Rules, rule(onLo, goTo("refuse_out")))
	if b.Bridges {
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
func (b *builder) refuseOut() nft.Chain {
	return nft.Chain{Name: "refuse_out", Rules: []nft.Rule{
		because("it is another's, which may have it", isTCP, notSYN, b.decided(), goTo("discard")),
		because("who sends it has not asked", isTCP, notSYN, isRequest, b.answered(),
			maskedNot(nft.CtMark, mark.ClassMask, 0), notAsker, goTo("discard")),
		because("nothing was allowed", isTCP, isSYN, masked(nft.CtMark, mark.PendingBit, 0),
			nft.Count{Counter: "denied"}, b.reset()),
		rule(isTCP, setMark(mark.AllBits&^mark.OpenBit, mark.DeadBit)),
		rule(nft.Count{Counter: "denied"}),
		rule(isTCP, b.reset()),
		rule(b.rejects(nft.Reject{With: nft.AdminProhibited})),
	}}
}

// rejects answers what is denied, if anything does.
func (b *builder) rejects(with nft.Reject) nft.Statement {
	if b.Deny == DenyDrop {
		return drop
	}
	return with
}

func (b *builder) reset() nft.Statement { return b.rejects(nft.Reject{With: nft.TCPReset}) }
