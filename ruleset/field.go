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

// shapes describe the fields. Those of one byte have no order.
var shapes = [...]shape{
	CtDirection:        {"ct direction", 1, false, direction},
	CtState:            {"ct state", 4, true, state},
	CtStatus:           {"ct status", 4, true, hexadecimal},
	CtMark:             {"ct mark", 4, true, hexadecimal},
	MetaMark:           {"meta mark", 4, true, hexadecimal},
	MetaPriority:       {"meta priority", 4, true, classid},
	MetaL4Proto:        {"meta l4proto", 1, false, protocol},
	MetaNFProto:        {"meta nfproto", 1, false, family},
	MetaProtocol:       {"meta protocol", 2, false, etherType},
	MetaIif:            {"iif", 4, true, iface},
	MetaOif:            {"oif", 4, true, iface},
	MetaIifName:        {"iifname", 16, false, ifname},
	MetaOifName:        {"oifname", 16, false, ifname},
	SocketCgroup:       {"socket cgroupv2", 8, true, cgroup},
	SocketMark:         {"socket mark", 4, true, hexadecimal},
	SkUID:              {"meta skuid", 4, true, decimal},
	THSport:            {"th sport", 2, false, decimal},
	TCPOption:          {"tcp option", 1, false, decimal},
	TCPToken:           {"@th,192,8", 1, false, decimal},
	THDport:            {"th dport", 2, false, decimal},
	TCPFlags:           {"tcp flags", 1, false, tcpFlags},
	IPSaddr:            {"ip saddr", 4, false, address},
	IPDaddr:            {"ip daddr", 4, false, address},
	IP6Saddr:           {"ip6 saddr", 16, false, address},
	IP6Daddr:           {"ip6 daddr", 16, false, address},
	ARPSaddrIP:         {"arp saddr ip", 4, false, address},
	ICMPTypeOf:         {"icmp type", 1, false, decimal},
	ICMPv6TypeOf:       {"icmpv6 type", 1, false, decimal},
	FibDaddrType:       {"fib daddr type", 4, true, routeType},
	FibSaddrType:       {"fib saddr type", 4, true, routeType},
	TCPSequence:        {"tcp sequence", 4, false, decimal},
	SocketTransparent:  {"socket transparent", 1, false, decimal},
	InnerByte:          {"@ih,0,8", 1, false, decimal},
	InnerWord:          {"@ih,0,32", 4, false, decimal},
	MetaOifKind:        {"meta oifkind", 16, false, ifname},
	RtIPsec:            {"rt ipsec", 1, false, decimal},
	CtOriginalIPSaddr:  {"ct original ip saddr", 4, false, address},
	CtOriginalIPDaddr:  {"ct original ip daddr", 4, false, address},
	CtReplyIPSaddr:     {"ct reply ip saddr", 4, false, address},
	CtOriginalIP6Saddr: {"ct original ip6 saddr", 16, false, address},
	CtOriginalIP6Daddr: {"ct original ip6 daddr", 16, false, address},
	CtReplyIP6Saddr:    {"ct reply ip6 saddr", 16, false, address},
	CtOriginalProtoDst: {"ct original proto-dst", 2, false, decimal},
	CtReplyProtoSrc:    {"ct reply proto-src", 2, false, decimal},
	FragmentOffset:     {"frag frag-off", 2, false, decimal},
}

func (f Field) shape() shape {
	if int(f) >= len(shapes) || shapes[f].name == "" {
		return shape{name: "invalid"}
	}
	return shapes[f]
}

// String returns the field as it is written in nft.
func (f Field) String() string { return f.shape().name }

// Bytes returns the size of the field in a register.
func (f Field) Bytes() int { return f.shape().bytes }

// HostEndian says that a register holds the field in the machine's byte order.
func (f Field) HostEndian() bool { return f.shape().host }

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
