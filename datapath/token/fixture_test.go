package token

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"maps"
	"net/netip"
	"testing"
	"thole/datapath/refusal"
	"time"
)

// A node of the tests: fixed keys, and a certificate that is only a name.
type node struct {
	name string
	key  ed25519.PrivateKey
	own  *OwnStatement
}

var begin = time.Unix(1_800_000_000, 0)

func newNode(t testing.TB, name string, labels map[string]string) *node {
	t.Helper()
	seed := sha256.Sum256([]byte("node " + name))
	n := &node{name: name, key: ed25519.NewKeyFromSeed(seed[:])}
	own, err := Sign(n.content(labels), n.key, ephemeralKey(t, name))
	if err != nil {
		t.Fatal(err)
	}
	n.own = own
	return n
}

func (n *node) content(labels map[string]string) Content {
	return Content{NotBefore: begin, Lifetime: 75 * time.Second, Certificate: []byte("certificate of " + n.name),
		Labels: labels}
}

func ephemeralKey(t testing.TB, name string) *ecdh.PrivateKey {
	t.Helper()
	seed := sha256.Sum256([]byte("ephemeral " + name))
	key, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func client(t testing.TB) *node {
	return newNode(t, "client", map[string]string{"app": "web", "env": "prod", "empty": ""})
}

func server(t testing.TB) *node { return newNode(t, "server", map[string]string{"app": "db"}) }

var (
	errUnknown = errors.New("not one of ours")
	errGrant   = errors.New("not granted")
)

// authority is a Verifier that knows nodes by their certificates' bytes.
type authority map[string]Identity

func newAuthority(nodes ...*node) authority {
	a := make(authority)
	for _, n := range nodes {
		a["certificate of "+n.name] = Identity{n.key.Public().(ed25519.PublicKey), begin.Add(time.Hour), rights{}}
	}
	return a
}

func (a authority) Verify(der []byte, _ time.Time) (Identity, error) {
	identity, ok := a[string(der)]
	if !ok {
		return Identity{}, errUnknown
	}
	return identity, nil
}

// rights grant everything but env=secret, from 192.0.2.0/24, and add a label.
type rights struct{}

func (rights) MayAssert(labels map[string]string) (map[string]string, error) {
	if labels["env"] == "secret" {
		return nil, errGrant
	}
	labels = maps.Clone(labels)
	labels["team"] = "a"
	return labels, nil
}

func (rights) MaySpeakFrom(a netip.Addr) bool {
	return netip.MustParsePrefix("192.0.2.0/24").Contains(a)
}

var somewhere = netip.MustParseAddr("192.0.2.1")

// wantReason fails unless err is this refusal.
func wantReason(t *testing.T, err error, want refusal.Reason) {
	t.Helper()
	var got refusal.Reason
	if !errors.As(err, &got) || got != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

func mustKeys(t testing.TB, keys *Keys, err error) *Keys {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func testExchange() Exchange {
	x := Exchange{Protocol: 6}
	copy(x.ClientNonce[:], "nonce of client.")
	copy(x.ServerNonce[:], "nonce of server.")
	return x
}
