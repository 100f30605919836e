package attack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// udp4 is an IPv4 packet with a UDP datagram, as a raw or packet socket sends it.
func udp4(from, to, data string) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	return ip4(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, 0, datagram(src, dst, data))
}

// udp6 is the same in IPv6.
func udp6(from, to, data string) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	d := datagram(src, dst, data)
	p := []byte{0x60, 0, 0, 0, 0, byte(len(d)), unix.IPPROTO_UDP, 64}
	p = append(p, src.Addr().AsSlice()...)
	return append(append(p, dst.Addr().AsSlice()...), d...)
}

// tcp4 is an IPv4 packet with a TCP header of these flags.
func tcp4(from, to string, flags byte) []byte { return segment4(from, to, flags, 1000, 0) }

// segment4 is tcp4 with a sequence number and one that it acknowledges.
func segment4(from, to string, flags byte, seq, ack uint32) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	h := tcpHeader(src, dst, flags, seq, ack)
	binary.BigEndian.PutUint16(h[16:], checksum(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, h)))
	return ip4(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, 0, h)
}

// tcpHeader is TCP's header, without its checksum.
func tcpHeader(src, dst netip.AddrPort, flags byte, seq, ack uint32) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = 5<<4, flags
	binary.BigEndian.PutUint16(h[14:], 1024)
	return h
}

// frame is an Ethernet frame with a packet behind tags of VLANs (their types; all are of
// VLAN 0, which is a priority alone).
func frame(to, from string, packet []byte, tags ...uint16) []byte {
	dst, errTo := net.ParseMAC(strings.TrimSpace(to))
	src, errFrom := net.ParseMAC(strings.TrimSpace(from))
	if errTo != nil || errFrom != nil {
		panic(fmt.Sprint(errTo, errFrom))
	}
	f := append(dst, src...)
	for _, t := range tags {
		f = append(binary.BigEndian.AppendUint16(f, t), 0, 0)
	}
	protocol := map[byte]uint16{4: unix.ETH_P_IP, 6: unix.ETH_P_IPV6}[packet[0]>>4]
	return append(binary.BigEndian.AppendUint16(f, protocol), packet...)
}

// ip4 is an IPv4 packet; fragment is its field of flags and offset.
func ip4(src, dst netip.Addr, proto byte, fragment uint16, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[4:], 4711)
	binary.BigEndian.PutUint16(h[6:], fragment)
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func datagram(src, dst netip.AddrPort, data string) []byte {
	d := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(d, src.Port())
	binary.BigEndian.PutUint16(d[2:], dst.Port())
	binary.BigEndian.PutUint16(d[4:], uint16(8+len(data)))
	d = append(d, data...)
	binary.BigEndian.PutUint16(d[6:], checksum(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, d)))
	return d
}

// pseudo puts the pseudo header before a segment (RFC 768, RFC 8200).
func pseudo(src, dst netip.Addr, proto byte, segment []byte) []byte {
	p := append(src.AsSlice(), dst.AsSlice()...)
	p = append(p, 0, proto, byte(len(segment)>>8), byte(len(segment)))
	return append(p, segment...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// segment6 is a segment of TCP over IPv6.
func segment6(from, to string, flags byte, seq, ack uint32, data string) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	h := tcpHeader(src, dst, flags, seq, ack)
	h = append(h, data...)
	binary.BigEndian.PutUint16(h[16:], checksum(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, h)))
	p := []byte{0x60, 0, 0, 0, 0, byte(len(h)), unix.IPPROTO_TCP, 64}
	p = append(p, src.Addr().AsSlice()...)
	return append(append(p, dst.Addr().AsSlice()...), h...)
}

// nextSegment returns the numbers of the segment that follows those that a packet socket of IPv6 saw.
func nextSegment(t testing.TB, seen *sock, from, to uint16) (seq, ack uint32) {
	t.Helper()
	seen.host.Barrier()
	for {
		r := seen.do(call{Op: "recv", FD: seen.fd})
		if r.Errno != 0 {
			break
		}
		p := r.Data
		if len(p) < 60 || p[6] != unix.IPPROTO_TCP || binary.BigEndian.Uint16(p[40:]) != from ||
			binary.BigEndian.Uint16(p[42:]) != to {
			continue
		}
		seq, ack = binary.BigEndian.Uint32(p[44:])+uint32(len(p)-40-int(p[52]>>4)*4), binary.BigEndian.Uint32(p[48:])
	}
	if ack == 0 {
		t.Fatal("no segment was seen")
	}
	return seq, ack
}
