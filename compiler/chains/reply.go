package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// replyChains see the answers that this node sends. Here, and not before, it is known which
// socket has a connection of TCP: it is judged once more, and then decided. UDP is judged at
// each answer.
func (b *builder) replyChains() []nft.Chain {
	synAck := masked(nft.TCPFlags, tcpOpening, nft.TCPSyn|nft.TCPAck)
	return []nft.Chain{
		b.outputReply(),
		{Name: "output_reply_tcp", Comment: "an answer on a connection that is not decided", Rules: []nft.Rule{
			because("of a request: nobody knows yet whose", synAck, masked(nft.CtMark, mark.DeadBit, 0), accept),
			rule(isSYN, goTo("output_reply_syn")),
			because("allowed before the last revocation: the next request decides",
				maskedNot(nft.CtMark, mark.EpochMask, 0), masked(nft.CtMark, mark.OpenBit|mark.DeadBit, 0), accept),
			because("it carries nothing, and who asked need not wait", anyOf(nft.TCPFlags, nft.TCPRst), accept),
			because("it was denied", masked(nft.CtMark, mark.DeadBit|mark.OpenBit, mark.DeadBit), goTo("discard")),
			rule(goTo("answer")),
		}},
		b.replySYN("output_reply_syn"),
		{Name: "output_reply_udp", Comment: "an answer, or a request the other way", Rules: []nft.Rule{
			because("no request was allowed: then this is one", toLo, masked(nft.CtMark, mark.EpochMask, 0),
				goTo("output_request")),
			rule(goTo("answer")),
		}},
		{Name: "output_request", Comment: "INPUT judges it", Rules: b.lookupCgroup(b.numberToMark(nft.MetaMark, accept),
			"output_request_nobody")},
		{Name: "output_request_nobody", Rules: []nft.Rule{rule(scratch(nft.MetaMark, mark.Sender), accept)}},
		{Name: "output_reply_other", Comment: "neither TCP nor UDP", Rules: []nft.Rule{
			rule(anyOf(nft.CtState, nft.StateRelated), accept),
			rule(b.decided(), goTo("output_reply_by")),
			rule(goTo("answer")),
		}},
		{Name: "output_reply_by", Comment: "a workload's is judged: a raw socket answers what another was asked",
			Rules: b.lookupCgroup(b.numberToPriority(goTo("answer_by")), "accepted")},
		{Name: "answer", Comment: "who answers?",
			Rules: b.lookupCgroup(b.numberToPriority(goTo("answer_by")), "answer_nobody")},
		{Name: "answer_by", Comment: "priority: who answers", Rules: []nft.Rule{
			rule(toLo, goTo("answer_here")),
			rule(goTo("answer_leaves")),
		}},
		{Name: "answer_here", Comment: "conntrack's mark: who asked", Rules: []nft.Rule{
			because("nobody was asked", isTCP, masked(nft.CtMark, mark.EpochMask|mark.OpenBit, 0), goTo("discard")),
			rule(nft.Copy{Target: nft.MetaMark, Source: nft.CtMark, And: mark.ClassMask}),
			rule(goTo("ask_answer")),
		}},
		b.answerLeaves(),
		{Name: "answer_nobody", Rules: []nft.Rule{
			rule(fullSocket(nft.SocketMark), goTo("answer_unlabelled")),
			begins,
			because("the kernel: a reset, or the end of a connection", accept),
		}},
		b.answerUnlabelled(),
		{Name: "answer_between_unlabelled", Rules: []nft.Rule{
			rule(leavesNode, setMark(0, b.epochBits), accept),
			rule(b.heard(), setMark(0, b.epochBits), accept),
			rule(setMark(0, b.epochBits|mark.OpenBit|mark.DeadBit), accept),
		}},
		{Name: "accepted", Rules: []nft.Rule{rule(accept)}},
	}
}

// answerUnlabelled judges the answers of unlabelled processes, where a workload asked: one on this node, in a container
// on a bridge, or on another node. All other marks of conntrack may be another program's.
func (b *builder) answerUnlabelled() nft.Chain {
	c := nft.Chain{Name: "answer_unlabelled", Comment: "something unlabelled answers", Rules: []nft.Rule{
		because("nobody but us says who sends", toLo, sentBy, scratch(nft.MetaMark, 0)),
		rule(isTCP, masked(nft.CtMark, mark.ClassMask|mark.OpenBit, mark.OpenBit), goTo("answer_between_unlabelled")),
		rule(masked(nft.CtMark, mark.ClassMask, 0), accept),
		because("an address", masked(nft.CtMark, mark.AddressClass, mark.AddressClass), accept),
		because("never judged: the mark is another program's", masked(nft.CtMark, mark.EpochMask|mark.OpenBit, 0),
			accept),
	}}
	if b.Bridges {
		c.Rules = append(c.Rules, rule(nft.InSet{Key: []nft.Expr{oifName}, Set: "bridges"}, goTo("ask_nobody_ct")))
	}
	if b.Fleet {
		c.Rules = append(c.Rules, rule(leavesNode, masked(nft.CtMark, mark.RemoteMask, mark.RemoteClass),
			goTo("ask_nobody_ct")))
	}
	c.Rules = append(c.Rules,
		because("another program's mark: no workload is there", leavesNode, accept),
		rule(nft.Copy{Target: nft.MetaMark, Source: nft.CtMark, And: mark.ClassMask}),
		rule(goTo("ask_nobody")))
	return c
}

func (b *builder) outputReply() nft.Chain {
	c := nft.Chain{Name: "output_reply", Comment: "answers"}
	if b.Fleet {
		c.Rules = append(c.Rules, rule(isTCP, isSYN, goTo("output_reply_syn")),
			because("it was in the queue when the proof came", is(nft.MetaMark, mark.Unproven), isTCP,
				masked(nft.TCPFlags, nft.TCPSyn|nft.TCPAck, nft.TCPSyn|nft.TCPAck),
				masked(nft.CtMark, mark.RemoteMask|mark.PendingBit|mark.OutBit, mark.RemoteClass), drop),
			because("a handshake that another node began", isTCP, masked(nft.CtMark, mark.PendingBit|mark.OutBit,
				mark.PendingBit), b.queue()),
			because("proven, and not decided yet", isTCP,
				masked(nft.CtMark, mark.RemoteMask|mark.PendingBit|mark.OutBit|mark.EpochMask|mark.DeadBit,
					mark.RemoteClass), goTo("fleet_reply")))
	}
	c.Rules = append(c.Rules,
		because("most of TCP", b.decided(), isTCP, notSYN, toLo, accept),
		rule(toLo, isTCP, goTo("output_reply_tcp")),
		rule(b.decided(), isTCP, notSYN, goTo("answer_left")))
	c.Rules = append(c.Rules, wrappings(leavesNode)...)
	c.Rules = append(c.Rules,
		rule(isTCP, goTo("output_reply_tcp")),
		rule(isUDP, goTo("output_reply_udp")),
		rule(goTo("output_reply_other")))
	return c
}

// answerLeaves finds out whom a workload answers that is not on this node. An address has one
// class in an epoch, so that conntrack's mark may hold it before the judgement.
func (b *builder) answerLeaves() nft.Chain {
	c := nft.Chain{Name: "answer_leaves", Comment: "an answer to another host, or to a container"}
	if b.Fleet {
		proven := masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass)
		c.Rules = append(c.Rules,
			because("it proved its labels", proven, believed, goTo("ask_ct")),
			because("its certificate was revoked", proven, goTo("refuse")))
	}
	c.Rules = append(c.Rules, because("INPUT wrote it", maskedNot(nft.CtMark, mark.ClassMask, 0),
		masked(nft.CtMark, mark.EpochMask|mark.DeadBit, b.epochBits), goTo("ask_ct")))
	c.Rules = append(c.Rules, b.outside(nft.CtMark, oifName, ipDaddr, ip6Daddr, "ask_ct")...)
	return c
}

// replySYN sees a SYN that conntrack takes for an answer, because a SYN left from the other port before. It answers
// nothing, it opens a connection: a process that sent from a port before its present owner listened there could so be
// called past the policies. Only what is unlabelled may.
func (b *builder) replySYN(name string) nft.Chain {
	involved := because("a workload sent from the other port", maskedNot(nft.CtMark, mark.ClassMask, 0),
		masked(nft.CtMark, mark.AddressClass, 0), goTo("discard"))
	c := b.unlabelledOnly(name, "a SYN is no answer")
	c.Rules = append([]nft.Rule{involved}, c.Rules...)
	return c
}
