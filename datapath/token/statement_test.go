package token

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"thole/datapath/refusal"
	"time"
)

func TestStatementSaysWhatWasSigned(t *testing.T) {
	n := client(t)
	got, err := ParseStatement(n.own.Statement.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := n.content(map[string]string{"app": "web", "env": "prod", "empty": ""})
	want.Ephemeral = [32]byte(ephemeralKey(t, "client").PublicKey().Bytes())
	if !got.NotBefore.Equal(want.NotBefore) || got.Lifetime != want.Lifetime || got.Ephemeral != want.Ephemeral ||
		!bytes.Equal(got.Certificate, want.Certificate) || !maps.Equal(got.Labels, want.Labels) {
		t.Errorf("got %+v, want %+v", got.Content, want)
	}
	if len(got.Bytes()) != 112+len("certificate of client")+2+6+2+7+2+5 {
		t.Errorf("%d bytes", len(got.Bytes()))
	}
}

func TestStatementOutlivesItsPacket(t *testing.T) {
	packet := bytes.Clone(client(t).own.Statement.Bytes())
	s, err := ParseStatement(packet)
	if err != nil {
		t.Fatal(err)
	}
	clear(packet)
	if string(s.Certificate) != "certificate of client" || s.Labels["app"] != "web" || s.Bytes()[0] != Version {
		t.Error("the statement shares memory with the packet")
	}
}

// edit returns a valid statement's bytes after f changed them, signed again by its node.
func edit(t *testing.T, f func(b []byte) []byte) []byte {
	n := client(t)
	b := bytes.Clone(n.own.Statement.Bytes())
	body := f(b[:len(b)-64])
	return append(body, ed25519.Sign(n.key, signed(body))...)
}

// withLabels is a statement whose labels are these bytes.
func withLabels(t *testing.T, labels string) []byte {
	return edit(t, func(b []byte) []byte {
		c := int(binary.BigEndian.Uint16(b[44:]))
		binary.BigEndian.PutUint16(b[46:], uint16(len(labels)))
		return append(b[:48+c:48+c], labels...)
	})
}

func TestStatementIsRefused(t *testing.T) {
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	for _, c := range []struct {
		name string
		b    []byte
		want refusal.Reason
	}{
		{"version", edit(t, set(0, 2)), refusal.BadVersion},
		{"suite", edit(t, set(1, 2)), refusal.BadSuite},
		{"time without end", edit(t, set(2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), refusal.BadLifetime},
		{"lifetime 0", edit(t, set(10, 0, 0)), refusal.BadLifetime},
		{"lifetime 301", edit(t, set(10, 1, 45)), refusal.BadLifetime},
		{"certificate longer than all", edit(t, set(44, 0xff, 0xff)), refusal.BadLength},
		{"labels longer than all", edit(t, set(46, 0xff, 0xff)), refusal.BadLength},
		{"no certificate", edit(t, func(b []byte) []byte {
			c := int(binary.BigEndian.Uint16(b[44:]))
			b[44], b[45] = 0, 0
			return append(b[:48:48], b[48+c:]...)
		}), refusal.BadLength},
		{"a byte behind the labels", edit(t, func(b []byte) []byte { return append(b, 0) }), refusal.BadLength},
		{"no labels", withLabels(t, ""), refusal.NoLabels},
		{"half a label", withLabels(t, "\x01\x02ab"), refusal.BadLength},
		{"a key longer than the labels", withLabels(t, "\x01\x01ab\x02\x01c"), refusal.BadLength},
		{"one byte of a label", withLabels(t, "\x01\x01ab\x01"), refusal.BadLength},
		{"an empty key", withLabels(t, "\x00\x01bcd"), refusal.BadLabel},
		{"keys descend", withLabels(t, "\x01\x01bx\x01\x01ax"), refusal.LabelOrder},
		{"one key twice", withLabels(t, "\x01\x01ax\x01\x01ay"), refusal.LabelOrder},
		{"longer before shorter", withLabels(t, "\x02\x01aax\x01\x01ay"), refusal.LabelOrder},
		{"a node's own label", withLabels(t, "\x0a\x01thole/nodex"), refusal.ReservedLabel},
		{"an escape sequence", withLabels(t, "\x01\x02a\x1b["), refusal.BadLabel},
		{"a control character of Latin-1", withLabels(t, "\x01\x02a\xc2\x9b"), refusal.BadLabel},
		{"not UTF-8", withLabels(t, "\x01\x01a\xff"), refusal.BadLabel},
		{"nothing", nil, refusal.BadLength},
		{"shorter than any", make([]byte, 115), refusal.BadLength},
		{"longer than allowed", make([]byte, 1155), refusal.BadLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseStatement(c.b)
			wantReason(t, err, c.want)
		})
	}
}

func TestStatementAtItsLimits(t *testing.T) {
	n := client(t)
	certificate := make([]byte, 420)
	c := Content{NotBefore: begin, Lifetime: MaxLifetime, Certificate: certificate}
	// 622 bytes of labels: two of 2+1+255, and the rest.
	c.Labels = map[string]string{"a": strings.Repeat("x", 255), "b": strings.Repeat("x", 255),
		"c": strings.Repeat("x", 622-2*258-3)}
	own, err := Sign(c, n.key, ephemeralKey(t, "client"))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(own.Statement.Bytes()); got != 1154 {
		t.Errorf("%d bytes, want 1154", got)
	}
	if got := len((&FullT2{Statement: own.Statement.Bytes()}).Append(nil)); got != 1280-40-20-20-8 {
		t.Errorf("T2 full has %d bytes, which is not what fits", got)
	}

	c.Labels["c"] += "x"
	var tooBig *TooBigError
	for name, err := range map[string]error{"Fits": Fits(c.Labels, certificate), "Sign": signError(c, n.key)} {
		if !errors.As(err, &tooBig) || *tooBig != (TooBigError{Size: 1155, Limit: 1154}) {
			t.Errorf("%s: got %v, want both numbers", name, err)
		}
	}
}

func signError(c Content, key ed25519.PrivateKey) error {
	_, err := sign(c, key)
	return err
}

func TestSignRefuses(t *testing.T) {
	n := client(t)
	for _, c := range []struct {
		name   string
		change func(*Content)
		want   refusal.Reason
	}{
		{"no labels", func(c *Content) { c.Labels = nil }, refusal.NoLabels},
		{"no certificate", func(c *Content) { c.Certificate = nil }, refusal.BadLength},
		{"a key of 256 bytes", func(c *Content) {
			c.Labels = map[string]string{strings.Repeat("k", 256): ""}
		}, refusal.BadLabel},
		{"a value of 256 bytes", func(c *Content) {
			c.Labels = map[string]string{"k": strings.Repeat("v", 256)}
		}, refusal.BadLabel},
		{"a node's own label", func(c *Content) {
			c.Labels = map[string]string{"thole/node": "x"}
		}, refusal.ReservedLabel},
		{"less than a second", func(c *Content) { c.Lifetime = time.Second - 1 }, refusal.BadLifetime},
		{"too long", func(c *Content) { c.Lifetime = MaxLifetime + time.Second }, refusal.BadLifetime},
		{"before 1970", func(c *Content) { c.NotBefore = time.Unix(-1, 0) }, refusal.BadLifetime},
		{"no time", func(c *Content) { c.NotBefore = time.Time{} }, refusal.BadLifetime},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := n.content(map[string]string{"app": "web"})
			c.change(&content)
			wantReason(t, signError(content, n.key), c.want)
		})
	}

	p256, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(n.content(map[string]string{"app": "web"}), n.key, p256); err == nil {
		t.Error("an ephemeral key of another curve was taken")
	}
}

func TestCheck(t *testing.T) {
	c, s := client(t), server(t)
	checker := Checker{newAuthority(c, s), s.key.Public().(ed25519.PublicKey)}
	claim, err := checker.Check(c.own.Statement, somewhere, begin)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"app": "web", "env": "prod", "empty": "", "team": "a"}
	if !maps.Equal(claim.Labels, want) {
		t.Errorf("labels %v, want %v", claim.Labels, want)
	}
	if want := begin.Add(75*time.Second + 300*time.Second); !claim.Until().Equal(want) {
		t.Errorf("until %v, want %v", claim.Until(), want)
	}
	claim.Identity.NotAfter = begin.Add(time.Second)
	if !claim.Until().Equal(begin.Add(time.Second + MaxSkew)) {
		t.Error("a claim outlives its certificate")
	}
	if err := claim.Admit(somewhere, claim.Until()); err != nil {
		t.Error(err)
	}
	wantReason(t, claim.Admit(somewhere, claim.Until().Add(1)), refusal.Expired)
}

func TestCheckRefuses(t *testing.T) {
	c, s := client(t), server(t)
	ends := begin.Add(75*time.Second + MaxSkew)
	stranger := newNode(t, "stranger", map[string]string{"app": "web"})
	secret := newNode(t, "client", map[string]string{"env": "secret"})
	other, err := sign(c.content(map[string]string{"app": "web"}), stranger.key) // with C's certificate
	if err != nil {
		t.Fatal(err)
	}
	shortKey := newAuthority(c)
	shortKey["certificate of client"] = Identity{PublicKey: []byte{1}, NotAfter: ends, Rights: rights{}}
	for _, tc := range []struct {
		name      string
		verifier  Verifier
		statement *Statement
		from      string
		at        time.Time
		want      refusal.Reason // 0: none
		wantCause error
	}{
		{"300 s early", nil, c.own.Statement, "192.0.2.1", begin.Add(-MaxSkew), 0, nil},
		{"300 s late", nil, c.own.Statement, "192.0.2.1", ends, 0, nil},
		{"IPv4 as IPv6", nil, c.own.Statement, "::ffff:192.0.2.1", begin, refusal.WrongAddress, nil},
		{"earlier", nil, c.own.Statement, "192.0.2.1", begin.Add(-MaxSkew - 1), refusal.NotYetValid, nil},
		{"later", nil, c.own.Statement, "192.0.2.1", ends.Add(1), refusal.Expired, nil},
		{"an hour early", nil, c.own.Statement, "192.0.2.1", begin.Add(-time.Hour), refusal.NotYetValid, nil},
		{"an hour late", nil, c.own.Statement, "192.0.2.1", begin.Add(time.Hour), refusal.Expired, nil},
		{"an unknown certificate", nil, stranger.own.Statement, "192.0.2.1", begin, refusal.BadCertificate, errUnknown},
		{"our own statement", nil, s.own.Statement, "192.0.2.1", begin, refusal.Reflected, nil},
		{"another's certificate", nil, other, "192.0.2.1", begin, refusal.BadSignature, nil},
		{"a key that is none", shortKey, c.own.Statement, "192.0.2.1", begin, refusal.BadSignature, nil},
		{"another address", nil, c.own.Statement, "192.0.3.1", begin, refusal.WrongAddress, nil},
		{"labels not granted", nil, secret.own.Statement, "192.0.2.1", begin, refusal.NotGranted, errGrant},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.verifier == nil {
				tc.verifier = newAuthority(c, s)
			}
			checker := Checker{tc.verifier, s.key.Public().(ed25519.PublicKey)}
			_, err := checker.Check(tc.statement, netip.MustParseAddr(tc.from), tc.at)
			if tc.want == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantReason(t, err, tc.want)
			if tc.wantCause != nil && !errors.Is(err, tc.wantCause) {
				t.Errorf("%v does not wrap %v", err, tc.wantCause)
			}
		})
	}
}

// TestStatementTouched changes every bit and cuts at every length: nothing of it may
// be accepted.
func TestStatementTouched(t *testing.T) {
	c := client(t)
	checker := Checker{newAuthority(c), nil}
	accepted := func(b []byte) bool {
		s, err := ParseStatement(b)
		if err == nil {
			_, err = checker.Check(s, somewhere, begin)
		}
		return err == nil
	}
	good := c.own.Statement.Bytes()
	if !accepted(good) {
		t.Fatal("the good one is refused")
	}
	eachTouched(good, func(what string, b []byte) {
		if accepted(b) {
			t.Errorf("accepted with %s", what)
		}
	})
}
