package token

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"testing"
	"thole/datapath/refusal"
)

func TestBothSidesDeriveTheSame(t *testing.T) {
	c, s := client(t), server(t)
	keys, err := c.own.ClientKeys(s.own.Statement)
	asClient := mustKeys(t, keys, err)
	keys, err = s.own.ServerKeys(c.own.Statement)
	asServer := mustKeys(t, keys, err)
	if *asClient != *asServer {
		t.Error("client and server derive different keys")
	}
	keys, err = s.own.ClientKeys(c.own.Statement)
	if back := mustKeys(t, keys, err); *back == *asServer || back.k1 == asServer.k1 {
		t.Error("both directions have the same keys")
	}
	if asClient.k1 == asClient.k2 || asClient.k2 == asClient.k3 || asClient.k1 == asClient.k3 {
		t.Error("two keys are equal")
	}
}

// TestKeysByHand derives the keys and the MACs as the package comment says, from
// RFC 5869 and RFC 2104 with crypto/hmac alone.
func TestKeysByHand(t *testing.T) {
	h := newHandshake(t)
	sum := func(key []byte, parts ...[]byte) []byte {
		m := hmac.New(sha256.New, key)
		m.Write(bytes.Join(parts, nil))
		return m.Sum(nil)
	}
	public, err := ecdh.X25519().NewPublicKey(h.c.own.Statement.Ephemeral[:])
	if err != nil {
		t.Fatal(err)
	}
	secret, err := ephemeralKey(t, "server").ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	prk := sum([]byte("thole/1"), secret)
	hc, hs := sha256.Sum256(h.c.own.Statement.Bytes()), sha256.Sum256(h.s.own.Statement.Bytes())
	info := bytes.Join([][]byte{[]byte("mac"), hc[:], hs[:]}, nil)
	k1 := sum(prk, info, []byte{1})
	k2 := sum(prk, k1, info, []byte{2})
	k3 := sum(prk, k2, info, []byte{3})

	x := append([]byte{1, 6, 0, 0}, "nonce of client."...)
	y := append([]byte{0, 0}, "nonce of server."...)
	m1 := sum(k1, x)[:16]
	m2 := sum(k2, x, y)[:16]
	m3 := sum(k3, x, y, m2)[:16]
	got := func(m MAC) []byte { return m[:] }
	if !bytes.Equal(m1, got(h.keys.M1(&h.x))) || !bytes.Equal(m2, got(h.keys.M2(&h.x))) ||
		!bytes.Equal(m3, got(h.keys.M3(&h.x, MAC(m2)))) {
		t.Error("a MAC is not what the package comment says")
	}
}

func TestMACIsHMAC(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		var key [keySize]byte
		message := make([]byte, random.IntN(proofPart+1))
		for i := range key {
			key[i] = byte(random.Uint32())
		}
		for i := range message {
			message[i] = byte(random.Uint32())
		}
		m := hmac.New(sha256.New, key[:])
		m.Write(message)
		if got := mac(&key, message); !bytes.Equal(got[:], m.Sum(nil)[:16]) {
			t.Fatalf("key %x, message %x: %x", key, message, got)
		}
	}
}

// TestMACsCoverEverything: whatever differs between two connections, no MAC of one
// holds for the other, and none is another's.
func TestMACsCoverEverything(t *testing.T) {
	h := newHandshake(t)
	m2 := h.keys.M2(&h.x)
	for name, c := range map[string]struct {
		change func(*Exchange)
		inM1   bool
	}{
		"protocol":        {func(x *Exchange) { x.Protocol = 17 }, true},
		"nonce of client": {func(x *Exchange) { x.ClientNonce[15] ^= 1 }, true},
		"nonce of server": {func(x *Exchange) { x.ServerNonce[0] ^= 1 }, false},
	} {
		x := h.x
		c.change(&x)
		if err := h.keys.VerifyM1(&x, h.keys.M1(&h.x)); (err != nil) != c.inM1 {
			t.Errorf("M1 with another %s: %v", name, err)
		}
		wantReason(t, h.keys.VerifyM2(&x, m2), refusal.BadM2)
		wantReason(t, h.keys.VerifyM3(&x, m2, h.keys.M3(&h.x, m2)), refusal.BadM3)
	}
	other := m2
	other[0] ^= 1
	wantReason(t, h.keys.VerifyM3(&h.x, other, h.keys.M3(&h.x, m2)), refusal.BadM3)
	m1 := h.keys.M1(&h.x)
	wantReason(t, h.keys.VerifyM2(&h.x, m1), refusal.BadM2)
	wantReason(t, h.keys.VerifyM3(&h.x, m2, m2), refusal.BadM3)
	wantReason(t, h.keys.VerifyM1(&h.x, m2), refusal.BadM1)
}

// The points of low order of Curve25519 and of its twist, as encodings below 2^255:
// 0, 1, two of order 8, p−1, p, p+1 (cr.yp.to/ecdh.html; RFC 7748, section 7).
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func TestLowOrderIsRefused(t *testing.T) {
	s := server(t)
	evil := newNode(t, "client", map[string]string{"app": "web"})
	for _, point := range lowOrder {
		b, err := hex.DecodeString(point)
		if err != nil {
			t.Fatal(err)
		}
		for _, top := range []byte{0, 0x80} { // X25519 ignores the highest bit
			c := evil.content(map[string]string{"app": "web"})
			c.Ephemeral = [32]byte(b)
			c.Ephemeral[31] |= top
			statement, err := sign(c, evil.key)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.own.ServerKeys(statement)
			wantReason(t, err, refusal.LowOrder)
			_, err = s.own.ClientKeys(statement)
			wantReason(t, err, refusal.LowOrder)
		}
	}
}

func TestReflectionIsRefused(t *testing.T) {
	s := server(t)
	_, err := s.own.ServerKeys(s.own.Statement)
	wantReason(t, err, refusal.Reflected)
	_, err = s.own.ClientKeys(s.own.Statement)
	wantReason(t, err, refusal.Reflected)

	// A certified node signs our ephemeral key as its own.
	evil := newNode(t, "client", map[string]string{"app": "web"})
	c := evil.content(map[string]string{"app": "web"})
	c.Ephemeral = s.own.Statement.Ephemeral
	statement, err := sign(c, evil.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.own.ServerKeys(statement)
	wantReason(t, err, refusal.Reflected)
}

// TestStolenEphemeralKey: a certified node R signs C's ephemeral key as its own and
// passes C's MACs on to S. S derives other keys than C, since R's statement is another.
func TestStolenEphemeralKey(t *testing.T) {
	h := newHandshake(t)
	relay := newNode(t, "relay", map[string]string{"app": "admin"})
	c := relay.content(map[string]string{"app": "admin"})
	c.Ephemeral = h.c.own.Statement.Ephemeral
	statement, err := sign(c, relay.key)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := h.s.own.ServerKeys(statement)
	keys = mustKeys(t, keys, err)
	m2 := keys.M2(&h.x)
	wantReason(t, keys.VerifyM1(&h.x, h.keys.M1(&h.x)), refusal.BadM1)
	wantReason(t, h.keys.VerifyM2(&h.x, m2), refusal.BadM2)
	wantReason(t, keys.VerifyM3(&h.x, m2, h.keys.M3(&h.x, m2)), refusal.BadM3)
}

// TestEveryStatementHasItsKeys: other labels, other times, another certificate, other keys.
func TestEveryStatementHasItsKeys(t *testing.T) {
	h := newHandshake(t)
	for i, change := range []func(*Content){
		func(c *Content) { c.Labels = map[string]string{"app": "web"} },
		func(c *Content) { c.NotBefore = begin.Add(1e9) },
		func(c *Content) { c.Lifetime += 1e9 },
		func(c *Content) { c.Certificate = binary.BigEndian.AppendUint16(nil, 1) },
	} {
		c := h.c.content(h.c.own.Statement.Labels)
		change(&c)
		own, err := Sign(c, h.c.key, ephemeralKey(t, "client"))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := h.s.own.ServerKeys(own.Statement)
		if *mustKeys(t, keys, err) == *h.keys {
			t.Errorf("change %d: the same keys", i)
		}
	}
}
