package packet

import (
	"encoding/binary"
	"net/netip"
	"thole/datapath/refusal"
)

const (
	resetTTL    = 64
	ipv6Version = 0x60
	ipv4Version = 0x45
)

// AppendRefusal appends a reset in the place of p, a SYN-ACK on its way to the client's
// kernel. With ack it ends a connect: SYN-SENT heeds no reset without one. Without, it
// ends a connection that is open and has heard nothing yet, and none that still waits for
// its SYN-ACK.
func (p *Packet) AppendRefusal(dst []byte, ack bool) ([]byte, error) {
	if !p.is(SYN|ACK|RST|FIN, SYN|ACK) {
		return dst, refusal.WrongPacket
	}
	e := edit{bare: true, seq: p.Seq + uint32(len(p.Payload())) + 1, flags: RST, limit: maxPacket}
	if ack {
		e.ack, e.flags = p.Ack, RST|ACK
		if p.Token != 0 {
			e.ack += p3
		}
	}
	return p.append(dst, e)
}

// AppendResetOf appends a packet that goes back to who sent p: a reset with this
// number, without ACK, options, and payload.
func (p *Packet) AppendResetOf(dst []byte, seq uint32) []byte {
	src, dest := p.Destination, p.Source
	start := len(dst)
	if src.Addr().Is4() {
		dst = append(dst, ipv4Version, 0, 0, 0, 0, 0, 0x40, 0, resetTTL, protocolTCP, 0, 0)
	} else {
		dst = append(dst, ipv6Version, 0, 0, 0, 0, 0, protocolTCP, resetTTL)
	}
	dst = appendAddress(appendAddress(dst, src.Addr()), dest.Addr())
	at := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, src.Port())
	dst = binary.BigEndian.AppendUint16(dst, dest.Port())
	dst = binary.BigEndian.AppendUint32(dst, seq)
	dst = append(dst, 0, 0, 0, 0, tcpSize/4<<4, byte(RST), 0, 0, 0, 0, 0, 0)
	packet, t := dst[start:], dst[at:]
	finish(packet)
	binary.BigEndian.PutUint16(t[atChecksum:], ^fold(sum(pseudo(packet, protocolTCP, len(t)), t)))
	return dst
}

func appendAddress(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		b4 := a.As4()
		return append(b, b4[:]...)
	}
	b16 := a.As16()
	return append(b, b16[:]...)
}
