package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// inputChains see what reaches this node. What comes over lo and has no number of a sender is
// decided, or was sent by something unlabelled.
func (b *builder) inputChains() []nft.Chain {
	input := nft.Chain{Name: "input", Hook: nft.Input, Priority: priority, Rules: []nft.Rule{
		rule(isTCP, goTo("input_tcp")),
		rule(isUDP, goTo("input_udp")),
		rule(goTo("input_other")),
	}}
	return slices.Concat([]nft.Chain{input}, b.inputTCPChains(), b.inputSYNChains(), b.inputUDPChains(),
		b.inputOtherChains(), b.inputListenerChains())
}

// inputTCPChains see TCP behind the SYN. It is judged by the socket that is found, which is not
// always the one that the kernel takes: who answers decides (replyChains).
func (b *builder) inputTCPChains() []nft.Chain {
	settledIn := masked(nft.CtMark, mark.EpochMask|mark.DeadBit|mark.OutBit|mark.OpenBit, b.epochBits)
	isOpen := masked(nft.CtMark, mark.OpenBit, mark.OpenBit)
	openHere := masked(nft.CtMark, mark.OpenBit|mark.DeadBit, mark.OpenBit)
	asked := masked(nft.CtMark, mark.OpenBit|mark.EpochMask|mark.DeadBit, mark.OpenBit|b.epochBits)
	return []nft.Chain{
		{Name: "input_tcp", Rules: []nft.Rule{
			rule(isSYN, goTo("input_syn")),
			rule(sentBy, onLo, goTo("input_undecided")),
			rule(settledIn, accept),
			rule(isAnswer, accept),
			rule(goTo("input_undecided")),
		}},
		{Name: "input_undecided", Rules: []nft.Rule{
			rule(openHere, carries, goTo("input_data")),
			because("it ends soon", openHere, anyOf(nft.TCPFlags, nft.TCPFin), goTo("input_data")),
			because("what carries nothing opens no more", openHere, accept),
			because("also what conntrack does not know", goTo("input_data")),
		}},
		{Name: "input_data", Comment: "whose connection?",
			Rules: b.lookupCgroup(b.numberToPriority(goTo("input_workload")), "input_data_nobody")},
		{Name: "input_data_nobody", Rules: []nft.Rule{
			rule(fullSocket(nft.SocketMark), goTo("input_unlabelled")),
			because("a request: no socket sent it", aSocket, onLo, isInjected, nft.Count{Counter: "injected"}, drop),
			because("a request: its listener was asked in this epoch", aSocket, asked, accept),
			because("a request, whose listener nobody found", aSocket, isOpen, goTo("discard")),
			rule(aSocket, onLo, sentBy, goTo("discard")),
			rule(aSocket, accept),
			because("its socket is bound to a device, and not found: but it answered, and each answer is judged", onLo,
				askerSent, b.answered(), accept),
			rule(onLo, b.answered(), masked(nft.CtMark, mark.ClassMask, 0),
				maskedNot(nft.MetaMark, mark.SenderMask, mark.Sender&mark.SenderMask), accept),
			because("outside its window it carries nothing, and is answered", onLo, isOpen,
				nft.Flip{Field: nft.TCPSequence}, accept),
			rule(onLo, sentBy, nft.Flip{Field: nft.TCPSequence}, accept),
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
	}
}

// inputSYNChains look for the listener that a SYN is for.
func (b *builder) inputSYNChains() []nft.Chain {
	return []nft.Chain{
		{Name: "input_syn", Rules: append([]nft.Rule{rule(isAnswer, goTo("input_reply_syn"))},
			b.lookupCgroup(b.numberToPriority(goTo("input_workload")), "input_syn_nobody")...)},
		b.replySYN("input_reply_syn"),
		{Name: "input_syn_nobody", Rules: []nft.Rule{
			rule(fullSocket(nft.SocketMark), goTo("input_unlabelled")),
			because("early demultiplexing found a socket already: no other can be looked for", fromAway,
				setMark(mark.AllBits, mark.OpenBit), accept),
			because("a socket in TIME_WAIT hides the listener: look for it from another port",
				nft.Flip{Field: nft.THSport}),
			rule(scratch(nft.MetaPriority, 0)),
			rule(jump("find_listener")),
			because("the port is put back", nft.Flip{Field: nft.THSport}),
			rule(is(nft.MetaPriority, mark.UnlabelledListener), goTo("input_unlabelled")),
			rule(isNot(nft.MetaPriority, 0), goTo("input_workload")),
			rule(goTo("input_unasked")),
		}},
		{Name: "find_listener", Rules: b.lookupCgroup(b.numberToPriority(verdictReturn), "find_unlabelled")},
		{Name: "find_unlabelled", Rules: []nft.Rule{rule(fullSocket(nft.SocketMark),
			scratch(nft.MetaPriority, mark.UnlabelledListener))}},
		{Name: "input_unasked", Comment: "nobody that could be asked was found: no more than a handshake passes",
			Rules: []nft.Rule{
				injected,
				rule(sentBy, nft.Copy{Target: nft.CtMark, Source: nft.MetaMark, And: mark.ClassMask, Or: mark.OpenBit},
					accept),
				rule(setMark(0, mark.OpenBit), nft.Count{Counter: "unlabelled"}, accept),
			}},
	}
}

// inputListenerChains see what is for a listener that was found: a workload, or something unlabelled.
func (b *builder) inputListenerChains() []nft.Chain {
	return []nft.Chain{
		{Name: "input_workload", Comment: "priority: who listens", Rules: []nft.Rule{
			rule(onLo, sentBy, isNot(nft.MetaMark, mark.Injected), goTo("ask")),
			injected,
			rule(unknownCt, goTo("discard")),
			because("something unlabelled sent it", onLo, scratch(nft.MetaMark, 0), goTo("ask")),
			rule(goTo("stranger")),
		}},
		{Name: "input_unlabelled", Comment: "something unlabelled listens", Rules: []nft.Rule{
			rule(onLo, isInjected, accept),
			rule(onLo, sentBy, goTo("ask_nobody")),
			rule(isUDP, nft.Count{Counter: "unlabelled"}, accept),
			rule(unknownCt, accept),
			rule(onLo, isSYN, setMark(0, b.epochBits|mark.OpenBit), nft.Count{Counter: "unlabelled"}, accept),
			rule(onLo, b.answered(), setMark(0, b.epochBits), nft.Count{Counter: "unlabelled"}, accept),
			because("who answers?", onLo, setMark(0, b.epochBits|mark.OpenBit|mark.OutBit)),
			because("other programs' marks stay", fromAway, is(nft.CtMark, 0), setMark(0, b.epochBits|mark.OpenBit)),
			because("it was denied by who had the port before", fromAway,
				masked(nft.CtMark, mark.DeadBit, mark.DeadBit), setMark(0, b.epochBits|mark.OpenBit)),
			rule(nft.Count{Counter: "unlabelled"}, accept),
		}},
		b.stranger(),
	}
}

// inputOtherChains see other protocols than TCP and UDP.
func (b *builder) inputOtherChains() []nft.Chain {
	return []nft.Chain{
		{Name: "input_other", Comment: "no listener can be found: the sender alone decides", Rules: []nft.Rule{
			rule(fromAway, accept),
			rule(isAnswer, accept),
			rule(sentBy, goTo("input_other_by")),
			rule(accept),
		}},
		{Name: "input_other_by", Rules: []nft.Rule{
			rule(isInjected, accept),
			rule(anyOf(nft.CtState, nft.StateRelated), accept),
			neighbourDiscovery,
			rule(goTo("ask_nobody")),
		}},
	}
}

// inputUDPChains judge every datagram: a port changes hands. What goes to a group or to all is
// delivered to all their sockets, but the kernel finds one of them at most: there the sender
// alone decides, at its OUTPUT.
func (b *builder) inputUDPChains() []nft.Chain {
	forged := append([]nft.Statement{}, ownSource...)
	return []nft.Chain{
		{Name: "input_udp", Comment: "a port changes hands: every datagram is judged", Rules: []nft.Rule{
			rule(isAnswer, goTo("input_reply")),
			rule(is(nft.IPDaddr, 0x7f000001), goTo("input_datagram")),
			rule(v4, goTo("input_udp4")),
			laterFragment,
			rule(v6, within(nft.IP6Daddr, multicast6), goTo("input_group")),
			rule(goTo("input_datagram")),
		}},
		{Name: "input_udp4", Rules: []nft.Rule{
			rule(v4, within(nft.IPDaddr, multicast4), goTo("input_group")),
			rule(is(nft.FibDaddrType, nft.RTNBroadcast), goTo("input_broadcast")),
			rule(goTo("input_datagram")),
		}},
		{Name: "input_group", Comment: "decided by the sender alone", Rules: []nft.Rule{
			injected,
			looped,
			rule(accept),
		}},
		{Name: "input_broadcast", Rules: []nft.Rule{
			looped,
			rule(onLo, sentBy, goTo("discard")),
			because("a workload's own, come back", fromAway, maskedNot(nft.CtMark, mark.ClassMask, 0),
				masked(nft.CtMark, mark.AddressClass, 0), goTo("discard")),
			rule(accept),
		}},
		{Name: "input_datagram", Rules: b.lookupCgroup(b.numberToPriority(goTo("input_workload")), "input_unlabelled")},
		{Name: "input_reply", Comment: "an answer is for the workload that asked, not for who has its port now",
			Rules: append([]nft.Rule{
				laterFragment,
				because("no socket sent it", onLo, isInjected, goTo("input_reply_other")),
				because("it is a request the other way", onLo, sentBy, goTo("input_other_way")),
				rule(masked(nft.CtMark, mark.ClassMask, 0), goTo("input_reply_other")),
			}, b.sameWorkload(goTo("input_again"), "input_reply_other")...)},
		{Name: "input_other_way",
			Rules: b.lookupCgroup(b.numberToPriority(goTo("input_workload")), "input_other_way_nobody")},
		{Name: "input_other_way_nobody", Rules: []nft.Rule{
			rule(fullSocket(nft.SocketMark), goTo("input_unlabelled")),
			because("sent by something unlabelled", masked(nft.MetaMark, mark.ClassMask, 0), accept),
			because("whose it is cannot be found: perhaps that of who may not have this answer", goTo("discard")),
		}},
		b.replyOther(),
		{Name: "input_reply_nobody", Rules: []nft.Rule{
			rule(fromAway, accept),
			because("never judged: nothing of a workload's", masked(nft.CtMark, mark.EpochMask, 0), accept),
			rule(masked(nft.CtMark, mark.ClassMask, 0), accept),
			because("an unlabelled process sent it: OUTPUT leaves a workload's number in the priority",
				is(nft.MetaPriority, 0), accept),
			because("another program's mark: no connection of this node has an address's class",
				masked(nft.CtMark, mark.AddressClass, mark.AddressClass), accept),
			rule(goTo("discard")),
		}},
		{Name: "input_again", Comment: "of an answer that comes over lo OUTPUT decided", Rules: append([]nft.Rule{
			rule(onLo, accept),
			because("this node's own address, from outside", append(forged, goTo("discard"))...),
			rule(masked(nft.CtMark, mark.EpochMask|mark.DeadBit, b.epochBits), accept),
		}, append(b.containers(iifName, ipSaddr, ip6Saddr, nft.Copy{Target: nft.MetaMark, Source: nft.CtMark,
			And: mark.ClassMask}, goTo("ask_container_again")),
			b.lookupCgroup(b.numberToPriority(goTo("leave_again")), "discard")...)...)},
	}
}

// replyOther sees an answer that who asked does not get.
func (b *builder) replyOther() nft.Chain {
	return nft.Chain{Name: "input_reply_other",
		Rules: b.lookupCgroup(b.numberToPriority(goTo("discard")), "input_reply_nobody")}
}

// stranger gives who comes from elsewhere than lo a class: containers with a network
// of their own by their address on their bridge, all else by its address.
func (b *builder) stranger() nft.Chain {
	c := nft.Chain{Name: "stranger", Comment: "the class of who comes from elsewhere than lo", Rules: []nft.Rule{
		because("this node's own address, from outside", append(slices.Clone(ownSource), goTo("discard"))...),
	}}
	if b.Fleet {
		proven := masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass)
		c.Rules = append(c.Rules,
			because("it proved its labels", proven, believed, nft.Copy{Target: nft.MetaMark, Source: nft.CtMark,
				And: mark.ClassMask}, goTo("ask")),
			because("its certificate was revoked", proven, goTo("refuse")))
	}
	c.Rules = append(c.Rules, b.outside(nft.MetaMark, iifName, ipSaddr, ip6Saddr, "ask")...)
	return c
}

// outside asks with the class of an address that is not on this node, in a mark.
func (b *builder) outside(target nft.Field, bridge, addr4, addr6 nft.Expr, ask string) []nft.Rule {
	var rules []nft.Rule
	if b.Bridges {
		rules = append(rules,
			rule(v4, nft.SetByMap{Target: target, Key: []nft.Expr{bridge, addr4}, Map: "container4"}, goTo(ask)),
			rule(v6, nft.SetByMap{Target: target, Key: []nft.Expr{bridge, addr6}, Map: "container6"}, goTo(ask)),
			because("a container whose labels are not known yet, or a forged address",
				nft.InSet{Key: []nft.Expr{bridge}, Set: "bridges"}, goTo("discard")))
	}
	return append(rules,
		rule(nft.SetBits{Target: target, Or: mark.AddressClass}),
		rule(v4, nft.SetByMap{Target: target, Key: []nft.Expr{addr4}, Map: "address4"}),
		rule(v6, nft.SetByMap{Target: target, Key: []nft.Expr{addr6}, Map: "address6"}),
		rule(goTo(ask)))
}
