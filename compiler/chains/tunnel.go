package chains

import (
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// The first bytes of WireGuard's messages: a handshake begins, or is answered.
const (
	wireguardInitiation = 0x01000000
	wireguardResponse   = 0x02000000
)

var (
	wrap   = scratch(nft.MetaPriority, mark.WrappedPriority)
	loops  = scratch(nft.MetaPriority, mark.AroundPriority)
	begins = because("perhaps a handshake of WireGuard", isUDP,
		between(nft.InnerWord, wireguardInitiation, wireguardResponse), goTo("wireguard"))
)

func wireguardKey(daddr nft.Expr) []nft.Expr { return []nft.Expr{daddr, dport, sport} }

// wrappings let pass what is around a packet that was judged.
func wrappings(match ...nft.Statement) []nft.Rule {
	with := func(s ...nft.Statement) []nft.Statement { return append(append([]nft.Statement{}, match...), s...) }
	return []nft.Rule{
		because("around a packet that was judged", with(is(nft.MetaPriority, mark.WrappedPriority), goTo("around"))...),
		because("WireGuard's own", with(isUDP, v4, nft.InSet{Key: wireguardKey(ipDaddr), Set: "wireguard4"},
			accept)...),
		rule(with(isUDP, v6, nft.InSet{Key: wireguardKey(ip6Daddr), Set: "wireguard6"}, accept)...),
	}
}

// tunnelChains tell a packet around another one from that one.
//
// A tunnel puts a packet into another one, which passes OUTPUT once more and still has the socket
// of the inner packet. Only the inner one is the workload's. So a workload's packet that was judged
// and may be wrapped gets a priority of its own, by which the packet around it is known.
//
// WireGuard clears the priority (linux: drivers/net/wireguard/queueing.h, wg_reset_packet). It is
// known by its handshakes: those the kernel sends itself, without a socket, before it wraps
// anything, and again at least every two minutes as long as something comes back.
func (b *builder) tunnelChains() []nft.Chain {
	return append([]nft.Chain{
		{Name: "left", Comment: "it may leave", Rules: []nft.Rule{rule(jump("may_be_wrapped")), rule(accept)}},
		{Name: "may_be_wrapped", Comment: "in another packet, which has its socket", Rules: []nft.Rule{
			because("by a bridge, a tunnel, …", nft.HasKind(), wrap),
			rule(is(nft.RtIPsec, 1), wrap),
			because("oif is the one before NAT, and before routes by marks", isCalled, wrap),
			rule(isNot(nft.MetaMark, 0), wrap),
		}},
		{Name: "around", Comment: "around a packet that was judged, or pretending to be", Rules: []nft.Rule{
			because("a copy of it comes back: INPUT knows it", v4, within(nft.IPDaddr, multicast4), loops, accept),
			rule(v6, within(nft.IP6Daddr, multicast6), loops, accept),
			rule(is(nft.FibDaddrType, nft.RTNBroadcast), loops, accept),
			rule(scratch(nft.MetaPriority, 0), accept),
		}},
		{Name: "wireguard", Comment: "perhaps a handshake of WireGuard", Rules: []nft.Rule{
			because("the kernel's has no socket", fullSocket(nft.SkUID), accept),
			rule(between(nft.InnerWord, wireguardInitiation+1, wireguardResponse-1), accept),
			rule(v4, nft.Update{Key: wireguardKey(ipDaddr), Set: "wireguard4"}, accept),
			rule(v6, nft.Update{Key: wireguardKey(ip6Daddr), Set: "wireguard6"}, accept),
			rule(nft.Count{Counter: WireGuardCounter}, accept),
		}},
	}, b.answerLeft()...)
}

// answerLeft sees answers that were decided and leave. What is unlabelled keeps its priority.
func (b *builder) answerLeft() []nft.Chain {
	return []nft.Chain{
		{Name: "answer_left", Comment: "left, for answers that are decided", Rules: []nft.Rule{
			rule(nft.HasKind(), goTo("answer_left_by")),
			rule(is(nft.RtIPsec, 1), goTo("answer_left_by")),
			rule(isNot(nft.MetaMark, 0), goTo("answer_left_by")),
			rule(accept),
		}},
		{Name: "answer_left_by", Rules: b.lookupCgroup(b.numberToPriority(goTo("wrapped")), "accepted")},
		{Name: "wrapped", Rules: []nft.Rule{rule(wrap, accept)}},
	}
}
