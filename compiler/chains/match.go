package chains

import (
	"net/netip"
	"thole/compiler/mark"
	nft "thole/ruleset"
)

// tcpOpening are the flags that tell a SYN from all else.
const tcpOpening = nft.TCPFin | nft.TCPSyn | nft.TCPRst | nft.TCPAck

// Expressions, matches and verdicts.
var (
	ctClass  = nft.Expr{Field: nft.CtMark, Mask: mark.ClassMask}
	sender   = nft.Expr{Field: nft.MetaMark, Mask: mark.ClassMask}
	listener = nft.Expr{Field: nft.MetaPriority}
	l4proto  = nft.Expr{Field: nft.MetaL4Proto}
	sport    = nft.Expr{Field: nft.THSport}
	dport    = nft.Expr{Field: nft.THDport}
	ipSaddr  = nft.Expr{Field: nft.IPSaddr}
	ipDaddr  = nft.Expr{Field: nft.IPDaddr}
	ip6Saddr = nft.Expr{Field: nft.IP6Saddr}
	iifName  = nft.Expr{Field: nft.MetaIifName}
	oifName  = nft.Expr{Field: nft.MetaOifName}
	ip6Daddr = nft.Expr{Field: nft.IP6Daddr}
	icmp     = nft.Expr{Field: nft.ICMPTypeOf}
	icmp6    = nft.Expr{Field: nft.ICMPv6TypeOf}

	v4 = is(nft.MetaNFProto, nft.NFProtoIPv4)
	v6 = is(nft.MetaNFProto, nft.NFProtoIPv6)

	// ownSource holds where the source is an address of this node. IPv4 has its check for martians; IPv6 has none.
	ownSource = []nft.Statement{v6, is(nft.FibSaddrType, nft.RTNLocal)}

	// families are the versions of IP: how the names of their sets end, and how rules match them.
	families = []struct {
		suffix    string
		is4       bool
		address   nft.Type
		icmpType  nft.Type
		etherType uint32
		match     nft.Match
		saddr     nft.Expr
	}{
		{"4", true, nft.IPv4Addr, nft.ICMPType, nft.EtherIPv4, v4, ipSaddr},
		{"6", false, nft.IPv6Addr, nft.ICMPv6Type, nft.EtherIPv6, v6, ip6Saddr},
	}

	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	linkLocal  = netip.MustParsePrefix("fe80::/10")
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")

	// RFC 4861, 4: solicitations, advertisements, redirects.
	neighbourDiscovery = because("neighbour discovery", is(nft.MetaL4Proto, nft.ProtoICMPv6),
		between(nft.ICMPv6TypeOf, 133, 137), accept)

	accept        = nft.Verdict{Kind: nft.Accept}
	drop          = nft.Verdict{Kind: nft.Drop}
	verdictReturn = nft.Verdict{Kind: nft.Return}

	isTCP      = is(nft.MetaL4Proto, nft.ProtoTCP)
	isUDP      = is(nft.MetaL4Proto, nft.ProtoUDP)
	onLo       = is(nft.MetaIif, nft.IfindexLo)
	fromAway   = isNot(nft.MetaIif, nft.IfindexLo)
	toLo       = is(nft.MetaOif, nft.IfindexLo)
	leavesNode = isNot(nft.MetaOif, nft.IfindexLo)
	isAnswer   = is(nft.CtDirection, nft.DirReply)
	isRequest  = is(nft.CtDirection, nft.DirOriginal)
	isSYN      = masked(nft.TCPFlags, tcpOpening, nft.TCPSyn)
	notSYN     = maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn)
	unknownCt  = anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked)

	// sentBy holds at INPUT, for what came over lo, where OUTPUT wrote the number of its sender: it must be
	// judged. isInjected holds where no socket sent it.
	sentBy     = masked(nft.MetaMark, mark.SenderMask, mark.Sender&mark.SenderMask)
	askerSent  = masked(nft.MetaMark, mark.AllBits&^mark.ClassMask, mark.Asker)
	notAsker   = maskedNot(nft.MetaMark, mark.AllBits&^mark.ClassMask, mark.Asker)
	isInjected = is(nft.MetaMark, mark.Injected)
	looped     = because("around another packet, and not for this node", is(nft.MetaPriority, mark.AroundPriority),
		goTo("discard"))
	injected = because("no socket sent it", onLo, isInjected, nft.Count{Counter: "injected"}, drop)

	// aSocket holds where a socket is found, if only that of a request or of an end of a connection.
	aSocket = between(nft.SocketTransparent, 0, 1)

	// carries holds where there is something behind TCP's header.
	carries = between(nft.InnerByte, 0, 255)

	// laterFragment accepts all fragments of an IPv6 datagram but the first: they have no ports to be judged by. The
	// first one is judged, and without the first one the kernel puts nothing together.
	laterFragment = because("not the first fragment: without that, nothing is delivered", v6, onLo,
		maskedNot(nft.FragmentOffset, nft.FragmentMask, 0), accept)
)

// Policies know no more of a workload than its class, where it has a number of its own to
// tell it from others of its class.
var (
	sendersClass   = rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{sender}, Map: "group"})
	listenersClass = rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{listener}, Map: "group_listener"})
	ctsClass       = rule(nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{ctClass}, Map: "group"})
)

// decided holds where the connection was allowed in this epoch, and it is known to whom.
func (b *builder) decided() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.DeadBit|mark.OpenBit, b.epochBits)
}

// heard holds where a socket was found for what came behind the handshake, and may have it.
func (b *builder) heard() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.OpenBit|mark.DeadBit|mark.OutBit,
		b.epochBits|mark.OpenBit|mark.OutBit)
}

// answered holds where a socket answered that may.
func (b *builder) answered() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.OpenBit|mark.DeadBit, b.epochBits|mark.OpenBit|mark.DeadBit)
}

// cgroup is the ancestor at a depth of the cgroup of the socket that is found.
func cgroup(depth uint8) nft.Expr { return nft.Expr{Field: nft.SocketCgroup, Level: depth} }

// rule returns a rule without a comment, because one whose comment says why it is there.
func rule(s ...nft.Statement) nft.Rule { return nft.Rule{Statements: s} }

func because(comment string, s ...nft.Statement) nft.Rule {
	return nft.Rule{Statements: s, Comment: comment}
}

// is, isNot, anyOf, masked and maskedNot compare a field: with a value, with bits of which one is set, or under a mask.
func is(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Equal, Value: value}
}

func isNot(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.NotEqual, Value: value}
}

func anyOf(f nft.Field, bits uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Any, Value: bits}
}

func masked(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Masked, Mask: mask, Value: value}
}

func maskedNot(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.MaskedNot, Mask: mask, Value: value}
}

// fullSocket holds where there is a socket, and not just a request for one.
func fullSocket(f nft.Field) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.AtLeast}
}

func within(f nft.Field, p netip.Prefix) nft.Match {
	r := nft.Prefix(p)
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

func between(f nft.Field, from, to uint64) nft.Match {
	r := nft.Span(from, to)
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

// setMark keeps some bits of conntrack's mark, and sets others.
func setMark(and, or uint32) nft.SetBits { return nft.SetBits{Target: nft.CtMark, And: and, Or: or} }

// scratch sets a mark or priority of the packet, all of it.
func scratch(f nft.Field, value uint32) nft.SetBits { return nft.SetBits{Target: f, Or: value} }

// fromMark writes conntrack's mark: the number of who asks, from the packet's, and the bits.
func fromMark(bits uint32) nft.Copy {
	return nft.Copy{Target: nft.CtMark, Source: nft.MetaMark, And: mark.ClassMask, Or: bits}
}

func jump(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Jump, Chain: chain} }

func goTo(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Goto, Chain: chain} }
