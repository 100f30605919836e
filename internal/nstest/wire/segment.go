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
	Window        uint16
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
		Flags: tcp[13], Window: binary.BigEndian.Uint16(tcp[14:]), Options: tcp[20:header], Data: tcp[header:],
	}
}
