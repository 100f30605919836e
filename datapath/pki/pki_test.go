package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"
	"time"
)

// now is when tests take place.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := NewAuthority("test", For(now.Add(-day), 3650*day))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func trustIn(t testing.TB, authorities ...*Authority) *Trust {
	t.Helper()
	var cas [][]byte
	for _, a := range authorities {
		cas = append(cas, a.cert.Raw)
	}
	trust, err := NewTrust(cas, nil)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// trustWith is the trust in one CA with a list of revoked serials.
func trustWith(t testing.TB, a *Authority, number uint64, revoked ...Serial) *Trust {
	t.Helper()
	trust, err := NewTrust([][]byte{a.cert.Raw}, [][]byte{listOf(t, a, number, revoked...)})
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func listOf(t testing.TB, a *Authority, number uint64, revoked ...Serial) []byte {
	t.Helper()
	entries := make(map[Serial]time.Time)
	for _, s := range revoked {
		entries[s] = now
	}
	der, err := a.List(number, entries, now)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// scopeOf reads a scope as people write it.
func scopeOf(t testing.TB, grants, require, addresses []string) Scope {
	t.Helper()
	var s Scope
	var err error
	if s.Grants, err = ParseGrants(grants); err != nil {
		t.Fatal(err)
	}
	if s.Require, err = ParseRequire(require); err != nil {
		t.Fatal(err)
	}
	if s.Addresses, err = ParseAddresses(addresses); err != nil {
		t.Fatal(err)
	}
	return s
}

// typical is the scope in the package comment.
func typical(t testing.TB) Scope {
	t.Helper()
	return scopeOf(t, []string{"app=web,db", "env=*"}, []string{"team=a"}, []string{"192.0.2.1"})
}

func issue(t testing.TB, a *Authority, scope Scope) []byte {
	t.Helper()
	der, err := a.Issue("web-1", newKey(t).Public().(ed25519.PublicKey), scope, For(now, 90*day))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func verify(t testing.TB, trust *Trust, der []byte) *Identity {
	t.Helper()
	id, err := trust.Verify(der, now)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// forge lets the CA sign a certificate that Issue would not make.
func forge(t testing.TB, a *Authority, change func(*x509.Certificate)) []byte {
	t.Helper()
	return forgeWith(t, a, newKey(t).Public(), change)
}

func forgeWith(t testing.TB, a *Authority, key any, change func(*x509.Certificate)) []byte {
	t.Helper()
	scope, err := typical(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial().number(),
		Subject:               pkix.Name{CommonName: "web-1"},
		NotBefore:             now,
		NotAfter:              now.Add(90 * day),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidUsage},
		ExtraExtensions:       []pkix.Extension{{Id: oidScope, Critical: true, Value: scope}},
	}
	change(template)
	parent := *a.cert
	parent.SubjectKeyId = nil
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// want fails the test unless err is a reason of this kind.
func want(t testing.TB, err, reason error) {
	t.Helper()
	if !errors.Is(err, reason) {
		t.Errorf("got error %v, want one that is %q", err, reason)
	}
}
