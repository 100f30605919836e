package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"thole/datapath/refusal"
)

// An icmpError is what tests make ICMP errors of.
type icmpError struct {
	v6        bool
	typ, code byte
	field     uint32 // the second word: an MTU, a pointer
	quote     []byte
}

func (e icmpError) build() []byte {
	src, protocol := server4.Addr(), byte(1)
	dst := client4.Addr()
	if e.v6 {
		src, dst, protocol = server6.Addr(), client6.Addr(), 58
	}
	m := binary.BigEndian.AppendUint32([]byte{e.typ, e.code, 0, 0}, e.field)
	m = append(m, e.quote...)
	b := append(ipHeader(e.v6, protocol, src, dst, nil, len(m)), m...)
	at := len(b) - len(m)
	ip := b
	if !e.v6 {
		ip = nil
	}
	binary.BigEndian.PutUint16(b[at+2:], ^naive(ip, protocol, b[at:]))
	return b
}

// TestQuote: the error's quote of a SYN on the wire becomes that of the kernel's own.
func TestQuote(t *testing.T) {
	eachVersion(t, func(t *testing.T, v6 bool) {
		header, typ, code := 20, byte(3), byte(4) // fragmentation needed
		if v6 {
			header, typ, code = 40, 2, 0 // packet too big
		}
		const c, shift = 5, 68 + 20
		seq := uint32(c)
		wire := segment{v6: v6, seq: seq - shift, flags: SYN, options: marked(1, linuxSYN), payload: fill(68, 'A')}
		src, dst := wire.ends()
		for name, n := range map[string]int{"all": len(wire.build()), "8 bytes of TCP": header + 8,
			"an odd length": header + 33} {
			quoted := wire.build()[:n]
			e := icmpError{v6: v6, typ: typ, code: code, field: 1280, quote: quoted}
			q, err := ParseQuote(append(e.build(), "padding"...))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if q.Source != src || q.Destination != dst || q.Seq != wire.seq || !bytes.Equal(q.bytes, e.build()) {
				t.Errorf("%s: %+v", name, q)
			}
			e.quote = bytes.Clone(quoted)
			binary.BigEndian.PutUint32(e.quote[header+4:], c)
			if got := q.AppendShifted(nil, shift); !bytes.Equal(got, e.build()) {
				t.Errorf("%s: got\n%x, want\n%x", name, got, e.build())
			}
			if back, err := ParseQuote(q.AppendShifted(nil, shift)); err != nil || back.Seq != c {
				t.Errorf("%s: %v, %+v", name, err, back)
			}
		}
	})
}

func TestQuoteRefuses(t *testing.T) {
	tcp4, tcp6 := segment{flags: SYN}.build(), segment{v6: true, flags: SYN}.build()
	set := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	error4 := icmpError{typ: 3, quote: tcp4}.build()
	error6 := icmpError{v6: true, typ: 1, quote: tcp6}.build()
	for _, c := range []struct {
		name string
		b    []byte
		want refusal.Reason
	}{
		{"TCP", tcp4, refusal.NotError},
		{"ICMPv6 over IPv4", set(error4, 9, 58), refusal.NotError},
		{"ICMP over IPv6", set(error6, 6, 1), refusal.NotError},
		{"an echo", icmpError{typ: 8, quote: tcp4}.build(), refusal.NotError},
		{"a redirect", icmpError{typ: 5, quote: tcp4}.build(), refusal.NotError},
		{"an ICMPv6 echo", icmpError{v6: true, typ: 128, quote: tcp6}.build(), refusal.NotError},
		{"type 0 of ICMPv6", icmpError{v6: true, typ: 0, quote: tcp6}.build(), refusal.NotError},
		{"half a header", set(error4, 2, 0, 27)[:27], refusal.Truncated},
		{"no quote", icmpError{typ: 3}.build(), refusal.BadQuote},
		{"7 bytes of TCP", icmpError{typ: 3, quote: tcp4[:27]}.build(), refusal.BadQuote},
		{"7 bytes of TCP, IPv6", icmpError{v6: true, typ: 1, quote: tcp6[:47]}.build(), refusal.BadQuote},
		{"IPv6 inside IPv4", icmpError{typ: 3, quote: tcp6}.build(), refusal.BadQuote},
		{"IPv4 inside IPv6", icmpError{v6: true, typ: 1, quote: tcp4}.build(), refusal.BadQuote},
		{"UDP", icmpError{typ: 3, quote: set(tcp4, 9, 17)}.build(), refusal.BadQuote},
		{"a later fragment", icmpError{typ: 3, quote: set(tcp4, 6, 0, 9)}.build(), refusal.BadQuote},
		{"a quoted header beyond all", icmpError{typ: 3, quote: set(tcp4[:28], 0, 0x4f)}.build(), refusal.BadQuote},
		{"a quoted extension beyond all", icmpError{v6: true, typ: 1, quote: set(tcp6, 6, 60, 64, 0, 0)}.build(),
			refusal.BadQuote},
		{"a wrong checksum", set(error4, 24, 1), refusal.BadChecksum},
		{"a wrong checksum of IPv6", set(error6, 44, 1), refusal.BadChecksum},
		{"a wrong checksum of IPv4", set(error4, 8, 1), refusal.BadChecksum},
		{"an error that is a fragment", set(error4, 6, 0x20), refusal.Fragment},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseQuote(c.b)
			wantReason(t, err, c.want)
		})
	}
	if _, err := Parse(error4); !errors.Is(err, refusal.NotTCP) {
		t.Errorf("as TCP: %v", err)
	}
}

func TestQuoteDoesNotAllocate(t *testing.T) {
	b := icmpError{v6: true, typ: 1, quote: segment{v6: true, flags: SYN}.build()}.build()
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		q, err := ParseQuote(b)
		if err != nil {
			t.Error(err)
		}
		q.AppendShifted(buf, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
