package attack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest/wire"
)

// udpPacket is an IP packet with a UDP datagram, as a raw or packet socket sends it.
func udpPacket(from, to, data string) []byte {
	d := wire.Datagram{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Data: []byte(data)}
	return d.Packet()
}

// tcpPacket is an IP packet with a TCP segment.
func tcpPacket(from, to string, flags byte, seq, ack uint32, data string) []byte {
	s := wire.Segment{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Flags: flags, Seq: seq,
		Ack: ack, Window: 1024, Data: []byte(data)}
	return s.Packet()
}

// frame is an Ethernet frame with a packet behind tags of VLANs (their types).
func frame(to, from string, packet []byte, tags ...uint16) []byte {
	dst, errTo := net.ParseMAC(strings.TrimSpace(to))
	src, errFrom := net.ParseMAC(strings.TrimSpace(from))
	if errTo != nil || errFrom != nil {
		panic(fmt.Sprint(errTo, errFrom))
	}
	return wire.Ethernet(dst, src, packet, tags...)
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
