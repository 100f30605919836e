package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"thole/datapath/refusal"
)

const (
	ipv4Size   = 20
	ipv6Size   = 40
	maxPacket  = 65535
	moreFrags  = 0x2000
	fragOffset = 0x1fff

	maxExtensions = 8 // IPv6 extension headers; RFC 8200 knows use for six

	protocolICMP        = 1
	protocolTCP         = 6
	protocolICMPv6      = 58
	extHopByHop         = 0
	extRouting          = 43
	extFragment         = 44
	extDestination      = 60
	routingSegmentsLeft = 3 // offset
)

// A network is an IP packet up to what it carries.
type network struct {
	protocol byte
	header   int // bytes before what it carries
	end      int // of the packet; what follows is padding
}

// parseIP walks the headers of b. A quote may be cut off anywhere behind them.
func parseIP(b []byte, quote bool) (network, error) {
	if len(b) < ipv4Size {
		return network{}, refusal.Truncated
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b, quote)
	case 6:
		return parseIPv6(b, quote)
	}
	return network{}, refusal.BadHeader
}

func parseIPv4(b []byte, quote bool) (network, error) {
	n := network{protocol: b[9], header: int(b[0]&0xf) * 4, end: int(binary.BigEndian.Uint16(b[2:]))}
	if quote {
		n.end = len(b)
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	switch {
	case n.header < ipv4Size || !quote && n.end < n.header:
		return network{}, refusal.BadHeader
	case n.end > len(b) || n.header > len(b):
		return network{}, refusal.Truncated
	case fragment&fragOffset != 0 || fragment&moreFrags != 0:
		return network{}, refusal.Fragment
	}
	return n, nil
}

func parseIPv6(b []byte, quote bool) (network, error) {
	if len(b) < ipv6Size {
		return network{}, refusal.Truncated
	}
	payload := int(binary.BigEndian.Uint16(b[4:]))
	n := network{protocol: b[6], header: ipv6Size, end: ipv6Size + payload}
	if quote {
		n.end = len(b)
	}
	switch {
	case !quote && payload == 0: // nothing, or a jumbogram
		return network{}, refusal.BadHeader
	case n.end > len(b):
		return network{}, refusal.Truncated
	}
	for range maxExtensions + 1 {
		next, size, err := extension(n.protocol, b[n.header:n.end], n.header == ipv6Size)
		if size == 0 {
			return n, err
		}
		n.protocol, n.header = next, n.header+size
	}
	return network{}, refusal.TooManyHeaders
}

// extension returns the size of the extension header that b begins with and the
// protocol behind it. Size 0: there is none, or an error.
func extension(protocol byte, b []byte, first bool) (next byte, size int, err error) {
	switch protocol {
	case extFragment:
		return 0, 0, refusal.Fragment
	case extHopByHop, extRouting, extDestination:
	default:
		return 0, 0, nil
	}
	if protocol == extHopByHop && !first {
		return 0, 0, refusal.BadHeader
	}
	if len(b) < 8 || len(b) < (int(b[1])+1)*8 {
		return 0, 0, refusal.Truncated
	}
	// The checksum is over the last address of the route, which this is not yet.
	if protocol == extRouting && b[routingSegmentsLeft] != 0 {
		return 0, 0, refusal.Routed
	}
	return b[0], (int(b[1]) + 1) * 8, nil
}

// addresses returns source and destination of an IP header that was walked.
func addresses(b []byte) (src, dst netip.Addr) {
	if b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	}
	return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
}

// checkIPv4 reports whether the header's checksum is right; IPv6 has none.
func checkIPv4(b []byte) bool {
	return b[0]>>4 != 4 || fold(sum(0, b[:int(b[0]&0xf)*4])) == 0xffff
}

// finish writes an IP packet's lengths and, for IPv4, its checksum.
func finish(b []byte) {
	if b[0]>>4 == 6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Size))
		return
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:int(b[0]&0xf)*4])))
}

// pseudo is the sum of the pseudo header of what b carries (RFC 9293, RFC 8200).
func pseudo(b []byte, protocol byte, size int) uint64 {
	addresses := b[12:20]
	if b[0]>>4 == 6 {
		addresses = b[8:40]
	}
	return sum(uint64(protocol)+uint64(size), addresses)
}

// sum adds b's 16-bit words to s, in ones' complement, not yet folded.
func sum(s uint64, b []byte) uint64 {
	var carry uint64
	for ; len(b) >= 8; b = b[8:] {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, binary.BigEndian.Uint64(last[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold brings a sum to 16 bits.
func fold(s uint64) uint16 {
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
