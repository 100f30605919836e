package wire

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// With returns a frame in the direction of f, and with its hardware addresses, that has another segment in it: whole,
// with right checksums, and as much window as f's.
func (f *Frame) With(s Segment) *Frame {
	s.Window = f.TCP.Window
	data := append(append([]byte(nil), f.Data[:14]...), s.Packet()...)
	return &Frame{FromA: f.FromA, Data: data, TCP: parseSegment(data)}
}

// Packet is the IP packet of the segment, with right checksums.
func (s *Segment) Packet() []byte {
	header := 20 + len(s.Options)
	tcp := make([]byte, header, header+len(s.Data))
	binary.BigEndian.PutUint16(tcp, s.From.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.To.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.Seq)
	binary.BigEndian.PutUint32(tcp[8:], s.Ack)
	tcp[12], tcp[13] = byte(header/4)<<4, s.Flags
	binary.BigEndian.PutUint16(tcp[14:], s.Window)
	copy(tcp[20:], s.Options)
	tcp = append(tcp, s.Data...)
	binary.BigEndian.PutUint16(tcp[16:], transportChecksum(s.From, s.To, unix.IPPROTO_TCP, tcp))
	return ip(s.From.Addr(), s.To.Addr(), unix.IPPROTO_TCP, tcp)
}

// A Datagram is one of UDP, as it is on the wire.
type Datagram struct {
	From, To netip.AddrPort
	Data     []byte
}

// UDP is the datagram with its header, as it is in an IP packet.
func (d Datagram) UDP() []byte {
	udp := make([]byte, 8, 8+len(d.Data))
	binary.BigEndian.PutUint16(udp, d.From.Port())
	binary.BigEndian.PutUint16(udp[2:], d.To.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(d.Data)))
	udp = append(udp, d.Data...)
	binary.BigEndian.PutUint16(udp[6:], transportChecksum(d.From, d.To, unix.IPPROTO_UDP, udp))
	return udp
}

// Packet is the IP packet of the datagram, with right checksums.
func (d Datagram) Packet() []byte { return ip(d.From.Addr(), d.To.Addr(), unix.IPPROTO_UDP, d.UDP()) }

const dontFragment = 0x4000 // in IPv4's field of flags and offset

func ip(from, to netip.Addr, protocol byte, payload []byte) []byte {
	if from.Is4() {
		return IPv4(from, to, protocol, dontFragment, payload)
	}
	packet := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, 64}
	packet = append(packet, from.AsSlice()...)
	return append(append(packet, to.AsSlice()...), payload...)
}

// IPv4 is an IPv4 packet. The fragment is its field of flags and offset; all fragments have one identification.
func IPv4(from, to netip.Addr, protocol byte, fragment uint16, payload []byte) []byte {
	header := make([]byte, 20, 20+len(payload))
	header[0], header[8], header[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(header[4:], 4711)
	binary.BigEndian.PutUint16(header[6:], fragment)
	copy(header[12:], from.AsSlice())
	copy(header[16:], to.AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

// Ethernet is a frame with an IP packet behind tags of VLANs. The tags are their types; all are of VLAN 0, which is a
// priority alone.
func Ethernet(to, from net.HardwareAddr, packet []byte, tags ...uint16) []byte {
	frame := append(append([]byte(nil), to...), from...)
	for _, tag := range tags {
		frame = append(binary.BigEndian.AppendUint16(frame, tag), 0, 0)
	}
	protocol := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(frame, protocol), packet...)
}

// transportChecksum is the checksum of TCP and UDP, with their pseudo header (RFC 9293, RFC 768, RFC 8200).
func transportChecksum(from, to netip.AddrPort, protocol byte, segment []byte) uint16 {
	size := []byte{0, protocol, byte(len(segment) >> 8), byte(len(segment))}
	return checksum(from.Addr().AsSlice(), to.Addr().AsSlice(), size, segment)
}

// checksum is the Internet's (RFC 1071), of parts of which each has an even length but the last.
func checksum(parts ...[]byte) uint16 {
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
