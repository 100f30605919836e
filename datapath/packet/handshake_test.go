package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

var update = flag.Bool("update", false, "write testdata/packets.golden")

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// fill is a token of n bytes, which this package does not look into.
func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// A step is one line of the table: a packet of the kernel, and what it is on the wire.
type step struct {
	name   string
	kernel segment
	wire   segment
	put    func(p *Packet, dst []byte) ([]byte, error)
	take   func(p *Packet, dst []byte) ([]byte, error)
}

// steps are the table of the package comment, with c and s near the numbers' end so
// that they wrap.
func steps(v6 bool) []step {
	const c, s, limit = 5, 0xfffffff0, 1500
	t1, t2, t3 := fill(561, 'A'), fill(52, 'B'), fill(20, 'C') // T1 full may be odd
	cSeq, sSeq := uint32(c), uint32(s)
	hello := []byte("hello, odd")
	return []step{
		{
			"SYN",
			segment{v6: v6, seq: cSeq, flags: SYN, options: linuxSYN},
			segment{v6: v6, seq: cSeq - 561 - 20, flags: SYN, options: marked(2, linuxSYN), payload: t1},
			func(p *Packet, dst []byte) ([]byte, error) { return p.AppendSYN(dst, token.TypeFullT1, t1, limit) },
			(*Packet).AppendStrippedSYN,
		}, {
			"SYN-ACK",
			segment{v6: v6, reverse: true, seq: sSeq, ack: cSeq + 1, flags: SYN | ACK, options: linuxSYN},
			segment{v6: v6, reverse: true, seq: sSeq - 52, ack: cSeq + 1 - 20, flags: SYN | ACK,
				options: marked(3, linuxSYN), payload: t2},
			func(p *Packet, dst []byte) ([]byte, error) { return p.AppendSYNACK(dst, token.TypeShortT2, t2, limit) },
			(*Packet).AppendStrippedSYNACK,
		}, {
			"ACK",
			segment{v6: v6, seq: cSeq + 1, ack: sSeq + 1, flags: ACK, options: linuxData},
			segment{v6: v6, seq: cSeq + 1 - 20, ack: sSeq + 1, flags: ACK, options: marked(5, linuxData), payload: t3},
			func(p *Packet, dst []byte) ([]byte, error) { return p.AppendProof(dst, c+1, t3, limit) },
			(*Packet).AppendStrippedProof,
		}, {
			"first data",
			segment{v6: v6, seq: cSeq + 1, ack: sSeq + 1, flags: ACK | PSH | FIN, options: linuxData, payload: hello},
			segment{v6: v6, seq: cSeq + 1 - 20, ack: sSeq + 1, flags: ACK | PSH | FIN, options: marked(5, linuxData),
				payload: append(bytes.Clone(t3), hello...)},
			func(p *Packet, dst []byte) ([]byte, error) { return p.AppendProof(dst, c+1, t3, limit) },
			(*Packet).AppendStrippedProof,
		}, {
			"urgent data",
			segment{v6: v6, seq: cSeq + 1, ack: sSeq + 1, flags: ACK | URG, urgent: 3, payload: hello},
			segment{v6: v6, seq: cSeq + 1 - 20, ack: sSeq + 1, flags: ACK | URG, urgent: 23, options: marked(5, nil),
				payload: append(bytes.Clone(t3), hello...)},
			func(p *Packet, dst []byte) ([]byte, error) { return p.AppendProof(dst, c+1, t3, limit) },
			(*Packet).AppendStrippedProof,
		}, {
			"reset",
			segment{v6: v6, reverse: true, ack: cSeq + 1, flags: RST | ACK},
			segment{v6: v6, reverse: true, ack: cSeq + 1 - 20, flags: RST | ACK},
			(*Packet).AppendReset,
			(*Packet).AppendStrippedReset,
		}, {
			"reset without ACK",
			segment{v6: v6, reverse: true, seq: sSeq + 1, ack: 7, flags: RST},
			segment{v6: v6, reverse: true, seq: sSeq + 1, ack: 7, flags: RST},
			(*Packet).AppendReset,
			(*Packet).AppendStrippedReset,
		},
	}
}

func eachVersion(t *testing.T, f func(t *testing.T, v6 bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

// TestHandshake: each packet of the table, to the wire and back, byte for byte.
func TestHandshake(t *testing.T) {
	eachVersion(t, func(t *testing.T, v6 bool) {
		for _, step := range steps(v6) {
			t.Run(step.name, func(t *testing.T) {
				p := mustParse(t, step.kernel.build())
				out, err := step.put(&p, []byte("before"))
				if !bytes.HasPrefix(out, []byte("before")) {
					t.Fatal("what was in the buffer is lost")
				}
				wire := out[len("before"):]
				wantPacket(t, wire, err, step.wire)
				back := mustParse(t, wire)
				out, err = step.take(&back, nil)
				wantPacket(t, out, err, step.kernel)
			})
		}
	})
}

func TestGolden(t *testing.T) {
	var b strings.Builder
	for _, v6 := range []bool{false, true} {
		for _, step := range steps(v6) {
			p := mustParse(t, step.kernel.build())
			wire, err := step.put(&p, nil)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s, v6 %v\n  kernel %x\n  wire   %x\n", step.name, v6, step.kernel.build(), wire)
		}
	}
	const file = "testdata/packets.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("the bytes changed\ngot\n%swant\n%s", got, want)
	}
}

// TestFastOpenIsTakenOff: Linux's layouts, with the option of its own and with the
// experimental one. Other experimental options stay.
func TestFastOpenIsTakenOff(t *testing.T) {
	t1 := fill(68, 'A')
	rest := append(bytes.Clone(linuxSYN[:16]), unhex("fe041234")...)
	for name, option := range map[string]string{
		"request":              "2202 0101",
		"cookie of 8":          "220a 0011223344556677 0101",
		"cookie of 6":          "2208 001122334455",
		"experimental request": "fe04f989",
		"experimental cookie":  "fe0cf989 0011223344556677",
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, v6 bool) {
				for _, options := range [][]byte{append(bytes.Clone(rest), unhex(option)...),
					append(unhex(option), rest...)} {
					p := mustParse(t, segment{v6: v6, seq: 1000, flags: SYN, options: options,
						payload: []byte("early data")}.build())
					out, err := p.AppendSYN(nil, token.TypeShortT1, t1, 1500)
					wantPacket(t, out, err, segment{v6: v6, seq: 1000 - 88, flags: SYN, options: marked(1, rest),
						payload: t1})
				}
			})
		})
	}
	// Another client may leave it on.
	p := mustParse(t, segment{seq: 1000 - 88, flags: SYN,
		options: marked(1, unhex("220a0011223344556677 0101 020405b4")), payload: t1}.build())
	out, err := p.AppendStrippedSYN(nil)
	wantPacket(t, out, err, segment{seq: 1000, flags: SYN, options: unhex("020405b4")})
}

// TestOptionAnywhere: a middlebox may have moved our option, or its NOPs.
func TestOptionAnywhere(t *testing.T) {
	for name, c := range map[string]struct{ options, left string }{
		"last":            {"020405b4 fe0654480101 0101", "020405b4"},
		"NOPs before":     {"0101 fe0654480101 020405b4", "0101 020405b4 0000"},
		"no NOPs":         {"fe0654480101 0402", "0402 0000"},
		"end behind":      {"fe0654480101 0000", "0000 0000"},
		"NOPs of another": {"fe0654480101 0101 0101080a0000006400000000", "0101080a0000006400000000"},
		"one NOP":         {"fe0654480101 01 030307 0402", "030307 0402 000000"},
		"three NOPs":      {"030307 fe0654480101 010101", "030307 01"},
	} {
		t.Run(name, func(t *testing.T) {
			p := mustParse(t, segment{seq: 1000 - 88, flags: SYN, options: unhex(c.options),
				payload: fill(68, 'A')}.build())
			out, err := p.AppendStrippedSYN(nil)
			wantPacket(t, out, err, segment{seq: 1000, flags: SYN, options: unhex(c.left)})
		})
	}
}

// TestSACKFollowsAck: they count the same bytes.
func TestSACKFollowsAck(t *testing.T) {
	reset := func(ack uint32, edges string) segment {
		return segment{reverse: true, ack: ack, flags: RST | ACK, options: unhex("0101 0512" + edges)}
	}
	p := mustParse(t, reset(1001, "000003e9 000003ea 0000000a 00000014").build())
	out, err := p.AppendReset(nil)
	wantPacket(t, out, err, reset(981, "000003d5 000003d6 fffffff6 00000000"))
	back := mustParse(t, out)
	out, err = back.AppendStrippedReset(nil)
	wantPacket(t, out, err, reset(1001, "000003e9 000003ea 0000000a 00000014"))
}

func TestProofAlone(t *testing.T) {
	t3 := fill(20, 'C')
	want := segment{seq: 1001 - 20, ack: 7, flags: ACK, options: marked(5, linuxData), payload: t3}
	eachVersion(t, func(t *testing.T, v6 bool) {
		want := want
		want.v6 = v6
		data := segment{v6: v6, seq: 1001, ack: 7, flags: ACK | PSH | FIN | URG, urgent: 0, options: linuxData,
			payload: fill(1448, 'x')}
		keepalive := segment{v6: v6, seq: 1000, ack: 7, flags: ACK, options: linuxData}
		blocks := segment{v6: v6, seq: 1001, ack: 7, flags: ACK,
			options: append(bytes.Clone(linuxData),
				unhex("0101051a 00000001 00000002 00000003 00000004 00000005 00000006")...)}
		for name, s := range map[string]segment{"a full segment": data, "a keepalive": keepalive,
			"SACK blocks": blocks} {
			p := mustParse(t, s.build())
			out, err := p.AppendProofAlone(nil, 1001, t3, 1500)
			if err != nil || !bytes.Equal(out, want.build()) {
				t.Errorf("%s: %v\ngot  %x\nwant %x", name, err, out, want.build())
			}
			_, err = p.AppendProof(nil, 1001, t3, 1500)
			var tooBig *TooBigError
			switch {
			case name == "a keepalive" && !errors.Is(err, refusal.WrongPacket),
				name == "SACK blocks" && !errors.Is(err, refusal.NoRoom),
				name == "a full segment" && !(errors.As(err, &tooBig) && tooBig.Size == len(s.build())+28 &&
					tooBig.Limit == 1500):
				t.Errorf("%s with its proof: %v", name, err)
			}
		}
	})
}

// TestRoomForTheOption: 32 bytes of options leave room, 36 do not.
func TestRoomForTheOption(t *testing.T) {
	room := func(n int) segment { return segment{seq: 1000, flags: SYN, options: fill(n, kindNOP)} }
	p := mustParse(t, room(32).build())
	out, err := p.AppendSYN(nil, token.TypeShortT1, fill(68, 'A'), 1500)
	wantPacket(t, out, err, segment{seq: 1000 - 88, flags: SYN, options: marked(1, fill(32, kindNOP)),
		payload: fill(68, 'A')})
	p = mustParse(t, room(36).build())
	out, err = p.AppendSYN([]byte("kept"), token.TypeShortT1, fill(68, 'A'), 1500)
	wantReason(t, err, refusal.NoRoom)
	if string(out) != "kept" {
		t.Errorf("the buffer is %q after a refusal", out)
	}
	// Linux's fullest SYN, with a Fast Open cookie of 8 bytes, has room: the cookie goes.
	p = mustParse(t, segment{seq: 1000, flags: SYN,
		options: append(bytes.Clone(linuxSYN), unhex("220a00112233445566770101")...)}.build())
	if _, err := p.AppendSYN(nil, token.TypeShortT1, fill(68, 'A'), 1500); err != nil {
		t.Error(err)
	}
}

// TestLimit: exactly the limit fits.
func TestLimit(t *testing.T) {
	eachVersion(t, func(t *testing.T, v6 bool) {
		p := mustParse(t, segment{v6: v6, seq: 1000, ack: 7, flags: SYN | ACK, options: linuxSYN}.build())
		header := len(p.Bytes()) + 8
		if _, err := p.AppendSYNACK(nil, token.TypeFullT2, fill(1280-header, 'B'), 1280); err != nil {
			t.Error(err)
		}
		_, err := p.AppendSYNACK(nil, token.TypeFullT2, fill(1281-header, 'B'), 1280)
		var tooBig *TooBigError
		if !errors.As(err, &tooBig) || *tooBig != (TooBigError{1281, 1280}) {
			t.Errorf("got %v, want both numbers", err)
		}
		if v6 && 1280-header != token.FullT2Size+token.MaxStatement {
			t.Errorf("%d bytes are left for T2 full, and the largest has %d", 1280-header,
				token.FullT2Size+token.MaxStatement)
		}
		_, err = p.AppendSYNACK(nil, token.TypeFullT2, fill(65536-header, 'B'), 1<<20)
		if !errors.As(err, &tooBig) || *tooBig != (TooBigError{65536, 65535}) {
			t.Errorf("got %v, want the largest of all packets", err)
		}
	})
}

func TestSignedSegmentsStay(t *testing.T) {
	for name, option := range map[string][]byte{
		"MD5": append(unhex("1312"), append(fill(16, 0), 1, 1)...),
		"AO":  append(unhex("1d100000"), fill(12, 0)...),
	} {
		p := mustParse(t, segment{flags: SYN, options: option}.build())
		_, err := p.AppendSYN(nil, token.TypeShortT1, fill(68, 'A'), 1500)
		if !errors.Is(err, refusal.Signed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWrongPacket: an operation takes its packets and no others.
func TestWrongPacket(t *testing.T) {
	t3 := fill(20, 'C')
	operations := map[string]func(p *Packet) error{
		"SYN":        func(p *Packet) error { _, err := p.AppendSYN(nil, 1, nil, 1500); return err },
		"SYN in":     func(p *Packet) error { _, err := p.AppendStrippedSYN(nil); return err },
		"SYN-ACK":    func(p *Packet) error { _, err := p.AppendSYNACK(nil, 3, nil, 1500); return err },
		"SYN-ACK in": func(p *Packet) error { _, err := p.AppendStrippedSYNACK(nil); return err },
		"proof":      func(p *Packet) error { _, err := p.AppendProof(nil, 0, t3, 1500); return err },
		"alone":      func(p *Packet) error { _, err := p.AppendProofAlone(nil, 0, t3, 1500); return err },
		"proof in":   func(p *Packet) error { _, err := p.AppendStrippedProof(nil); return err },
		"reset":      func(p *Packet) error { _, err := p.AppendReset(nil); return err },
		"reset in":   func(p *Packet) error { _, err := p.AppendStrippedReset(nil); return err },
	}
	for _, c := range []struct {
		s       segment
		allowed string
	}{
		{segment{flags: SYN}, "SYN"},
		{segment{flags: SYN, options: marked(1, nil)}, "SYN in"},
		{segment{flags: SYN | ACK}, "SYN-ACK"},
		{segment{flags: SYN | ACK, payload: []byte("data")}, ""},
		{segment{flags: SYN | ACK, options: marked(3, nil)}, "SYN-ACK in"},
		{segment{flags: ACK}, "proof, alone"},
		{segment{flags: ACK | FIN | PSH}, "proof, alone"},
		{segment{flags: ACK, seq: 1}, "alone"},
		{segment{flags: ACK, options: marked(5, nil), payload: t3}, "proof in"},
		{segment{flags: ACK, options: marked(5, nil), payload: t3[:19]}, ""},
		{segment{flags: ACK, options: marked(1, nil), payload: t3}, ""},
		{segment{flags: RST}, "reset, reset in"},
		{segment{flags: RST | ACK}, "reset, reset in"},
		{segment{flags: RST | ACK, options: marked(5, nil)}, ""},
		{segment{flags: RST | SYN}, ""},
		{segment{flags: SYN | FIN}, ""},
		{segment{flags: 0}, ""},
		{segment{flags: FIN}, ""},
	} {
		p := mustParse(t, c.s.build())
		allowed := strings.Split(c.allowed, ", ")
		for name, f := range operations {
			err := f(&p)
			want := slices.Contains(allowed, name)
			if want && err != nil || !want && !errors.Is(err, refusal.WrongPacket) {
				t.Errorf("flags %#x, token %d, %d bytes, %s: %v", p.Flags, p.Token, len(p.Payload()), name, err)
			}
		}
	}
}

// TestUrgentBeyond: a pointer that cannot be moved is not wrapped.
func TestUrgentBeyond(t *testing.T) {
	p := mustParse(t, segment{seq: 1, flags: ACK | URG, urgent: 65516}.build())
	_, err := p.AppendProof(nil, 1, fill(20, 'C'), 1500)
	wantReason(t, err, refusal.NoRoom)
	p = mustParse(t, segment{flags: ACK | URG, urgent: 19, options: marked(5, nil), payload: fill(20, 'C')}.build())
	_, err = p.AppendStrippedProof(nil)
	wantReason(t, err, refusal.NoRoom)
}

func TestPacketPathDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	none := func(name string, b []byte, operation func(*Packet, []byte) ([]byte, error)) {
		var p Packet // it escapes only because operation is a value
		if n := testing.AllocsPerRun(100, func() {
			var err error
			if p, err = Parse(b); err == nil {
				_, err = operation(&p, buf)
			}
			if err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for _, v6 := range []bool{false, true} {
		for _, step := range steps(v6) {
			none(step.name, step.kernel.build(), step.put)
			none(step.name+", back", step.wire.build(), step.take)
		}
		none("refusal", segment{v6: v6, flags: RST}.build(), func(p *Packet, dst []byte) ([]byte, error) {
			if _, err := p.AppendStrippedSYN(dst); !errors.Is(err, refusal.WrongPacket) {
				return nil, err
			}
			return dst, nil
		})
	}
}

func BenchmarkProof(b *testing.B) {
	buf := make([]byte, 0, 4096)
	t3 := fill(20, 'C')
	for _, size := range []int{0, 1400} {
		packet := segment{seq: 1, flags: ACK, options: linuxData, payload: fill(size, 'x')}.build()
		b.Run(fmt.Sprintf("%d bytes", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := Parse(packet)
				if err == nil {
					_, err = p.AppendProof(buf, 1, t3, 1500)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
