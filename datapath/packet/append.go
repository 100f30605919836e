package packet

import (
	"encoding/binary"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

// An edit is what becomes of a packet. Our option never stays, nor does Fast Open's.
type edit struct {
	mark     token.Type // our option, first; 0: none
	bare     bool       // of other options only the timestamps stay
	front    []byte     // comes before the payload
	payload  []byte
	seq, ack uint32
	flags    Flags
	urgent   int // added to the urgent pointer: it counts from seq
	limit    int // bytes of the IP packet
}

// append appends p, edited. Of dst nothing is lost when it fails.
func (p *Packet) append(dst []byte, e edit) ([]byte, error) {
	if p.signed {
		return dst, refusal.Signed
	}
	out := append(dst, p.bytes[:p.tcp+tcpSize]...)
	out, err := p.appendOptions(out, &e)
	if err != nil {
		return dst, err
	}
	header := len(out) - len(dst) - p.tcp
	out = append(out, e.front...)
	out = append(out, e.payload...)

	packet := out[len(dst):]
	if limit := min(e.limit, maxPacket); len(packet) > limit {
		return dst, &TooBigError{Size: len(packet), Limit: limit}
	}
	t := packet[p.tcp:]
	if e.flags&URG != 0 {
		urgent := int(binary.BigEndian.Uint16(t[atUrgent:])) + e.urgent
		if urgent < 0 || urgent > 0xffff {
			return dst, refusal.NoRoom
		}
		binary.BigEndian.PutUint16(t[atUrgent:], uint16(urgent))
	}
	binary.BigEndian.PutUint32(t[atSeq:], e.seq)
	binary.BigEndian.PutUint32(t[atAck:], e.ack)
	t[atOffset] = byte(header/4)<<4 | t[atOffset]&0xf
	t[atFlags] = byte(e.flags)
	shiftSACK(t[tcpSize:header], e.ack-p.Ack)
	finish(packet)
	t[atChecksum], t[atChecksum+1] = 0, 0
	binary.BigEndian.PutUint16(t[atChecksum:], ^fold(sum(pseudo(packet, protocolTCP, len(t)), t)))
	return out, nil
}

// appendOptions appends the options of p, edited, and fills them to a multiple of four.
func (p *Packet) appendOptions(out []byte, e *edit) ([]byte, error) {
	start := len(out)
	if e.mark != 0 {
		out = append(out, kindExperimental, optionLength, exID>>8, exID&0xff, byte(e.mark), token.Version, kindNOP,
			kindNOP)
	}
	gone := 0 // bytes left out since the last option that stays
	b := p.bytes[p.tcp+tcpSize : p.payload]
	for {
		option, rest, _ := nextOption(b) // no error: Parse read them all
		if option == nil {
			break
		}
		b = rest
		switch {
		case e.bare && option[0] == kindTimestamps:
			out = append(append(out, kindNOP, kindNOP), option...)
		case e.bare:
		case isExperimental(option, exID) || isFastOpen(option):
			gone = len(option)
		case option[0] == kindNOP && gone%4 != 0: // its filling
			gone++
		default:
			out, gone = append(out, option...), 0
		}
	}
	if !e.bare {
		out = append(out, b...) // the end of options, and what fills them
	}
	for (len(out)-start)%4 != 0 {
		out = append(out, kindEnd)
	}
	if len(out)-start > maxOptions {
		return nil, refusal.NoRoom
	}
	return out, nil
}

// shiftSACK adds d to the edges of SACK blocks: they count the same bytes as ack.
func shiftSACK(options []byte, d uint32) {
	if d == 0 {
		return
	}
	for {
		option, rest, _ := nextOption(options)
		if option == nil {
			return
		}
		if option[0] == kindSACK {
			for edges := option[2:]; len(edges) >= 4; edges = edges[4:] {
				binary.BigEndian.PutUint32(edges, binary.BigEndian.Uint32(edges)+d)
			}
		}
		options = rest
	}
}
