package packet

import (
	"encoding/binary"
	"net/netip"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

// Flags are TCP's control bits.
type Flags uint8

// The control bits.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

const (
	tcpSize    = 20 // fixed header
	maxOptions = 40

	// Offsets in the TCP header.
	atSeq      = 4
	atAck      = 8
	atOffset   = 12
	atFlags    = 13
	atChecksum = 16
	atUrgent   = 18

	kindEnd          = 0
	kindNOP          = 1
	kindSACK         = 5
	kindTimestamps   = 8
	kindMD5          = 19
	kindAO           = 29
	kindFastOpen     = 34
	kindExperimental = 254

	exID         = 0x5448
	exIDFastOpen = 0xf989
	optionLength = 6
)

// A Packet is a TCP segment with its IP packet. It points into the bytes that Parse got.
type Packet struct {
	Source, Destination netip.AddrPort
	Seq, Ack            uint32
	Flags               Flags
	Token               token.Type // by our option; 0: it has none

	bytes   []byte // the IP packet without padding
	tcp     int    // offset of the TCP header
	payload int    // offset of the payload
	signed  bool   // by TCP-MD5 or TCP-AO
}

// Parse parses an IP packet. The error is a refusal.Reason.
func Parse(b []byte) (Packet, error) {
	p, err := parse(b)
	if err != nil {
		return Packet{}, err
	}
	segment := p.bytes[p.tcp:]
	if !checkIPv4(p.bytes) || fold(sum(pseudo(p.bytes, protocolTCP, len(segment)), segment)) != 0xffff {
		return Packet{}, refusal.BadChecksum
	}
	return p, nil
}

// parse is Parse without checksums.
func parse(b []byte) (p Packet, err error) {
	n, err := parseIP(b, false)
	switch {
	case err != nil:
		return Packet{}, err
	case n.protocol != protocolTCP:
		return Packet{}, refusal.NotTCP
	case n.end-n.header < tcpSize:
		return Packet{}, refusal.Truncated
	}
	p.bytes, p.tcp = b[:n.end:n.end], n.header
	t := p.bytes[p.tcp:]
	header := int(t[atOffset]>>4) * 4
	switch {
	case header < tcpSize:
		return Packet{}, refusal.BadHeader
	case header > len(t):
		return Packet{}, refusal.Truncated
	}
	p.payload = p.tcp + header
	if err := p.scanOptions(t[tcpSize:header]); err != nil {
		return Packet{}, err
	}
	src, dst := addresses(b)
	p.Source = netip.AddrPortFrom(src, binary.BigEndian.Uint16(t))
	p.Destination = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(t[2:]))
	p.Seq = binary.BigEndian.Uint32(t[atSeq:])
	p.Ack = binary.BigEndian.Uint32(t[atAck:])
	p.Flags = Flags(t[atFlags])
	return p, nil
}

// Payload returns the segment's payload, a part of the packet.
func (p *Packet) Payload() []byte { return p.bytes[p.payload:] }

// Bytes returns the packet without padding behind it.
func (p *Packet) Bytes() []byte { return p.bytes }

// is reports whether of these control bits exactly these are set.
func (p *Packet) is(of, set Flags) bool { return p.Flags&of == set }

// nextOption returns the option that b begins with and what follows it. An option
// without end or an end of options ends the list: its option is nil.
func nextOption(b []byte) (option, rest []byte, err error) {
	switch {
	case len(b) == 0 || b[0] == kindEnd:
		return nil, nil, nil
	case b[0] == kindNOP:
		return b[:1], b[1:], nil
	case len(b) < 2 || b[1] < 2 || int(b[1]) > len(b):
		return nil, nil, refusal.BadOptions
	}
	return b[:b[1]], b[b[1]:], nil
}

func (p *Packet) scanOptions(b []byte) error {
	for {
		option, rest, err := nextOption(b)
		if option == nil {
			return err
		}
		switch {
		case option[0] == kindMD5 || option[0] == kindAO:
			p.signed = true
		case isExperimental(option, exID):
			if len(option) != optionLength || option[5] != token.Version {
				return refusal.BadOption
			}
			if p.Token != 0 {
				return refusal.DuplicateOption
			}
			p.Token = token.Type(option[4])
			if p.Token < token.TypeShortT1 || p.Token > token.TypeT3 {
				return refusal.BadOption
			}
		}
		b = rest
	}
}

// isExperimental reports whether option is the experimental one with this id (RFC 6994).
func isExperimental(option []byte, id uint16) bool {
	return len(option) >= 4 && option[0] == kindExperimental && binary.BigEndian.Uint16(option[2:]) == id
}

func isFastOpen(option []byte) bool {
	return option[0] == kindFastOpen || isExperimental(option, exIDFastOpen)
}
