package token

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"thole/datapath/refusal"
)

var update = flag.Bool("update", false, "write testdata/tokens.golden")

// eachTouched calls f with b with each bit changed, cut at each length, and a byte longer.
func eachTouched(b []byte, f func(what string, b []byte)) {
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		f(fmt.Sprintf("bit %d of byte %d changed", i%8, i/8), c)
	}
	for n := range len(b) {
		f(fmt.Sprintf("%d bytes of %d", n, len(b)), bytes.Clone(b[:n]))
	}
	f("a byte more", append(bytes.Clone(b), 0))
}

// A handshake is what two nodes hold that know each other, and every token of it.
type handshake struct {
	c, s                                    *node
	keys                                    *Keys
	x                                       Exchange
	shortT1, fullT1, shortT2, fullT2, proof []byte
}

func newHandshake(t testing.TB) *handshake {
	h := &handshake{c: client(t), s: server(t), x: testExchange()}
	keys, err := h.s.own.ServerKeys(h.c.own.Statement)
	h.keys = mustKeys(t, keys, err)
	c, s := h.c.own.Statement, h.s.own.Statement
	m2 := h.keys.M2(&h.x)
	h.shortT1 = (&ShortT1{Client: c.Fingerprint(), Server: s.Fingerprint(), Nonce: h.x.ClientNonce,
		M1: h.keys.M1(&h.x)}).Append(nil)
	h.fullT1 = (&FullT1{Nonce: h.x.ClientNonce, Statement: c.Bytes()}).Append(nil)
	h.shortT2 = (&ShortT2{Nonce: h.x.ServerNonce, Server: s.Fingerprint(), M2: m2}).Append(nil)
	h.fullT2 = (&FullT2{Nonce: h.x.ServerNonce, Statement: s.Bytes(), M2: m2}).Append(nil)
	h.proof = (&T3{M3: h.keys.M3(&h.x, m2)}).Append(nil)
	return h
}

// The accept functions do what a node does with a token: parse it, find or check the
// statement, verify the MAC.

func (h *handshake) acceptShortT1(b []byte) error {
	t1, err := ParseShortT1(b)
	if err != nil {
		return err
	}
	if t1.Client != h.c.own.Statement.Fingerprint() || t1.Server != h.s.own.Statement.Fingerprint() {
		return fmt.Errorf("unknown statement")
	}
	x := Exchange{Protocol: 6, ClientNonce: t1.Nonce}
	return h.keys.VerifyM1(&x, t1.M1)
}

func (h *handshake) acceptStatement(b []byte) (*Statement, error) {
	s, err := ParseStatement(b)
	if err != nil {
		return nil, err
	}
	checker := Checker{newAuthority(h.c, h.s), nil}
	_, err = checker.Check(s, somewhere, begin)
	return s, err
}

// acceptFullT1 answers as S does, and gives the answer to C: only C can tell that the
// nonce was changed.
func (h *handshake) acceptFullT1(b []byte) error {
	t1, err := ParseFullT1(b)
	if err != nil {
		return err
	}
	s, err := h.acceptStatement(t1.Statement)
	if err != nil {
		return err
	}
	keys, err := h.s.own.ServerKeys(s)
	if err != nil {
		return err
	}
	x := h.x
	x.ClientNonce = t1.Nonce
	return h.keys.VerifyM2(&h.x, keys.M2(&x))
}

func (h *handshake) acceptShortT2(b []byte) error {
	t2, err := ParseShortT2(b)
	if err != nil {
		return err
	}
	if t2.Server != h.s.own.Statement.Fingerprint() {
		return fmt.Errorf("unknown statement")
	}
	x := h.x
	x.ServerNonce = t2.Nonce
	return h.keys.VerifyM2(&x, t2.M2)
}

func (h *handshake) acceptFullT2(b []byte) error {
	t2, err := ParseFullT2(b)
	if err != nil {
		return err
	}
	s, err := h.acceptStatement(t2.Statement)
	if err != nil {
		return err
	}
	keys, err := h.c.own.ClientKeys(s)
	if err != nil {
		return err
	}
	x := h.x
	x.ServerNonce = t2.Nonce
	return keys.VerifyM2(&x, t2.M2)
}

func (h *handshake) acceptProof(b []byte) error {
	t3, err := ParseT3(b)
	if err != nil {
		return err
	}
	return h.keys.VerifyM3(&h.x, h.keys.M2(&h.x), t3.M3)
}

func TestTokensTouched(t *testing.T) {
	h := newHandshake(t)
	for _, c := range []struct {
		name   string
		token  []byte
		size   int
		accept func([]byte) error
	}{
		{"T1 short", h.shortT1, ShortT1Size, h.acceptShortT1},
		{"T1 full", h.fullT1, FullT1Size + len(h.c.own.Statement.Bytes()), h.acceptFullT1},
		{"T2 short", h.shortT2, ShortT2Size, h.acceptShortT2},
		{"T2 full", h.fullT2, FullT2Size + len(h.s.own.Statement.Bytes()), h.acceptFullT2},
		{"T3", h.proof, T3Size, h.acceptProof},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.token) != c.size {
				t.Errorf("%d bytes, want %d", len(c.token), c.size)
			}
			if err := c.accept(c.token); err != nil {
				t.Fatalf("the good one: %v", err)
			}
			eachTouched(c.token, func(what string, b []byte) {
				if c.accept(b) == nil {
					t.Errorf("accepted with %s", what)
				}
			})
		})
	}
}

func TestTokenIsRefused(t *testing.T) {
	h := newHandshake(t)
	parsers := map[Type]func([]byte) error{
		TypeShortT1: func(b []byte) error { _, err := ParseShortT1(b); return err },
		TypeFullT1:  func(b []byte) error { _, err := ParseFullT1(b); return err },
		TypeShortT2: func(b []byte) error { _, err := ParseShortT2(b); return err },
		TypeFullT2:  func(b []byte) error { _, err := ParseFullT2(b); return err },
		TypeT3:      func(b []byte) error { _, err := ParseT3(b); return err },
	}
	for _, b := range [][]byte{h.shortT1, h.fullT1, h.shortT2, h.fullT2, h.proof} {
		of := Type(b[1])
		for typ, parse := range parsers {
			if err := parse(b); typ == of && err != nil || typ != of && !errors.Is(err, refusal.BadType) {
				t.Errorf("type %d as %d: %v", of, typ, err)
			}
		}
		for _, c := range []struct {
			at   int
			want refusal.Reason
		}{{0, refusal.BadVersion}, {1, refusal.BadType}, {2, refusal.BadCapabilities}, {3, refusal.BadCapabilities}} {
			changed := bytes.Clone(b)
			changed[c.at] ^= 0x40
			wantReason(t, parsers[of](changed), c.want)
		}
		wantReason(t, parsers[of](b[:3]), refusal.BadLength)
		wantReason(t, parsers[of](b[:len(b)-1]), refusal.BadLength)
		wantReason(t, parsers[of](append(bytes.Clone(b), 0)), refusal.BadLength)
	}
}

// TestGolden holds every byte. The file changes only together with Version.
func TestGolden(t *testing.T) {
	h := newHandshake(t)
	var b strings.Builder
	write := func(name string, v []byte) { fmt.Fprintf(&b, "%s %s\n", name, hex.EncodeToString(v)) }
	write("statement-c", h.c.own.Statement.Bytes())
	write("statement-s", h.s.own.Statement.Bytes())
	write("k1", h.keys.k1[:])
	write("k2", h.keys.k2[:])
	write("k3", h.keys.k3[:])
	write("t1-short", h.shortT1)
	write("t1-full", h.fullT1)
	write("t2-short", h.shortT2)
	write("t2-full", h.fullT2)
	write("t3", h.proof)
	const file = "testdata/tokens.golden"
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

// Refusing and parsing a token allocates nothing; nor do the MACs.
func TestPacketPathDoesNotAllocate(t *testing.T) {
	h := newHandshake(t)
	m1, m2 := h.keys.M1(&h.x), h.keys.M2(&h.x)
	m3 := h.keys.M3(&h.x, m2)
	wrong := MAC{}
	buf := make([]byte, 0, 2048)
	var err error
	for name, f := range map[string]func(){
		"ParseShortT1": func() { _, err = ParseShortT1(h.shortT1) },
		"ParseFullT1":  func() { _, err = ParseFullT1(h.fullT1) },
		"ParseFullT2":  func() { _, err = ParseFullT2(h.fullT2) },
		"ParseT3":      func() { _, err = ParseT3(h.proof) },
		"refusal":      func() { _, err = ParseT3(h.shortT1) },
		"VerifyM1":     func() { err = h.keys.VerifyM1(&h.x, m1) },
		"VerifyM2":     func() { err = h.keys.VerifyM2(&h.x, m2) },
		"VerifyM3":     func() { err = h.keys.VerifyM3(&h.x, m2, m3) },
		"wrong MAC":    func() { err = h.keys.VerifyM3(&h.x, m2, wrong) },
		"Append":       func() { buf = (&FullT1{Statement: h.c.own.Statement.Bytes()}).Append(buf[:0]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	_ = err
}
