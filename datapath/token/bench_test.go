package token

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
)

func BenchmarkMAC(b *testing.B) {
	h := newHandshake(b)
	m1, m2 := h.keys.M1(&h.x), h.keys.M2(&h.x)
	m3 := h.keys.M3(&h.x, m2)
	for name, f := range map[string]func() error{
		"M1": func() error { return h.keys.VerifyM1(&h.x, m1) },
		"M2": func() error { return h.keys.VerifyM2(&h.x, m2) },
		"M3": func() error { return h.keys.VerifyM3(&h.x, m2, m3) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	bytes := h.x.bytes()
	b.Run("crypto-hmac", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := hmac.New(sha256.New, h.keys.k3[:])
			m.Write(bytes[:])
			m.Sum(nil)
		}
	})
	b.Run("crypto-hmac-kept", func(b *testing.B) {
		m := hmac.New(sha256.New, h.keys.k3[:])
		var out [32]byte
		b.ReportAllocs()
		for b.Loop() {
			m.Reset()
			m.Write(bytes[:])
			m.Sum(out[:0])
		}
	})
}

func BenchmarkToken(b *testing.B) {
	h := newHandshake(b)
	checker := Checker{newAuthority(h.c, h.s), h.s.key.Public().(ed25519.PublicKey)}
	for name, f := range map[string]func() error{
		"ParseShortT1":   func() error { _, err := ParseShortT1(h.shortT1); return err },
		"ParseStatement": func() error { _, err := ParseStatement(h.c.own.Statement.Bytes()); return err },
		"Check":          func() error { _, err := checker.Check(h.c.own.Statement, somewhere, begin); return err },
		"Keys":           func() error { _, err := h.s.own.ServerKeys(h.c.own.Statement); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
