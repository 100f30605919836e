package handshake

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

var (
	clientEnd = netip.MustParseAddrPort("192.0.2.1:40000")
	serverEnd = netip.MustParseAddrPort("198.51.100.2:5432")
	begin     = time.Unix(1_800_000_000, 0)
)

// A node of the tests: a Statements and a Policy with real statements and keys. What it
// knows changes only when a test says so.
type node struct {
	name    string
	key     ed25519.PrivateKey
	checker token.Checker
	owns    map[Workload]*token.OwnStatement
	old     map[Workload]*token.OwnStatement // before the keys turned over
	known   map[token.Fingerprint]*token.Claim
	asked   map[netip.AddrPort]*token.Claim // good for T1 short
	pairs   map[[2]*token.Statement]*token.Pair
	denies  bool
	now     time.Time
}

// network is the two nodes' certificates and addresses.
type network map[string]token.Identity

func (n network) Verify(der []byte, _ time.Time) (token.Identity, error) {
	if id, ok := n[string(der)]; ok {
		return id, nil
	}
	return token.Identity{}, errors.New("unknown certificate")
}

type rights struct{ from netip.Addr }

func (r rights) MayAssert(l map[string]string) (map[string]string, error) { return maps.Clone(l), nil }
func (r rights) MaySpeakFrom(a netip.Addr) bool                           { return a == r.from }

func newNodes(t testing.TB) (client, server *node) {
	t.Helper()
	net := make(network)
	make := func(name string, from netip.AddrPort) *node {
		seed := sha256.Sum256([]byte(name))
		n := &node{
			name: name, key: ed25519.NewKeyFromSeed(seed[:]), now: begin,
			owns: map[Workload]*token.OwnStatement{}, old: map[Workload]*token.OwnStatement{},
			known: map[token.Fingerprint]*token.Claim{},
			asked: map[netip.AddrPort]*token.Claim{}, pairs: map[[2]*token.Statement]*token.Pair{},
		}
		n.checker = token.Checker{Verifier: net, Self: n.key.Public().(ed25519.PublicKey)}
		net["certificate of "+name] = token.Identity{PublicKey: n.checker.Self, NotAfter: begin.Add(time.Hour),
			Rights: rights{from.Addr()}}
		n.owns[1] = n.sign(t, "1")
		return n
	}
	return make("client", clientEnd), make("server", serverEnd)
}

func (n *node) sign(t testing.TB, app string) *token.OwnStatement {
	t.Helper()
	seed := sha256.Sum256([]byte(n.name + app))
	key, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	own, err := token.Sign(token.Content{
		NotBefore: begin, Lifetime: 75 * time.Second, Certificate: []byte("certificate of " + n.name),
		Labels: map[string]string{"app": n.name + app},
	}, n.key, key)
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// learn makes n know the other's statement.
func (n *node) learn(t testing.TB, own *token.OwnStatement, from netip.AddrPort, ask bool) {
	t.Helper()
	claim, err := n.checker.Check(own.Statement, from.Addr(), n.now)
	if err != nil {
		t.Fatal(err)
	}
	n.known[own.Statement.Fingerprint()] = claim
	if ask {
		n.asked[from] = claim
	}
}

func (n *node) pair(side Side, own *token.OwnStatement, claim *token.Claim) (*token.Pair, error) {
	key := [2]*token.Statement{own.Statement, claim.Statement}
	if p := n.pairs[key]; p != nil {
		return p, nil
	}
	derive := own.ClientKeys
	if side == Server {
		derive = own.ServerKeys
	}
	keys, err := derive(claim.Statement)
	if err != nil {
		return nil, err
	}
	n.pairs[key] = &token.Pair{Own: own, Peer: claim, Keys: keys}
	return n.pairs[key], nil
}

func (n *node) Own(w Workload) *token.OwnStatement { return n.owns[w] }

func (n *node) Remembered(own *token.OwnStatement, at netip.AddrPort) *token.Pair {
	claim := n.asked[at]
	if claim == nil {
		return nil
	}
	p, _ := n.pair(Client, own, claim)
	return p
}

var errUnknown = errors.New("unknown statement")

func (n *node) Named(side Side, w Workload, own, peer token.Fingerprint, from netip.Addr) (*token.Pair, error) {
	claim := n.known[peer]
	mine := n.owns[w]
	if old := n.old[w]; old != nil && old.Statement.Fingerprint() == own {
		mine = old
	}
	if claim == nil || mine == nil || mine.Statement.Fingerprint() != own {
		return nil, errUnknown
	}
	if err := claim.Admit(from, n.now); err != nil {
		return nil, err
	}
	return n.pair(side, mine, claim)
}

func (n *node) Stated(side Side, own *token.OwnStatement, statement []byte, from netip.Addr) (*token.Pair, error) {
	s, err := token.ParseStatement(statement)
	if err != nil {
		return nil, err
	}
	claim := n.known[s.Fingerprint()]
	if claim == nil {
		if claim, err = n.checker.Check(s, from, n.now); err != nil {
			return nil, err
		}
	} else if err := claim.Admit(from, n.now); err != nil {
		return nil, err
	}
	for key, p := range n.pairs { // what Check made anew is the same pair
		if key[0] == own.Statement && key[1].Fingerprint() == s.Fingerprint() {
			return p, nil
		}
	}
	return n.pair(side, own, claim)
}

const testClass = 0x4001

func (n *node) Class(*token.Claim, netip.Addr) (Class, error) { return testClass, nil }
func (n *node) Allows(Workload, Class, uint16) bool           { return !n.denies }
func (n *node) AllowsPlain(Workload, netip.AddrPort) bool     { return !n.denies }

func (n *node) machine() *Node { return &Node{n, n} }

// A segment is a packet as a kernel makes it, IPv4 without options but those given.
type segment struct {
	fromServer bool
	seq, ack   uint32
	flags      packet.Flags
	options    []byte
	payload    []byte
}

func (s segment) build() []byte {
	src, dst := clientEnd, serverEnd
	if s.fromServer {
		src, dst = dst, src
	}
	size := 40 + len(s.options) + len(s.payload)
	b := []byte{0x45, 0, byte(size >> 8), byte(size), 0, 0, 0x40, 0, 64, 6, 0, 0}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], ^checksum(b))
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, s.seq)
	b = binary.BigEndian.AppendUint32(b, s.ack)
	b = append(b, byte(20+len(s.options))/4<<4, byte(s.flags), 0xfa, 0xf0, 0, 0, 0, 0)
	b = append(append(b, s.options...), s.payload...)
	pseudo := append([]byte{0, 6, byte((size - 20) >> 8), byte(size - 20)}, b[12:]...)
	binary.BigEndian.PutUint16(b[36:], ^checksum(pseudo))
	return b
}

func checksum(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(b[:len(b):len(b)], 0)
	}
	total := uint32(0)
	for ; len(b) > 0; b = b[2:] {
		total += uint32(b[0])<<8 + uint32(b[1])
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func ephemeral(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	seed := sha256.Sum256([]byte("ephemeral"))
	key, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func nonce(i int) (n token.Nonce) {
	n[0] = byte(i)
	return n
}

// isOfToken reports whether an error says that a token is bad.
func isOfToken(err error) bool {
	r, ok := errors.AsType[refusal.Reason](err)
	return ok && r.Package() == "token"
}
