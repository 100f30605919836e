package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// settleChains are the chains for what is allowed.
func (b *builder) settleChains() []nft.Chain {
	return []nft.Chain{
		b.settle(), b.settleHere(),
		{Name: "answered", Comment: "this answer was judged", Rules: []nft.Rule{
			because("by the asking node's end", isNot(nft.MetaIif, 0), accept),
			rule(toLo, accept),
			rule(scratch(nft.MetaPriority, 0), jump("may_be_wrapped")),
			rule(accept),
		}},
	}
}

// settle writes the epoch: until it changes, no packet of this connection is judged again.
// A packet that conntrack does not know is discarded.
func (b *builder) settle() nft.Chain {
	// Requests on this node come first, because they are most. What conntrack does not know has no direction.
	here := []nft.Statement{isRequest, onLo}
	if b.Fleet { // no packet on lo may prove the connection of another node
		here = append(here, masked(nft.CtMark, mark.PendingBit, 0))
	}
	c := nft.Chain{Name: "settle", Comment: "it is allowed", Rules: []nft.Rule{
		rule(slices.Concat([]nft.Statement{isTCP}, here, []nft.Statement{goTo("settle_here")})...),
		rule(append(slices.Clone(here), fromMark(b.epochBits), nft.Count{Counter: "allowed"}, accept)...),
		because("each answer of UDP is judged", isAnswer, isNot(nft.MetaL4Proto, nft.ProtoTCP), goTo("answered")),
		rule(isAnswer, toLo, b.heard(), fromMark(b.epochBits), nft.Count{Counter: "allowed"}, accept),
		because("who is found for what the asker sends next?", isAnswer, toLo,
			fromMark(b.epochBits|mark.OpenBit|mark.DeadBit), accept),
		rule(isAnswer, setMark(mark.ClassMask, b.epochBits), nft.Count{Counter: "allowed"}, goTo("answered")),
		rule(unknownCt, goTo("discard")),
	}}
	if b.Fleet {
		c.Rules = append(c.Rules, because("its proof is still to come", masked(nft.CtMark, mark.PendingBit|mark.OutBit,
			mark.PendingBit), nft.Count{Counter: "allowed"}, accept))
	}
	c.Rules = append(c.Rules,
		because("to a container", is(nft.MetaIif, 0), fromMark(b.epochBits), scratch(nft.MetaMark, 0),
			scratch(nft.MetaPriority, 0), nft.Count{Counter: "allowed"}, goTo("left")),
		rule(isNot(nft.MetaL4Proto, nft.ProtoTCP), fromMark(b.epochBits), nft.Count{Counter: "allowed"}, accept),
		rule(onLo, goTo("settle_here")),
		rule(isSYN, fromMark(b.epochBits|mark.OpenBit), accept),
		rule(fromMark(b.epochBits), nft.Count{Counter: "allowed"}, accept))
	return c
}

// settleHere notes what a request of TCP on this node says of who has its connection.
func (b *builder) settleHere() nft.Chain {
	return nft.Chain{Name: "settle_here", Rules: []nft.Rule{
		rule(isSYN, fromMark(b.epochBits|mark.OpenBit), accept),
		rule(b.answered(), fromMark(b.epochBits), nft.Count{Counter: "allowed"}, accept),
		because("who answers?", fromMark(b.epochBits|mark.OpenBit|mark.OutBit), accept),
	}}
}
