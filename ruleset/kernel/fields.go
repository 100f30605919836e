package kernel

import (
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// A fieldExpression is the expression that loads a field into a register, or sets it. Rules are written and read by it.
type fieldExpression struct {
	field      ruleset.Field
	name       string
	attributes nlmsg.Attributes // all but the following

	destination uint16 // type of the attribute that has the register which the field is loaded into
	origin      uint16 // of the register that the field is set from; 0: it cannot be set
	level       uint16 // of Expr.Level; 0: none
	levelSize   int    // in bytes: 1 or 4
}

// fieldExpressions are those of all fields. Fields of several protocols have the same place in a packet: the matches in
// front of the expression tell which of them a rule reads (Field.Needs).
var fieldExpressions = []fieldExpression{
	ct(ruleset.CtDirection, unix.NFT_CT_DIRECTION),
	ct(ruleset.CtState, unix.NFT_CT_STATE),
	ct(ruleset.CtStatus, unix.NFT_CT_STATUS),
	ct(ruleset.CtMark, unix.NFT_CT_MARK).settable(unix.NFTA_CT_SREG),
	meta(ruleset.MetaMark, unix.NFT_META_MARK).settable(unix.NFTA_META_SREG),
	meta(ruleset.MetaPriority, unix.NFT_META_PRIORITY).settable(unix.NFTA_META_SREG),
	meta(ruleset.MetaL4Proto, unix.NFT_META_L4PROTO),
	meta(ruleset.MetaNFProto, unix.NFT_META_NFPROTO),
	meta(ruleset.MetaProtocol, unix.NFT_META_PROTOCOL),
	meta(ruleset.MetaIif, unix.NFT_META_IIF),
	meta(ruleset.MetaOif, unix.NFT_META_OIF),
	meta(ruleset.MetaIifName, unix.NFT_META_IIFNAME),
	meta(ruleset.MetaOifName, unix.NFT_META_OIFNAME),
	meta(ruleset.MetaOifKind, metaOifKind),
	meta(ruleset.SkUID, unix.NFT_META_SKUID),
	socketField(ruleset.SocketCgroup, expr.NFT_SOCKET_CGROUPV2).leveled(expr.NFTA_SOCKET_LEVEL, 4),
	socketField(ruleset.SocketMark, expr.NFT_SOCKET_MARK),
	socketField(ruleset.SocketTransparent, expr.NFT_SOCKET_TRANSPARENT),
	expression(ruleset.RtIPsec, "rt", unix.NFTA_RT_DREG, unix.NFTA_RT_KEY, rtXfrm),
	fib(ruleset.FibDaddrType, unix.NFTA_FIB_F_DADDR),
	fib(ruleset.FibSaddrType, unix.NFTA_FIB_F_SADDR),
	tuple(ruleset.CtOriginalIPSaddr, unix.NFT_CT_SRC_IP, ruleset.DirOriginal),
	tuple(ruleset.CtOriginalIPDaddr, unix.NFT_CT_DST_IP, ruleset.DirOriginal),
	tuple(ruleset.CtReplyIPSaddr, unix.NFT_CT_SRC_IP, ruleset.DirReply),
	tuple(ruleset.CtOriginalIP6Saddr, unix.NFT_CT_SRC_IP6, ruleset.DirOriginal),
	tuple(ruleset.CtOriginalIP6Daddr, unix.NFT_CT_DST_IP6, ruleset.DirOriginal),
	tuple(ruleset.CtReplyIP6Saddr, unix.NFT_CT_SRC_IP6, ruleset.DirReply),
	tuple(ruleset.CtOriginalProtoDst, unix.NFT_CT_PROTO_DST, ruleset.DirOriginal),
	tuple(ruleset.CtReplyProtoSrc, unix.NFT_CT_PROTO_SRC, ruleset.DirReply),
	payload(ruleset.IPSaddr, unix.NFT_PAYLOAD_NETWORK_HEADER, 12), // offsets: nftables, src/proto.c
	payload(ruleset.IPDaddr, unix.NFT_PAYLOAD_NETWORK_HEADER, 16),
	payload(ruleset.IP6Saddr, unix.NFT_PAYLOAD_NETWORK_HEADER, 8),
	payload(ruleset.IP6Daddr, unix.NFT_PAYLOAD_NETWORK_HEADER, 24),
	payload(ruleset.ARPSaddrIP, unix.NFT_PAYLOAD_NETWORK_HEADER, 14),
	payload(ruleset.THSport, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0),
	payload(ruleset.THDport, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2),
	payload(ruleset.TCPToken, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 24),
	payload(ruleset.TCPFlags, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 13),
	payload(ruleset.ICMPTypeOf, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0),
	payload(ruleset.ICMPv6TypeOf, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0),
	payload(ruleset.TCPSequence, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 4),
	payload(ruleset.InnerByte, unix.NFT_PAYLOAD_INNER_HEADER, 0),
	payload(ruleset.InnerWord, unix.NFT_PAYLOAD_INNER_HEADER, 0),
	exthdr(ruleset.TCPOption, unix.NFT_EXTHDR_OP_TCPOPT, 0, 1, unix.NFT_EXTHDR_F_PRESENT).
		leveled(unix.NFTA_EXTHDR_TYPE, 1),
	exthdr(ruleset.FragmentOffset, unix.NFT_EXTHDR_OP_IPV6, 2, 2, 0).
		with(unix.NFTA_EXTHDR_TYPE, unix.IPPROTO_FRAGMENT),
}

// Keys that x/sys/unix lacks (linux/netfilter/nf_tables.h, enum nft_meta_keys and enum nft_rt_keys).
const (
	metaOifKind = 27
	rtXfrm      = 4
)

// expression is one with attributes of 4 bytes: type and value of each.
func expression(f ruleset.Field, name string, destination uint16, pairs ...uint32) fieldExpression {
	return fieldExpression{field: f, name: name, destination: destination, attributes: numbers(pairs...)}
}

func ct(f ruleset.Field, key uint32) fieldExpression {
	return expression(f, "ct", unix.NFTA_CT_DREG, unix.NFTA_CT_KEY, key)
}

// tuple is a field of one of the two tuples of a connection.
func tuple(f ruleset.Field, key uint32, direction byte) fieldExpression {
	return ct(f, key).with(unix.NFTA_CT_DIRECTION, direction)
}

func meta(f ruleset.Field, key uint32) fieldExpression {
	return expression(f, "meta", unix.NFTA_META_DREG, unix.NFTA_META_KEY, key)
}

func socketField(f ruleset.Field, key uint32) fieldExpression {
	return expression(f, "socket", expr.NFTA_SOCKET_DREG, expr.NFTA_SOCKET_KEY, key)
}

func fib(f ruleset.Field, flags uint32) fieldExpression {
	return expression(f, "fib", unix.NFTA_FIB_DREG, unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE,
		unix.NFTA_FIB_FLAGS, flags)
}

func payload(f ruleset.Field, base, offset uint32) fieldExpression {
	return expression(f, "payload", unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE, base,
		unix.NFTA_PAYLOAD_OFFSET, offset, unix.NFTA_PAYLOAD_LEN, uint32(f.Bytes()))
}

func exthdr(f ruleset.Field, op, offset, length, flags uint32) fieldExpression {
	return expression(f, "exthdr", unix.NFTA_EXTHDR_DREG, unix.NFTA_EXTHDR_OP, op, unix.NFTA_EXTHDR_OFFSET, offset,
		unix.NFTA_EXTHDR_LEN, length, unix.NFTA_EXTHDR_FLAGS, flags)
}

// numbers writes attributes of 4 bytes: type and value of each.
func numbers(pairs ...uint32) nlmsg.Attributes {
	var a nlmsg.Attributes
	for pair := range slices.Chunk(pairs, 2) {
		a.AddBE32(uint16(pair[0]), pair[1])
	}
	return a
}

// with is e with an attribute of one byte.
func (e fieldExpression) with(typ uint16, value byte) fieldExpression {
	e.attributes.AddBytes(typ, []byte{value})
	return e
}

// settable is e of a field that can be set, from the register in an attribute.
func (e fieldExpression) settable(origin uint16) fieldExpression {
	e.origin = origin
	return e
}

// leveled is e of a field of which there are several, told apart by Expr.Level.
func (e fieldExpression) leveled(typ uint16, size int) fieldExpression {
	e.level, e.levelSize = typ, size
	return e
}

// readLevel returns Expr.Level of an expression; ok is false if it is out of bounds.
func (e *fieldExpression) readLevel(a nlmsg.Attributes) (level uint8, ok bool) {
	if e.level == 0 {
		return 0, true
	}
	w := wordOf(a.Bytes(e.level), false)
	level = uint8(w.Uint64())
	return level, w == ruleset.WordOf(uint64(level)) && len(a.Bytes(e.level)) == e.levelSize
}

func expressionOf(f ruleset.Field) *fieldExpression {
	if at := slices.IndexFunc(fieldExpressions, func(e fieldExpression) bool { return e.field == f }); at >= 0 {
		return &fieldExpressions[at]
	}
	return nil
}

// A raw expression is written here, and not by the library.
type raw struct {
	expr.Any
	name string
	data nlmsg.Attributes
}

// attributes writes r as an element of a rule.
func (r raw) attributes() nlmsg.Attributes {
	var a nlmsg.Attributes
	a.AddString(unix.NFTA_EXPR_NAME, r.name)
	a.AddBytes(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, r.data)
	return a
}

// load reads a field into a register.
func load(f ruleset.Expr, reg uint32) (expr.Any, error) {
	e := expressionOf(f.Field)
	if e == nil {
		return nil, fmt.Errorf("unknown field %s", f.Field)
	}
	a := slices.Clone(e.attributes)
	a.AddBE32(e.destination, reg)
	if e.level != 0 {
		a.AddBytes(e.level, appendWord(nil, ruleset.WordOf(uint64(f.Level)), e.levelSize, false))
	}
	return raw{name: e.name, data: a}, nil
}

// store sets a field from the first register.
func store(f ruleset.Field) (expr.Any, error) {
	e := expressionOf(f)
	if e == nil || e.origin == 0 {
		return nil, fmt.Errorf("%s cannot be set", f)
	}
	a := slices.Clone(e.attributes)
	a.AddBE32(e.origin, firstReg)
	return raw{name: e.name, data: a}, nil
}

// A packetWrite is the expression that changes a field of a packet, but for its register.
type packetWrite struct {
	field      ruleset.Field
	attributes nlmsg.Attributes
}

var writes = []packetWrite{
	written(ruleset.IPDaddr, unix.NFT_PAYLOAD_CSUM_INET, ipChecksum, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR),
	written(ruleset.IP6Daddr, unix.NFT_PAYLOAD_CSUM_NONE, 0, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR),
	written(ruleset.THSport, unix.NFT_PAYLOAD_CSUM_INET, tcpChecksum, 0),
	written(ruleset.TCPSequence, unix.NFT_PAYLOAD_CSUM_INET, tcpChecksum, 0),
}

// Where IPv4 and TCP have their checksums. IPv6's header has none.
const (
	ipChecksum  = 10
	tcpChecksum = 16
)

// written says which checksum is mended when a field changes: one in the same header, and with
// NFT_PAYLOAD_L4CSUM_PSEUDOHDR, which the library leaves out, that of TCP or UDP behind it.
func written(f ruleset.Field, kind, offset, flags uint32) packetWrite {
	checksum := numbers(unix.NFTA_PAYLOAD_CSUM_TYPE, kind, unix.NFTA_PAYLOAD_CSUM_OFFSET, offset,
		unix.NFTA_PAYLOAD_CSUM_FLAGS, flags)
	return packetWrite{f, slices.Concat(expressionOf(f).attributes, checksum)}
}

// canRewrite says whether a connection's address may be put there: into the destination of a packet of its family.
func canRewrite(r ruleset.Rewrite) bool {
	from := expressionOf(r.Source)
	return from != nil && from.name == "ct" && from.attributes.Has(unix.NFTA_CT_DIRECTION) &&
		(r.Target == ruleset.IPDaddr || r.Target == ruleset.IP6Daddr) && r.Source.Bytes() == r.Target.Bytes()
}

// write changes a field of the packet to what the first register holds.
func write(f ruleset.Field) (expr.Any, error) {
	at := slices.IndexFunc(writes, func(w packetWrite) bool { return w.field == f })
	if at < 0 {
		return nil, fmt.Errorf("%s cannot be changed", f)
	}
	a := slices.Clone(writes[at].attributes)
	a.AddBE32(unix.NFTA_PAYLOAD_SREG, firstReg)
	return raw{name: "payload", data: a}, nil
}
