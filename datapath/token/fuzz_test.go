package token

import (
	"bytes"
	"crypto/ed25519"
	"testing"
)

func FuzzStatement(f *testing.F) {
	f.Add(client(f).own.Statement.Bytes())
	f.Add(server(f).own.Statement.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStatement(b)
		if err != nil {
			if s != nil {
				t.Error("refused, and a statement all the same")
			}
			return
		}
		again := append(s.appendBody(nil), b[len(b)-ed25519.SignatureSize:]...)
		if !bytes.Equal(again, b) || !bytes.Equal(s.Bytes(), b) {
			t.Errorf("accepted %x, encoded again %x", b, again)
		}
		if err := Fits(s.Labels, s.Certificate); err != nil {
			t.Errorf("accepted what does not fit: %v", err)
		}
	})
}

// FuzzToken: what one parser accepts has one encoding, and no other parser accepts it.
func FuzzToken(f *testing.F) {
	h := newHandshake(f)
	for _, b := range [][]byte{h.shortT1, h.fullT1, h.shortT2, h.fullT2, h.proof} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		accepted := 0
		same := func(again []byte) {
			accepted++
			if !bytes.Equal(again, b) {
				t.Errorf("accepted %x, encoded again %x", b, again)
			}
		}
		if v, err := ParseShortT1(b); err == nil {
			same(v.Append(nil))
		}
		if v, err := ParseFullT1(b); err == nil {
			same(v.Append(nil))
		}
		if v, err := ParseShortT2(b); err == nil {
			same(v.Append(nil))
		}
		if v, err := ParseFullT2(b); err == nil {
			same(v.Append(nil))
		}
		if v, err := ParseT3(b); err == nil {
			same(v.Append(nil))
		}
		if accepted > 1 {
			t.Errorf("%d parsers accept %x", accepted, b)
		}
	})
}
