package packet

import (
	"encoding/binary"
	"net/netip"
	"thole/datapath/refusal"
)

const (
	icmpSize   = 8 // before the quote
	quotedSize = 8 // of TCP: ports and sequence number; more need not be quoted
)

// A Quote is an ICMP error that quotes a TCP segment. It points into the bytes that
// ParseQuote got.
type Quote struct {
	Source, Destination netip.AddrPort // of the quoted segment, not of the error
	Seq                 uint32         // of the quoted segment

	bytes []byte // the IP packet without padding
	icmp  int    // offset of the ICMP header
	seq   int    // offset of the quoted sequence number
}

// ParseQuote parses an IP packet. The error is a refusal.Reason.
func ParseQuote(b []byte) (Quote, error) {
	q, err := parseQuote(b)
	if err != nil {
		return Quote{}, err
	}
	if !checkIPv4(q.bytes) || q.checksum() != 0xffff {
		return Quote{}, refusal.BadChecksum
	}
	return q, nil
}

// parseQuote is ParseQuote without checksums. A quote may be cut off, and its own
// lengths and checksums need not be right.
func parseQuote(b []byte) (q Quote, err error) {
	n, err := parseIP(b, false)
	if err != nil {
		return Quote{}, err
	}
	v4 := b[0]>>4 == 4
	switch {
	case v4 && n.protocol != protocolICMP || !v4 && n.protocol != protocolICMPv6:
		return Quote{}, refusal.NotError
	case n.end-n.header < icmpSize:
		return Quote{}, refusal.Truncated
	case !isError(b[n.header], v4):
		return Quote{}, refusal.NotError
	}
	at := n.header + icmpSize
	quoted := b[at:n.end]
	inner, err := parseIP(quoted, true)
	if err != nil || quoted[0]>>4 != b[0]>>4 || inner.protocol != protocolTCP || inner.end-inner.header < quotedSize {
		return Quote{}, refusal.BadQuote
	}
	t := quoted[inner.header:]
	src, dst := addresses(quoted)
	return Quote{
		Source:      netip.AddrPortFrom(src, binary.BigEndian.Uint16(t)),
		Destination: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(t[2:])),
		Seq:         binary.BigEndian.Uint32(t[atSeq:]),
		bytes:       b[:n.end:n.end], icmp: n.header, seq: at + inner.header + atSeq,
	}, nil
}

// isError reports whether ICMP's type is that of an error: destination unreachable,
// (IPv6) packet too big, time exceeded, parameter problem.
func isError(typ byte, v4 bool) bool {
	if v4 {
		return typ == 3 || typ == 11 || typ == 12
	}
	return typ >= 1 && typ <= 4
}

// AppendShifted appends q with d added to the quoted sequence number. Nothing else of
// the quote changes: not its checksum, which a quote that is cut off does not show to
// be right, and no receiver looks at.
func (q *Quote) AppendShifted(dst []byte, d uint32) []byte {
	out := append(dst, q.bytes...)
	shifted := Quote{bytes: out[len(dst):], icmp: q.icmp}
	binary.BigEndian.PutUint32(shifted.bytes[q.seq:], q.Seq+d)
	message := shifted.bytes[q.icmp:]
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:], ^shifted.checksum())
	return out
}

// checksum is the sum of the ICMP message; ICMPv6 has a pseudo header.
func (q *Quote) checksum() uint16 {
	message, s := q.bytes[q.icmp:], uint64(0)
	if q.bytes[0]>>4 == 6 {
		s = pseudo(q.bytes, protocolICMPv6, len(message))
	}
	return fold(sum(s, message))
}
