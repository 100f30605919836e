package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Segment is one of TCP, as it is on the wire.
type Segment struct {
	From, To      netip.AddrPort
	Seq, Ack      uint32
	Flags         byte // of the header's 14th byte
	Options, Data []byte
}

// The control bits of TCP.
const (
	FIN byte = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Has reports whether all of these control bits are set.
func (s *Segment) Has(flags byte) bool { return s.Flags&flags == flags }

// Size is how many sequence numbers it takes.
func (s *Segment) Size() uint32 {
	n := uint32(len(s.Data))
	for _, flag := range []byte{SYN, FIN} {
		if s.Has(flag) {
			n++
		}
	}
	return n
}

// Option returns what an option of this kind holds, and whether there is one.
func (s *Segment) Option(kind byte) ([]byte, bool) {
	for o := s.Options; len(o) > 0; {
		switch {
		case o[0] == 0:
			return nil, false
		case o[0] == 1:
			o = o[1:]
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return nil, false
		case o[0] == kind:
			return o[2:o[1]], true
		default:
			o = o[o[1]:]
		}
	}
	return nil, false
}

func (s *Segment) String() string {
	flags := ""
	for i, name := range "FSRPA" {
		if s.Flags>>i&1 == 1 {
			flags += string(name)
		}
	}
	token := ""
	if o, ok := s.Option(254); ok {
		token = fmt.Sprintf(" option %x", o)
	}
	return fmt.Sprintf("%v > %v %s seq %d ack %d, %d bytes%s", s.From, s.To, flags, s.Seq, s.Ack, len(s.Data), token)
}

// parseSegment reads the segment in an Ethernet frame, nil if there is none that is whole. It is written apart from the
// program's own parser, which it helps to test.
func parseSegment(frame []byte) *Segment {
	if len(frame) < 14 {
		return nil
	}
	packet := frame[14:]
	var from, to netip.Addr
	var tcp []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if len(packet) < 20 {
			return nil
		}
		header, size := int(packet[0]&0xf)*4, int(binary.BigEndian.Uint16(packet[2:]))
		fragment := binary.BigEndian.Uint16(packet[6:])&0x3fff != 0
		if packet[9] != unix.IPPROTO_TCP || fragment || header < 20 || size < header || len(packet) < size {
			return nil
		}
		from, to, tcp = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:])),
			packet[header:size]
	case unix.ETH_P_IPV6:
		if len(packet) < 40 {
			return nil
		}
		size := 40 + int(binary.BigEndian.Uint16(packet[4:]))
		if packet[6] != unix.IPPROTO_TCP || len(packet) < size {
			return nil
		}
		from, to, tcp = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:])), packet[40:size]
	default:
		return nil
	}
	if len(tcp) < 20 || int(tcp[12]>>4)*4 < 20 || int(tcp[12]>>4)*4 > len(tcp) {
		return nil
	}
	header := int(tcp[12]>>4) * 4
	return &Segment{
		From: netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		To:   netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
		Seq:  binary.BigEndian.Uint32(tcp[4:]), Ack: binary.BigEndian.Uint32(tcp[8:]),
		Flags: tcp[13], Options: tcp[20:header], Data: tcp[header:],
	}
}

// With returns a frame in the direction of f, and with its hardware addresses, that has another segment in it: whole,
// with right checksums, and as much window as f's.
func (f *Frame) With(s Segment) *Frame {
	header := 20 + len(s.Options)
	tcp := make([]byte, header, header+len(s.Data))
	binary.BigEndian.PutUint16(tcp, s.From.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.To.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.Seq)
	binary.BigEndian.PutUint32(tcp[8:], s.Ack)
	tcp[12], tcp[13] = byte(header/4)<<4, s.Flags
	copy(tcp[14:16], f.window())
	copy(tcp[20:], s.Options)
	tcp = append(tcp, s.Data...)
	from, to := s.From.Addr().AsSlice(), s.To.Addr().AsSlice()
	binary.BigEndian.PutUint16(tcp[16:],
		sumOf(from, to, []byte{0, unix.IPPROTO_TCP, byte(len(tcp) >> 8), byte(len(tcp))}, tcp))

	var ip []byte
	if s.From.Addr().Is4() {
		ip = []byte{0x45, 0, byte((20 + len(tcp)) >> 8), byte(20 + len(tcp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}
		binary.BigEndian.PutUint16(ip[10:], sumOf(ip, from, to))
	} else {
		ip = []byte{0x60, 0, 0, 0, byte(len(tcp) >> 8), byte(len(tcp)), unix.IPPROTO_TCP, 64}
	}
	data := append([]byte(nil), f.Data[:14]...)
	for _, part := range [][]byte{ip, from, to, tcp} {
		data = append(data, part...)
	}
	return &Frame{FromA: f.FromA, Data: data, TCP: parseSegment(data)}
}

// window is the field of f's segment.
func (f *Frame) window() []byte {
	header := 14 + 40
	if f.TCP.From.Addr().Is4() {
		header = 14 + int(f.Data[14]&0xf)*4
	}
	return f.Data[header+14 : header+16]
}

// sumOf is the Internet's checksum (RFC 1071), of parts of which each has an even length but the last.
func sumOf(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, b := range parts {
		for i := range b {
			sum += uint32(b[i]) << (8 * (1 - i&1))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
