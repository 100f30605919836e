package ruleset

// A format is how a number of a type or field is written in nft's language.
type format uint8

const (
	hexadecimal format = iota
	decimal
	classid
	address
	protocol
	family
	direction
	state
	tcpFlags
	iface
	routeType
	cgroup
	ifname
	etherType
)

// A shape is what the kernel stores for a type, or puts in a register for a field.
type shape struct {
	name   string
	bytes  int
	host   bool // in the machine's byte order; else in the network's
	format format
}

// shape describes t (nftables, src/datatype.c and src/{meta,ct,proto}.c).
func (t Type) shape() shape {
	switch t {
	case Mark:
		return shape{"mark", 4, true, hexadecimal}
	case ClassID:
		return shape{"classid", 4, true, classid}
	case CgroupV2:
		return shape{"cgroupsv2", 8, true, cgroup}
	case InetProto:
		return shape{"inet_proto", 1, false, protocol}
	case InetService:
		return shape{"inet_service", 2, false, decimal}
	case IPv4Addr:
		return shape{"ipv4_addr", 4, false, address}
	case IPv6Addr:
		return shape{"ipv6_addr", 16, false, address}
	case ICMPType:
		return shape{"icmp_type", 1, false, decimal}
	case ICMPv6Type:
		return shape{"icmpv6_type", 1, false, decimal}
	case IfName:
		return shape{"ifname", 16, false, ifname}
	case VerdictType:
		return shape{name: "verdict"}
	case None:
		return shape{name: "none"}
	default:
		return shape{name: "invalid"}
	}
}

// String returns the type's name in nft.
func (t Type) String() string { return t.shape().name }

// Bytes returns the size of a value.
func (t Type) Bytes() int { return t.shape().bytes }

// HostEndian says that the kernel stores the type in the machine's byte order.
func (t Type) HostEndian() bool { return t.shape().host }

// shape describes f. Fields of one byte have no order.
func (f Field) shape() shape {
	switch f {
	case CtDirection:
		return shape{"ct direction", 1, false, direction}
	case CtState:
		return shape{"ct state", 4, true, state}
	case CtStatus:
		return shape{"ct status", 4, true, hexadecimal}
	case CtMark:
		return shape{"ct mark", 4, true, hexadecimal}
	case MetaMark:
		return shape{"meta mark", 4, true, hexadecimal}
	case MetaPriority:
		return shape{"meta priority", 4, true, classid}
	case MetaL4Proto:
		return shape{"meta l4proto", 1, false, protocol}
	case MetaNFProto:
		return shape{"meta nfproto", 1, false, family}
	case MetaProtocol:
		return shape{"meta protocol", 2, false, etherType}
	case MetaIif:
		return shape{"iif", 4, true, iface}
	case MetaOif:
		return shape{"oif", 4, true, iface}
	case MetaIifName:
		return shape{"iifname", 16, false, ifname}
	case MetaOifName:
		return shape{"oifname", 16, false, ifname}
	case SocketCgroup:
		return shape{"socket cgroupv2", 8, true, cgroup}
	case SocketMark:
		return shape{"socket mark", 4, true, hexadecimal}
	case SkUID:
		return shape{"meta skuid", 4, true, decimal}
	case THSport:
		return shape{"th sport", 2, false, decimal}
	case TCPOption:
		return shape{"tcp option", 1, false, decimal}
	case TCPToken:
		return shape{"@th,192,8", 1, false, decimal}
	case THDport:
		return shape{"th dport", 2, false, decimal}
	case TCPFlags:
		return shape{"tcp flags", 1, false, tcpFlags}
	case IPSaddr:
		return shape{"ip saddr", 4, false, address}
	case IPDaddr:
		return shape{"ip daddr", 4, false, address}
	case IP6Saddr:
		return shape{"ip6 saddr", 16, false, address}
	case IP6Daddr:
		return shape{"ip6 daddr", 16, false, address}
	case ARPSaddrIP:
		return shape{"arp saddr ip", 4, false, address}
	case ICMPTypeOf:
		return shape{"icmp type", 1, false, decimal}
	case ICMPv6TypeOf:
		return shape{"icmpv6 type", 1, false, decimal}
	case FibDaddrType:
		return shape{"fib daddr type", 4, true, routeType}
	case FibSaddrType:
		return shape{"fib saddr type", 4, true, routeType}
	case TCPSequence:
		return shape{"tcp sequence", 4, false, decimal}
	case SocketTransparent:
		return shape{"socket transparent", 1, false, decimal}
	case InnerByte:
		return shape{"@ih,0,8", 1, false, decimal}
	case InnerWord:
		return shape{"@ih,0,32", 4, false, decimal}
	case MetaOifKind:
		return shape{"meta oifkind", 16, false, ifname}
	case RtIPsec:
		return shape{"rt ipsec", 1, false, decimal}
	case CtOriginalIPSaddr:
		return shape{"ct original ip saddr", 4, false, address}
	case CtOriginalIPDaddr:
		return shape{"ct original ip daddr", 4, false, address}
	case CtReplyIPSaddr:
		return shape{"ct reply ip saddr", 4, false, address}
	case CtOriginalIP6Saddr:
		return shape{"ct original ip6 saddr", 16, false, address}
	case CtOriginalIP6Daddr:
		return shape{"ct original ip6 daddr", 16, false, address}
	case CtReplyIP6Saddr:
		return shape{"ct reply ip6 saddr", 16, false, address}
	case CtOriginalProtoDst:
		return shape{"ct original proto-dst", 2, false, decimal}
	case CtReplyProtoSrc:
		return shape{"ct reply proto-src", 2, false, decimal}
	case FragmentOffset:
		return shape{"frag frag-off", 2, false, decimal}
	default:
		return shape{name: "invalid"}
	}
}

// String returns the field as it is written in nft.
func (f Field) String() string { return f.shape().name }

// Bytes returns the size of the field in a register.
func (f Field) Bytes() int { return f.shape().bytes }

// HostEndian says that a register holds the field in the machine's byte order.
func (f Field) HostEndian() bool { return f.shape().host }

// inTransport says that f is in the header of TCP, UDP or ICMP, or behind it.
func (f Field) inTransport() bool {
	switch f {
	case THSport, THDport, TCPFlags, TCPOption, TCPToken, TCPSequence, ICMPTypeOf, ICMPv6TypeOf, InnerByte:
		return true
	default:
		return false
	}
}

// Needs returns the matches of which one must hold before f can be read: f is in a
// header of one family or protocol. There are none if every packet has f.
func (f Field) Needs() []Match {
	is := func(f Field, value uint32) Match { return Match{Left: Expr{Field: f}, Value: value} }
	switch f {
	case IPSaddr, IPDaddr:
		return []Match{is(MetaNFProto, NFProtoIPv4), is(MetaProtocol, EtherIPv4)}
	case FragmentOffset:
		return []Match{is(MetaNFProto, NFProtoIPv6)}
	case IP6Saddr, IP6Daddr:
		return []Match{is(MetaNFProto, NFProtoIPv6), is(MetaProtocol, EtherIPv6)}
	case ARPSaddrIP:
		return []Match{is(MetaProtocol, EtherARP)}
	case TCPFlags, TCPOption, TCPToken, TCPSequence:
		return []Match{is(MetaL4Proto, ProtoTCP)}
	case CtOriginalProtoDst, CtReplyProtoSrc: // nft knows no type of it otherwise
		return []Match{is(MetaL4Proto, ProtoTCP), is(MetaL4Proto, ProtoUDP), is(MetaL4Proto, ProtoSCTP)}
	case ICMPTypeOf:
		return []Match{is(MetaL4Proto, ProtoICMP)}
	case ICMPv6TypeOf:
		return []Match{is(MetaL4Proto, ProtoICMPv6)}
	default:
		return nil
	}
}
