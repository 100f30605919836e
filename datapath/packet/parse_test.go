package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

func TestParse(t *testing.T) {
	for name, s := range map[string]segment{
		"IPv4":         {seq: 1, ack: 2, flags: ACK | PSH, options: linuxData, payload: []byte("data")},
		"IPv4 options": {extension: unhex("94040000"), seq: 1, flags: SYN, options: linuxSYN},
		"IPv6": {v6: true, seq: 1, ack: 2, flags: ACK | PSH, options: linuxData,
			payload: []byte("data")},
		"destination options": {v6: true, next: 60, extension: unhex("0600010400000000"), flags: SYN},
		"a routing header, done": {v6: true, next: 43,
			extension: unhex("0602040000000000 00000000000000000000000000000000"), flags: SYN},
		"eight headers":       {v6: true, next: 60, extension: extensions(8), flags: SYN},
		"our option":          {seq: 1, flags: SYN, options: marked(1, linuxSYN), payload: fill(68, 'A')},
		"another experiment":  {seq: 1, flags: SYN, options: unhex("fe041234")},
		"half an ExID":        {seq: 1, flags: SYN, options: unhex("fe035401")},
		"ours behind the end": {seq: 1, flags: SYN, options: unhex("00000000 fe06544802010000")},
	} {
		t.Run(name, func(t *testing.T) {
			b := s.build()
			p := mustParse(t, b)
			src, dst := s.ends()
			wantToken := token.Type(0)
			if name == "our option" {
				wantToken = token.TypeShortT1
			}
			if p.Source != src || p.Destination != dst || p.Seq != s.seq || p.Ack != s.ack || p.Flags != s.flags ||
				p.Token != wantToken || !bytes.Equal(p.Payload(), s.payload) || !bytes.Equal(p.Bytes(), b) {
				t.Errorf("got %+v with %q, want %+v", p, p.Payload(), s)
			}
			padded := mustParse(t, append(b, "padding of Ethernet"...))
			if !bytes.Equal(padded.Bytes(), s.build()) {
				t.Error("padding is taken for a part of the packet")
			}
		})
	}
}

// extensions is n destination options headers before TCP.
func extensions(n int) []byte {
	b := bytes.Repeat(unhex("3c00010400000000"), n)
	b[len(b)-8] = 6
	return b
}

func TestParseRefuses(t *testing.T) {
	v4 := segment{seq: 1, flags: SYN, options: linuxSYN}
	v6 := segment{v6: true, seq: 1, flags: SYN, options: linuxSYN}
	set := func(s segment, at int, v ...byte) []byte {
		b := s.build()
		copy(b[at:], v)
		return b
	}
	options := func(s string) []byte { return segment{flags: SYN, options: unhex(s)}.build() }
	for _, c := range []struct {
		name string
		b    []byte
		want refusal.Reason
	}{
		{"nothing", nil, refusal.Truncated},
		{"version 5", set(v4, 0, 0x55), refusal.BadHeader},
		{"IPv4 header of 16 bytes", set(v4, 0, 0x44), refusal.BadHeader},
		{"IPv4 header beyond its length", set(v4, 2, 0, 19), refusal.BadHeader},
		{"IPv4 length of 0", set(v4, 2, 0, 0), refusal.BadHeader},
		{"IPv4 length beyond the buffer", set(v4, 2, 0, 61), refusal.Truncated},
		{"IPv4 without room for TCP", set(v4, 2, 0, 39), refusal.Truncated},
		{"more fragments", set(v4, 6, 0x20, 0), refusal.Fragment},
		{"a later fragment", set(v4, 6, 0, 1), refusal.Fragment},
		{"UDP", set(v4, 9, 17), refusal.NotTCP},
		{"a wrong IPv4 checksum", set(v4, 8, 63), refusal.BadChecksum},
		{"a wrong TCP checksum", set(v4, 20, 0x9c, 0x41), refusal.BadChecksum},
		{"a wrong TCP checksum, IPv6", set(v6, 40, 0x9c, 0x41), refusal.BadChecksum},
		{"another address, IPv6", set(v6, 8, 0x20, 2), refusal.BadChecksum},
		{"IPv6 of 39 bytes", v6.build()[:39], refusal.Truncated},
		{"IPv6 length beyond the buffer", set(v6, 4, 0, 41), refusal.Truncated},
		{"IPv6 without room for TCP", set(v6, 4, 0, 19), refusal.Truncated},
		{"a jumbogram", set(v6, 4, 0, 0), refusal.BadHeader},
		{"IPv6 fragment", segment{v6: true, next: 44, extension: unhex("0600000000000001")}.build(), refusal.Fragment},
		{"an authentication header",
			segment{v6: true, next: 51, extension: unhex("0604000000000000")}.build(), refusal.NotTCP},
		{"hop by hop in second place",
			segment{v6: true, next: 60, extension: unhex("0000010400000000 0600010400000000")}.build(),
			refusal.BadHeader},
		{"on its route", segment{v6: true, next: 43,
			extension: unhex("0602040100000000 00000000000000000000000000000000")}.build(), refusal.Routed},
		{"an extension beyond the packet", segment{v6: true, next: 60, extension: unhex("06ff010400000000")}.build(),
			refusal.Truncated},
		{"nine headers", segment{v6: true, next: 60, extension: extensions(9)}.build(), refusal.TooManyHeaders},
		{"TCP header of 16 bytes", set(v4, 32, 0x40), refusal.BadHeader},
		{"TCP header beyond the packet", set(v4, 32, 0xf0), refusal.Truncated},
		{"an option of no length", options("02000000"), refusal.BadOptions},
		{"an option of length 1", options("02010000"), refusal.BadOptions},
		{"an option beyond the header", options("020505b4"), refusal.BadOptions},
		{"a kind without length", options("01010102"), refusal.BadOptions},
		{"our option, type 0", options("fe06544800010000"), refusal.BadOption},
		{"our option, type 6", options("fe06544806010000"), refusal.BadOption},
		{"our option, version 2", options("fe06544801020000"), refusal.BadOption},
		{"our option, too short", options("fe05544801000000"), refusal.BadOption},
		{"our option, too long", options("fe07544801010000"), refusal.BadOption},
		{"our option twice", options("fe0654480101 fe0654480101"), refusal.DuplicateOption},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.b)
			wantReason(t, err, c.want)
		})
	}
}

// TestParseHopByHop: the one extension header whose number is zero.
func TestParseHopByHop(t *testing.T) {
	b := segment{v6: true, next: 60, extension: unhex("0600050200000000"), flags: SYN}.build()
	b[6] = 0
	if p := mustParse(t, b); p.Flags != SYN {
		t.Error("not parsed")
	}
}

// TestParseTouched: of a packet that is cut anywhere, or has one bit changed, nothing
// is accepted but what no checksum covers.
func TestParseTouched(t *testing.T) {
	eachVersion(t, func(t *testing.T, v6 bool) {
		good := segment{v6: v6, seq: 1, flags: SYN, options: marked(1, linuxSYN), payload: fill(68, 'A')}.build()
		uncovered := []int(nil)
		if v6 {
			uncovered = []int{0, 1, 2, 3, 7} // traffic class, flow label, hop limit
		}
		for n := range good {
			if _, err := Parse(good[:n:n]); err == nil {
				t.Errorf("accepted %d bytes of %d", n, len(good))
			}
		}
		for i := range len(good) * 8 {
			b := bytes.Clone(good)
			b[i/8] ^= 1 << (i % 8)
			if _, err := Parse(b); err == nil && !slices.Contains(uncovered, i/8) {
				t.Errorf("accepted with bit %d of byte %d changed", i%8, i/8)
			}
		}
	})
}

func TestSumIsNaive(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for n := range 200 {
		for _, b := range [][]byte{fill(n, 0xff), fill(n, 0), randomBytes(random, n)} {
			if got, want := fold(sum(0, b)), naive(nil, 0, b); got != want {
				t.Errorf("%x: %#x, want %#x", b, got, want)
			}
		}
	}
	// The carry of the last addition carries again.
	if got := fold(sum(^uint64(0), fill(16, 0xff))); got != 0xffff {
		t.Errorf("%#x", got)
	}
}

func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	return b[:n]
}
