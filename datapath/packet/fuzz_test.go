package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

// FuzzPacket: no bytes make the parser panic or read beyond them, and what every
// operation makes of an accepted packet is a packet again, with right checksums by a
// naive count, that the operation for the way back brings to where it came from.
func FuzzPacket(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, step := range steps(v6) {
			f.Add(step.kernel.build(), uint16(68))
			f.Add(step.wire.build(), uint16(561))
		}
	}
	f.Add(segment{v6: true, next: 60, extension: extensions(8), flags: SYN}.build(), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		b = bytes.Clone(b)[:len(b):len(b)]
		before := bytes.Clone(b)
		if _, err := Parse(b); err != nil && !errors.As(err, new(refusal.Reason)) {
			t.Errorf("%v is no Reason", err)
		}
		if !bytes.Equal(b, before) {
			t.Error("the parser wrote to the packet")
		}
		p, err := parse(b)
		if err != nil {
			return
		}
		repair(p)
		if p, err = Parse(b); err != nil {
			t.Fatalf("refused with right checksums: %v", err)
		}
		payload := fill(int(n)%1200, 'T')
		t3 := fill(token.T3Size, '3')
		there(t, p, (*Packet).AppendStrippedSYN, func(dst []byte) ([]byte, error) {
			return p.AppendSYN(dst, token.TypeFullT1, payload, maxPacket)
		})
		there(t, p, (*Packet).AppendStrippedSYNACK, func(dst []byte) ([]byte, error) {
			return p.AppendSYNACK(dst, token.TypeFullT2, payload, maxPacket)
		})
		there(t, p, (*Packet).AppendStrippedProof, func(dst []byte) ([]byte, error) {
			return p.AppendProof(dst, p.Seq, t3, maxPacket)
		})
		there(t, p, (*Packet).AppendStrippedReset, p.AppendReset)
		there(t, p, nil, func(dst []byte) ([]byte, error) { return p.AppendProofAlone(dst, p.Seq+1, t3, maxPacket) })
		there(t, p, nil, p.AppendStrippedSYN)
		there(t, p, nil, p.AppendStrippedSYNACK)
		there(t, p, nil, p.AppendStrippedProof)
		there(t, p, nil, p.AppendStrippedReset)
	})
}

// there applies an operation to p and, if there is one, its inverse.
func there(t *testing.T, p Packet, back func(*Packet, []byte) ([]byte, error), operation func([]byte) ([]byte, error)) {
	t.Helper()
	out, err := operation([]byte("kept"))
	if string(out[:4]) != "kept" || err != nil && len(out) != 4 {
		t.Fatalf("%v: the buffer is %q", err, out)
	}
	if err != nil {
		return
	}
	wire := wantRight(t, out[4:])
	if wire.Source != p.Source || wire.Destination != p.Destination {
		t.Error("another connection's packet")
	}
	if back == nil {
		return
	}
	out, err = back(&wire, nil)
	if err != nil {
		t.Fatalf("%x does not come back: %v", wire.Bytes(), err)
	}
	wantRight(t, out)
	early := p.Flags&SYN != 0 && len(p.Payload()) > 0
	if !early && !fastOpen(p) && !bytes.Equal(out, p.Bytes()) {
		t.Errorf("there and back: got\n%x, want\n%x", out, p.Bytes())
	}
}

func fastOpen(p Packet) bool {
	b := p.bytes[p.tcp+tcpSize : p.payload]
	for {
		option, rest, _ := nextOption(b)
		if option == nil {
			return false
		}
		if isFastOpen(option) {
			return true
		}
		b = rest
	}
}

func wantRight(t *testing.T, b []byte) Packet {
	t.Helper()
	p, err := Parse(b)
	if err != nil {
		t.Fatalf("wrote %x: %v", b, err)
	}
	if len(p.Bytes()) != len(b) || naive(b, 6, b[p.tcp:]) != 0xffff {
		t.Fatalf("wrote %x with wrong lengths or checksum", b)
	}
	return p
}

// repair writes right checksums into p's bytes, as a sender would.
func repair(p Packet) {
	header := p.bytes
	if header[0]>>4 == 4 {
		header = header[:int(header[0]&0xf)*4]
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], ^naive(nil, 0, header))
	}
	t := p.bytes[p.tcp:]
	t[16], t[17] = 0, 0
	binary.BigEndian.PutUint16(t[16:], ^naive(p.bytes, 6, t))
}

func FuzzQuote(f *testing.F) {
	f.Add(icmpError{typ: 3, code: 4, quote: segment{flags: SYN}.build()}.build(), uint32(88))
	f.Add(icmpError{v6: true, typ: 2, quote: segment{v6: true, flags: SYN}.build()}.build(), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, d uint32) {
		b = bytes.Clone(b)[:len(b):len(b)]
		if _, err := ParseQuote(b); err != nil && !errors.As(err, new(refusal.Reason)) {
			t.Errorf("%v is no Reason", err)
		}
		q, err := parseQuote(b)
		if err != nil {
			return
		}
		if q.bytes[0]>>4 == 4 {
			header := q.bytes[:int(q.bytes[0]&0xf)*4]
			header[10], header[11] = 0, 0
			binary.BigEndian.PutUint16(header[10:], ^naive(nil, 0, header))
		}
		there, err := ParseQuote(q.AppendShifted(nil, d))
		if err != nil || there.Seq != q.Seq+d || there.Source != q.Source || there.Destination != q.Destination {
			t.Fatalf("%v: got %+v, want %+v", err, there, q)
		}
		back := there.AppendShifted(nil, -d)
		b = q.bytes // but for the checksum, which was not looked at
		b[q.icmp+2], b[q.icmp+3] = back[q.icmp+2], back[q.icmp+3]
		if !bytes.Equal(back, b) {
			t.Errorf("there and back: got\n%x, want\n%x", back, b)
		}
	})
}
