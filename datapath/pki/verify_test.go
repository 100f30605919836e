package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"thole/compiler/policy"
)

func TestIssuedCertificateVerifies(t *testing.T) {
	a := newAuthority(t)
	key := newKey(t).Public().(ed25519.PublicKey)
	scope := typical(t)
	der, err := a.Issue("web-1", key, scope, For(now, 90*day))
	if err != nil {
		t.Fatal(err)
	}
	id := verify(t, trustIn(t, a), der)
	if id.Node != "web-1" || !id.PublicKey.Equal(key) || !bytes.Equal(id.Certificate, der) {
		t.Errorf("it is a certificate of %s", id.Node)
	}
	if !reflect.DeepEqual(id.Scope(), scope) {
		t.Errorf("got scope %v, want %v", id.Scope(), scope)
	}
	if !id.NotBefore.Equal(now) || !id.NotAfter.Equal(now.Add(90*day)) {
		t.Errorf("it holds from %v until %v", id.NotBefore, id.NotAfter)
	}
	// PROTOCOL.md reckons with 420 bytes.
	if len(der) > 380 {
		t.Errorf("a typical certificate has %d bytes", len(der))
	}
	t.Logf("a typical certificate has %d bytes", len(der))
}

// TestGoldenCertificate: a certificate that was issued once is one for ever.
func TestGoldenCertificate(t *testing.T) {
	read := func(name string) []byte {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		der, err := block(data, blockCertificate)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	trust, err := NewTrust([][]byte{read("ca.crt")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := verify(t, trust, read("node.crt"))
	if got, want := id.Node+" "+id.Serial.String(), "web-1 40123456789abcde"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if scope := typical(t); !reflect.DeepEqual(id.Scope(), scope) {
		t.Errorf("got scope %v, want %v", id.Scope(), scope)
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	der := issue(t, a, typical(t))
	for i := range 8 * len(der) {
		flipped := bytes.Clone(der)
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := trust.Verify(flipped, now); err == nil {
			t.Errorf("bit %d of byte %d does not matter", i%8, i/8)
		}
	}
}

func TestEveryFlippedBitOfAListIsRefused(t *testing.T) {
	a := newAuthority(t)
	der := listOf(t, a, 7, newSerial())
	for i := range 8 * len(der) {
		flipped := bytes.Clone(der)
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := NewTrust([][]byte{a.cert.Raw}, [][]byte{flipped}); err == nil {
			t.Errorf("bit %d of byte %d does not matter", i%8, i/8)
		}
	}
}

func TestTruncatedAndLongerAreRefused(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	der := issue(t, a, typical(t))
	for n := range der {
		_, err := trust.Verify(der[:n], now)
		want(t, err, ErrMalformed)
	}
	_, err := trust.Verify(append(bytes.Clone(der), 0), now)
	want(t, err, ErrMalformed)
	_, err = trust.Verify(bytes.Repeat([]byte{0x30}, MaxCertificate+1), now)
	want(t, err, ErrMalformed)

	// Go's parser looks neither behind the signature inside the certificate...
	inside := bytes.Clone(der)
	inside = append(inside, 5, 0)
	inside[2], inside[3] = byte((len(inside)-4)>>8), byte(len(inside)-4)
	if _, err := x509.ParseCertificate(inside); err != nil {
		t.Logf("Go refuses it by now: %v", err)
	}
	_, err = trust.Verify(inside, now)
	want(t, err, ErrMalformed)

	list := listOf(t, a, 1)
	long := append(bytes.Clone(list), 0)
	_, err = NewTrust([][]byte{a.cert.Raw}, [][]byte{long}) // ...nor behind a list.
	want(t, err, ErrMalformed)
}

// TestForgeries: certificates that the CA signed, by a mistake or for something else.
func TestForgeries(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	if _, err := trust.Verify(forge(t, a, func(*x509.Certificate) {}), now); err != nil {
		t.Fatalf("the forge does not work: %v", err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ten, _ := net.ParseCIDR("10.0.0.0/8")
	for name, test := range map[string]struct {
		change func(*x509.Certificate)
		want   error
	}{
		"CA": {func(c *x509.Certificate) { c.IsCA = true }, ErrUsage},
		"CA that signs": {func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		}, ErrUsage},
		"no basic constraints": {func(c *x509.Certificate) { c.BasicConstraintsValid = false }, ErrUsage},
		"key usage: signs all": {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, ErrUsage},
		"no key usage":         {func(c *x509.Certificate) { c.KeyUsage = 0 }, ErrUsage},
		"no extended usage":    {func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, ErrUsage},
		"usage: any": {func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}, ErrUsage},
		"usage: server instead":  {serverInstead, ErrUsage},
		"usage: another private": {func(c *x509.Certificate) { c.UnknownExtKeyUsage[0] = oidScope }, ErrUsage},
		"no scope":               {func(c *x509.Certificate) { c.ExtraExtensions = nil }, ErrUsage},
		"scope not critical":     {func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, ErrUsage},
		"scope is garbage": {func(c *x509.Certificate) {
			c.ExtraExtensions[0].Value = []byte{0x30, 0x80}
		}, ErrMalformed},
		"scope is empty":   {func(c *x509.Certificate) { c.ExtraExtensions[0].Value = nil }, ErrMalformed},
		"unknown critical": {func(c *x509.Certificate) { addExtension(c, true) }, ErrUsage},
		"name constraints": {func(c *x509.Certificate) {
			c.PermittedIPRanges, c.PermittedDNSDomainsCritical = []*net.IPNet{ten}, true
		}, ErrUsage},
		"no name":         {func(c *x509.Certificate) { c.Subject = pkix.Name{} }, ErrMalformed},
		"name and more":   {func(c *x509.Certificate) { c.Subject.Organization = []string{"x"} }, ErrMalformed},
		"name is no name": {func(c *x509.Certificate) { c.Subject.CommonName = "web 1" }, ErrMalformed},
		"two names": {func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3},
				Value: "web-2"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "web-1"}}
		}, ErrMalformed},
		"long serial": {func(c *x509.Certificate) {
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 64)
		}, ErrMalformed},
		"too long": {func(c *x509.Certificate) {
			c.DNSNames = []string{strings.Repeat("a", MaxCertificate)}
		}, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := trust.Verify(forge(t, a, test.change), now)
			want(t, err, test.want)
		})
	}
	t.Run("key of another kind", func(t *testing.T) {
		_, err := trust.Verify(forgeWith(t, a, ecKey.Public(), func(*x509.Certificate) {}), now)
		want(t, err, ErrMalformed)
	})
	t.Run("uncritical extension is ignored", func(t *testing.T) {
		verify(t, trust, forge(t, a, func(c *x509.Certificate) { addExtension(c, false) }))
	})
}

func serverInstead(c *x509.Certificate) {
	c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

func addExtension(c *x509.Certificate, critical bool) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: critical,
		Value: []byte{5, 0}})
}

func TestForeignIssuers(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	_, err := trustIn(t, a).Verify(issue(t, b, typical(t)), now)
	want(t, err, ErrForeign)

	// A CA that took the name of ours.
	key := newKey(t)
	template := *a.cert
	template.PublicKey = nil
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	namesake, err := parseCA(der)
	if err != nil {
		t.Fatal(err)
	}
	_, err = trustIn(t, a).Verify(issue(t, &Authority{key: key, cert: namesake}, typical(t)), now)
	want(t, err, ErrForeign)

	// A node that plays the CA: its certificate is none.
	nodeKey := newKey(t)
	nodeDER, err := a.Issue("web-1", nodeKey.Public().(ed25519.PublicKey), typical(t), For(now, day))
	if err != nil {
		t.Fatal(err)
	}
	node, err := x509.ParseCertificate(nodeDER)
	if err != nil {
		t.Fatal(err)
	}
	_, err = trustIn(t, a).Verify(issueBy(t, node, nodeKey), now)
	want(t, err, ErrForeign)

	// What a CA says of itself is no node's.
	_, err = trustIn(t, a).Verify(a.cert.Raw, now)
	want(t, err, ErrUsage)
}

// issueBy lets any certificate sign another.
func issueBy(t *testing.T, parent *x509.Certificate, key ed25519.PrivateKey) []byte {
	t.Helper()
	return forge(t, &Authority{key: key, cert: parent}, func(*x509.Certificate) {})
}

func TestWhatIsNoCA(t *testing.T) {
	a := newAuthority(t)
	for name, der := range map[string][]byte{
		"a node's certificate": issue(t, a, typical(t)),
		"a CA by another": forge(t, a, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		}),
		"nothing": nil,
	} {
		if _, err := NewTrust([][]byte{der}, nil); err == nil {
			t.Errorf("%s is taken for a CA", name)
		}
	}
	own := newKey(t)
	for name, change := range map[string]func(*x509.Certificate){
		"a company's":            func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil },
		"one that does not list": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"one with constraints": func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.com"}, true
		},
	} {
		template := *a.cert
		template.PublicKey = nil
		change(&template)
		der, err := x509.CreateCertificate(rand.Reader, &template, &template, own.Public(), own)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewTrust([][]byte{der}, nil); err == nil {
			t.Errorf("%s is taken for a CA", name)
		}
	}
	for n, cas := range map[string][][]byte{
		"none":  nil,
		"three": {newAuthority(t).cert.Raw, newAuthority(t).cert.Raw, newAuthority(t).cert.Raw},
		"twice": {a.cert.Raw, a.cert.Raw},
	} {
		if _, err := NewTrust(cas, nil); err == nil {
			t.Errorf("%s: taken", n)
		}
	}
}

// TestTime also shows that a clock that jumps leaves nothing behind.
func TestTime(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	der := issue(t, a, typical(t))
	end := now.Add(90 * day)
	for _, test := range []struct {
		name string
		at   time.Time
		want error
	}{
		{"now", now, nil},
		{"300 s early", now.Add(-300 * time.Second), nil},
		{"301 s early", now.Add(-301 * time.Second), ErrNotYetValid},
		{"300 s late", end.Add(300 * time.Second), nil},
		{"301 s late", end.Add(301 * time.Second), ErrExpired},
		{"the clock is at its beginning", time.Unix(0, 0), ErrNotYetValid},
		{"the clock is nowhere", time.Time{}, ErrNotYetValid},
		{"an hour early", now.Add(-time.Hour), ErrNotYetValid},
		{"back again", now, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := trust.Verify(der, test.at)
			if test.want == nil && err != nil {
				t.Error(err)
			}
			if test.want != nil {
				want(t, err, test.want)
			}
		})
	}
}

// TestExpiredCA: a certificate ends with its CA, whatever it says itself.
func TestExpiredCA(t *testing.T) {
	a, err := NewAuthority("test", For(now.Add(-day), 2*day))
	if err != nil {
		t.Fatal(err)
	}
	trust := trustIn(t, a)
	_, err = a.Issue("web-1", newKey(t).Public().(ed25519.PublicKey), typical(t), For(now, 2*day))
	if err == nil {
		t.Error("a certificate was issued that outlives its CA")
	}
	der := forge(t, a, func(*x509.Certificate) {})
	id := verify(t, trust, der)
	if !id.NotAfter.Equal(now.Add(day)) {
		t.Errorf("it holds until %v", id.NotAfter)
	}
	_, err = trust.Verify(der, now.Add(day+301*time.Second))
	want(t, err, ErrExpired)
}

func TestTwoCertificatesForOneKey(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	key := newKey(t).Public().(ed25519.PublicKey)
	narrow := scopeOf(t, []string{"app=web"}, nil, []string{"any"})
	wide := scopeOf(t, []string{"app=*"}, nil, []string{"any"})
	var ids []*Identity
	for _, scope := range []Scope{narrow, wide} {
		der, err := a.Issue("web-1", key, scope, For(now, day))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, verify(t, trust, der))
	}
	if ids[0].Serial == ids[1].Serial {
		t.Error("both have one serial number")
	}
	_, err := ids[0].MayAssert(map[string]string{"app": "db"})
	want(t, err, ErrNotGranted)
	if _, err := ids[1].MayAssert(map[string]string{"app": "db"}); err != nil {
		t.Error(err)
	}
	// To revoke one leaves the other.
	trust = trustWith(t, a, 1, ids[1].Serial)
	verify(t, trust, ids[0].Certificate)
	_, err = trust.Verify(ids[1].Certificate, now)
	want(t, err, ErrRevoked)
}

func TestRotation(t *testing.T) {
	a, b, c := newAuthority(t), newAuthority(t), newAuthority(t)
	byA, byB := issue(t, a, typical(t)), issue(t, b, typical(t))
	both := trustIn(t, a, b)
	verify(t, both, byA)
	verify(t, both, byB)
	_, err := both.Verify(issue(t, c, typical(t)), now)
	want(t, err, ErrForeign)
	_, err = trustIn(t, b).Verify(byA, now)
	want(t, err, ErrForeign)

	// A list counts for its own CA: the same serial of the other goes on.
	serial := verify(t, both, byA).Serial
	sameSerial := forge(t, b, func(c *x509.Certificate) { c.SerialNumber = serial.number() })
	trust, err := NewTrust([][]byte{a.cert.Raw, b.cert.Raw}, [][]byte{listOf(t, a, 1, serial)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = trust.Verify(byA, now)
	want(t, err, ErrRevoked)
	verify(t, trust, sameSerial)
}

func TestGeneration(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	seen := make(map[uint64]string)
	for name, trust := range map[string]*Trust{
		"a": trustIn(t, a), "b": trustIn(t, b), "a, b": trustIn(t, a, b),
		"a, list 1": trustWith(t, a, 1), "a, list 2": trustWith(t, a, 2),
		"a, list 2 that revokes": trustWith(t, a, 2, newSerial()),
	} {
		if other, ok := seen[trust.Generation()]; ok {
			t.Errorf("%s and %s are one generation", name, other)
		}
		seen[trust.Generation()] = name
	}
	if one, other := trustIn(t, a), trustIn(t, a); one.Generation() != other.Generation() {
		t.Error("equal trusts are of different generations")
	}
}

func TestLists(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	old, young := trustWith(t, a, 7), trustWith(t, a, 8, newSerial())
	for _, test := range []struct {
		name         string
		next, before *Trust
		want         error
	}{
		{"newer", young, old, nil},
		{"the same", old, old, nil},
		{"the first", old, trustIn(t, a), nil},
		{"older", old, young, ErrOlderList},
		{"none any more", trustIn(t, a), old, ErrOlderList},
		{"another of that number", trustWith(t, a, 7, newSerial()), old, ErrOlderList},
		{"another CA", trustIn(t, b), old, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.next.Follows(test.before)
			if test.want == nil && err != nil {
				t.Error(err)
			}
			if test.want != nil {
				want(t, err, test.want)
			}
		})
	}
	t.Run("foreign", func(t *testing.T) {
		_, err := NewTrust([][]byte{a.cert.Raw}, [][]byte{listOf(t, b, 1)})
		want(t, err, ErrForeign)
	})
	t.Run("of two the newer", func(t *testing.T) {
		trust, err := NewTrust([][]byte{a.cert.Raw}, [][]byte{listOf(t, a, 2), listOf(t, a, 1)})
		if err != nil || trust.cas[0].list.number != 2 {
			t.Errorf("list %d (%v)", trust.cas[0].list.number, err)
		}
	})
	t.Run("a part of the whole", func(t *testing.T) {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now,
			ExtraExtensions: []pkix.Extension{
				{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 0}}, // deltaCRLIndicator
			}}
		der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewTrust([][]byte{a.cert.Raw}, [][]byte{der})
		want(t, err, ErrMalformed)
	})
	t.Run("a number without end", func(t *testing.T) {
		template := &x509.RevocationList{Number: new(big.Int).Lsh(big.NewInt(1), 64), ThisUpdate: now, NextUpdate: now}
		der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewTrust([][]byte{a.cert.Raw}, [][]byte{der})
		want(t, err, ErrMalformed)
	})
}

func TestRequests(t *testing.T) {
	key := newKey(t)
	der, err := NewRequest("web-1", key)
	if err != nil {
		t.Fatal(err)
	}
	node, public, err := ParseRequest(der)
	if err != nil || node != "web-1" || !public.Equal(key.Public()) {
		t.Fatalf("%s, %v", node, err)
	}
	bad := bytes.Clone(der)
	bad[len(bad)-1] ^= 1
	_, _, err = ParseRequest(bad)
	want(t, err, ErrMalformed)
	_, _, err = ParseRequest(bytes.Replace(der, []byte("web-1"), []byte("web-2"), 1))
	want(t, err, ErrMalformed)
	_, _, err = ParseRequest(append(der, make([]byte, MaxCertificate)...))
	want(t, err, ErrMalformed)

	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		template x509.CertificateRequest
		key      any
	}{
		"another kind of key": {x509.CertificateRequest{Subject: pkix.Name{CommonName: "web-1"}}, ecKey},
		"extensions": {x509.CertificateRequest{Subject: pkix.Name{CommonName: "web-1"},
			DNSNames: []string{"web"}}, key},
		"no name": {x509.CertificateRequest{}, key},
		"more than a name": {x509.CertificateRequest{Subject: pkix.Name{CommonName: "web-1", Country: []string{"DE"}}},
			key},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := x509.CreateCertificateRequest(rand.Reader, &test.template, test.key)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = ParseRequest(der)
			want(t, err, ErrMalformed)
		})
	}
}

func TestMayAssert(t *testing.T) {
	id := &Identity{Node: "web-1", Grants: Grants{"app": {"db", "web"}, "env": {"dev", "prod-*"}, "tier": {"*"}},
		Require: map[string]string{"team": "a"}}
	none := &Identity{Node: "n", Require: map[string]string{"team": "a"}}
	labels := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for _, test := range []struct {
		name   string
		id     *Identity
		assert map[string]string
		want   map[string]string
		says   string
	}{
		{"exact", id, labels("app", "web"), labels("app", "web", "team", "a", "thole/node", "web-1"), ""},
		{"prefix", id, labels("env", "prod-eu"), labels("env", "prod-eu", "team", "a", "thole/node", "web-1"), ""},
		{"prefix alone", id, labels("env", "prod-"), labels("env", "prod-", "team", "a", "thole/node", "web-1"), ""},
		{"any", id, labels("tier", "x y"), labels("tier", "x y", "team", "a", "thole/node", "web-1"), ""},
		{"any: nothing", id, labels("tier", ""), labels("tier", "", "team", "a", "thole/node", "web-1"), ""},
		{"required, said", id, labels("app", "web", "team", "a"), labels("app", "web", "team", "a", "thole/node",
			"web-1"), ""},
		{"none", id, nil, labels("team", "a", "thole/node", "web-1"), ""},
		{"another value", id, labels("app", "api"), nil, `the label app="api" to node web-1; granted: app=db,web`},
		{"one of two", id, labels("app", "web", "env", "test"), nil, `granted: env=dev,prod-*`},
		{"case matters", id, labels("app", "Web"), nil, "granted"},
		{"exact is not a prefix", id, labels("app", "web2"), nil, "granted"},
		{"less than the prefix", id, labels("env", "prod"), nil, "granted"},
		{"another key", id, labels("role", "x"), nil, `granted: app=db,web env=dev,prod-* tier=*`},
		{"a literal star", id, labels("env", "*"), nil, "granted"},
		{"a control character", id, labels("tier", "a\nb"), nil, "granted"},
		{"no UTF-8", id, labels("tier", "\xff"), nil, "granted"},
		{"no end", id, labels("tier", strings.Repeat("a", policy.MaxLabelText+1)), nil, "granted"},
		{"conflict", id, labels("app", "web", "team", "b"), nil,
			`team="b" to node web-1, which is required to have team=a`},
		{"the node's label", id, labels("thole/node", "web-2"), nil, "thole/node"},
		{"the node's label, true", id, labels("thole/node", "web-1"), nil, "thole/node"},
		{"a key that is no key", id, labels("a\x1b[31mb", "web-1"), nil, `"a\x1b[31mb"`},
		{"nothing granted", none, labels("app", "web"), nil, "granted: no label"},
		{"nothing granted, nothing said", none, nil, labels("team", "a", "thole/node", "n"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := labels()
			for k, v := range test.assert {
				before[k] = v
			}
			got, err := test.id.MayAssert(test.assert)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if test.says != "" {
				want(t, err, ErrNotGranted)
			}
			if err != nil && (test.says == "" || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("it says %q, not %q", err, test.says)
			}
			if test.assert != nil && !reflect.DeepEqual(test.assert, before) {
				t.Errorf("what was asked is changed to %v", test.assert)
			}
		})
	}
}

func TestMaySpeakFrom(t *testing.T) {
	some := &Identity{Addresses: scopeOf(t, nil, nil, []string{"192.0.2.1", "198.51.100.0/24", "2001:db8::/64",
		"fe80::/10"}).Addresses}
	everywhere := &Identity{Addresses: scopeOf(t, nil, nil, []string{"any"}).Addresses}
	for addr, wanted := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "198.51.100.255": true, "198.51.101.0": false,
		"2001:db8::1": true, "2001:db8:0:1::1": false, "fe80::1%eth0": true, "fe80::1": true,
		"::ffff:192.0.2.1": false, "::": false, "0.0.0.0": false,
	} {
		if got := some.MaySpeakFrom(netip.MustParseAddr(addr)); got != wanted {
			t.Errorf("%s: %v", addr, got)
		}
	}
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		if !everywhere.MaySpeakFrom(netip.MustParseAddr(addr)) {
			t.Errorf("any is not %s", addr)
		}
	}
	for name, id := range map[string]*Identity{"any": everywhere, "none": {}} {
		for _, addr := range []netip.Addr{{}, netip.MustParseAddr("::ffff:192.0.2.1")} {
			if id.MaySpeakFrom(addr) {
				t.Errorf("%s: %v", name, addr)
			}
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	a := newAuthority(b)
	trust := trustIn(b, a)
	der := issue(b, a, typical(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := trust.Verify(der, now); err != nil {
			b.Fatal(err)
		}
	}
}
