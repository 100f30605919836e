package pki

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

// verifier is how a Trust serves the handshake.
type verifier struct{ *Trust }

func (v verifier) Verify(der []byte, now time.Time) (token.Identity, error) {
	id, err := v.Trust.Verify(der, now)
	if err != nil {
		return token.Identity{}, err
	}
	return token.Identity{PublicKey: id.PublicKey, NotAfter: id.NotAfter, Rights: id}, nil
}

// TestStatements: what one node of a fleet signs, the other believes as far as the
// certificate goes, and no longer than it is not revoked.
func TestStatements(t *testing.T) {
	f := newFleet(t)
	f.join("web-1")
	f.join("db-1")
	web, db := f.load("web-1"), f.load("db-1")
	say := func(labels map[string]string) *token.Statement {
		t.Helper()
		ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
		f.must(err)
		own, err := token.Sign(token.Content{NotBefore: now, Lifetime: time.Minute,
			Certificate: web.Identity.Certificate, Labels: labels}, web.Key, ephemeral)
		f.must(err)
		return own.Statement
	}
	home, away := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	checker := token.Checker{Verifier: verifier{db.Trust}, Self: db.Identity.PublicKey}
	claim, err := checker.Check(say(map[string]string{"app": "web"}), home, now)
	f.must(err)
	if want := map[string]string{"app": "web", "team": "a", "thole/node": "web-1"}; !maps.Equal(claim.Labels, want) {
		t.Errorf("got %v, want %v", claim.Labels, want)
	}
	_, err = checker.Check(say(map[string]string{"app": "api"}), home, now)
	want(t, err, ErrNotGranted)
	want(t, err, refusal.NotGranted)
	_, err = checker.Check(say(map[string]string{"app": "web"}), away, now)
	want(t, err, refusal.WrongAddress)

	f.must(f.install("db-1", Delivery{Lists: f.revoke("ca", "web-1")}))
	checker.Verifier = verifier{f.load("db-1").Trust}
	_, err = checker.Check(say(map[string]string{"app": "web"}), home, now)
	want(t, err, ErrRevoked)
	want(t, err, refusal.BadCertificate)
}

// TestRoomForLabels: beside the largest certificate there are 274 bytes for labels.
func TestRoomForLabels(t *testing.T) {
	certificate := make([]byte, MaxCertificate)
	const room = 274 - 2 - len("note")
	if err := token.Fits(map[string]string{"note": strings.Repeat("x", 200), "n": strings.Repeat("x", room-200-3)},
		certificate); err != nil {
		t.Error(err)
	}
	err := token.Fits(map[string]string{"note": strings.Repeat("x", 200), "n": strings.Repeat("x", room-200-2)},
		certificate)
	if _, tooBig := errors.AsType[*token.TooBigError](err); !tooBig {
		t.Errorf("one byte more: %v", err)
	}
}
