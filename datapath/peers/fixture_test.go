package peers

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/datapath/pki/pkitest"
	"thole/datapath/token"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)

// A fleet is a CA and the certificates that it gave out.
type fleet struct {
	t       testing.TB
	ca      pkitest.Authority
	revoked map[pki.Serial]time.Time
	list    uint64
}

func newFleet(t testing.TB) *fleet {
	ca := pkitest.NewValid(t, pki.Validity{NotBefore: start.Add(-time.Hour), NotAfter: start.Add(1000 * time.Hour)})
	return &fleet{t: t, ca: ca, revoked: map[pki.Serial]time.Time{}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fleet) trust() *pki.Trust {
	f.t.Helper()
	f.list++
	list, err := f.ca.CA.List(f.list, f.revoked, start)
	must(f.t, err)
	trust, err := pki.NewTrust([][]byte{f.ca.Certificate()}, [][]byte{list})
	must(f.t, err)
	return trust
}

// scope lets a node say app=web-*, app=db and anything of env, from its network.
func scope(network string) pki.Scope {
	return pki.Scope{
		Grants:    pki.Grants{"app": {"db", "web*"}, "env": {"*"}},
		Require:   map[string]string{"team": "a"},
		Addresses: []netip.Prefix{netip.MustParsePrefix(network)},
	}
}

// node makes a node with a certificate for so long.
func (f *fleet) node(name, network string, valid time.Duration) *pki.Node {
	f.t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	must(f.t, err)
	return f.certify(name, network, valid, public, key)
}

func (f *fleet) certify(name, network string, valid time.Duration, public ed25519.PublicKey,
	key ed25519.PrivateKey) *pki.Node {
	f.t.Helper()
	der, err := f.ca.CA.Issue(name, public, scope(network), pki.Validity{NotBefore: start.Add(-time.Minute),
		NotAfter: start.Add(valid)})
	must(f.t, err)
	trust := f.trust()
	id, err := trust.Verify(der, start)
	must(f.t, err)
	return &pki.Node{Key: key, Identity: id, Trust: trust}
}

// with is a node under the trust that the fleet has now.
func (f *fleet) with(n *pki.Node) *pki.Node {
	return &pki.Node{Key: n.Key, Identity: n.Identity, Trust: f.trust()}
}

func (f *fleet) revoke(n *pki.Node) { f.revoked[n.Identity.Serial] = start }

var (
	web = map[string]string{"app": "web"}
	db  = map[string]string{"app": "db"}

	webAddr = netip.MustParseAddr("192.0.2.1")
	dbAddr  = netip.MustParseAddr("198.51.100.1")
	dbPort  = netip.AddrPortFrom(dbAddr, 5432)
)

// two are two nodes, and what each knows.
type two struct {
	*fleet
	webNode, dbNode *pki.Node
	client, server  *Peers
}

func newTwo(t testing.TB) *two {
	f := newFleet(t)
	w := &two{fleet: f, webNode: f.node("web-1", "192.0.2.0/24", 100*time.Hour),
		dbNode: f.node("db-1", "198.51.100.0/24", 100*time.Hour)}
	w.client, w.server = New(f.with(w.webNode)), New(f.with(w.dbNode))
	return w
}

func own(t testing.TB, p *Peers, labels map[string]string, now time.Time) *token.OwnStatement {
	t.Helper()
	o, err := p.Own(labels, now)
	must(t, err)
	return o
}

// connect is a handshake of full tokens, up to both proofs.
func (w *two) connect(now time.Time) (client, server *token.Pair) {
	w.t.Helper()
	mine, theirs := own(w.t, w.client, web, now), own(w.t, w.server, db, now)
	server, err := w.server.Stated(Server, theirs, mine.Statement.Bytes(), webAddr, now)
	must(w.t, err)
	client, err = w.client.Stated(Client, mine, theirs.Statement.Bytes(), dbAddr, now)
	must(w.t, err)
	x := &token.Exchange{Protocol: 6, ClientNonce: token.Nonce{1}, ServerNonce: token.Nonce{2}}
	m2 := server.Keys.M2(x)
	must(w.t, client.Keys.VerifyM2(x, m2))
	w.client.Answered(client, dbPort, true, now)
	must(w.t, server.Keys.VerifyM3(x, m2, client.Keys.M3(x, m2)))
	w.server.Proven(Server, server, webAddr, now)
	return client, server
}

// say signs a statement without the state of a Peers.
func say(t testing.TB, n *pki.Node, labels map[string]string, now time.Time) *token.Statement {
	t.Helper()
	o, err := newOwn(n, labels, now)
	must(t, err)
	return o.Statement
}

// sayWith is say with an ephemeral key that is there: keys take the longest.
func sayWith(t testing.TB, key *ecdh.PrivateKey, n *pki.Node, labels map[string]string,
	now time.Time) *token.Statement {
	t.Helper()
	o, err := token.Sign(token.Content{NotBefore: now, Lifetime: Lifetime, Certificate: n.Identity.Certificate,
		Labels: labels}, n.Key, key)
	must(t, err)
	return o.Statement
}
