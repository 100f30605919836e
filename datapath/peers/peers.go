package peers

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"thole/datapath/pki"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// The bounds.
const (
	MaxOwnSets        = 4096  // label sets of this node
	MaxCertificates   = 4096  // that were verified
	StatementsPerNode = 256   // of other nodes
	MaxStatements     = 16384 // of them, a quarter is for those that nobody has proven
	PairsPerNode      = 1024  // of one own and one other statement
	MaxPairs          = 16384 // of them a quarter too
	MaxRemembered     = 8192  // addresses and ports for T1 short
	AddressesPerNode  = 256   // that have proven themselves
	MaxAddresses      = 16384
	MaxPlain          = 4096 // places (addresses and ports) without Thole
	MaxAnswering      = 8192 // places that have answered with a proof

	ProvenFor = 10 * time.Minute // an address has an allowance of its own, after a proof
	PlainFor  = 10 * time.Minute // a place is remembered to have no Thole

	certificateTime = time.Hour // a certificate is verified anew after this
	shortMargin     = time.Minute
)

// What verifying costs, in processor time, about.
const (
	certificateCost = 80 * time.Microsecond // chain and parsing
	statementCost   = 60 * time.Microsecond // signature and parsing
	pairCost        = 50 * time.Microsecond // X25519
)

// A Side says what this node is to a connection.
type Side uint8

// The sides.
const (
	Client Side = iota
	Server
)

// Peers is what this node knows of others and of itself. One lock guards all of it; it
// is never held while a signature is made or verified or a key is derived.
type Peers struct {
	mu         sync.Mutex
	node       *pki.Node
	former     []ed25519.PublicKey // this node's, before
	own        *lruCache[string, *ownStatements]
	certs      *lruCache[[sha256.Size]byte, certificate]
	statements *fairCache[token.Fingerprint, statement]
	pairs      *fairCache[pairKey, *token.Pair]
	remembered *lruCache[place, token.Fingerprint] // what answered there
	addresses  *fairCache[netip.Addr, *bucket]
	plain      *lruCache[netip.AddrPort, struct{}]
	answering  *lruCache[netip.AddrPort, struct{}] // T2 was good there

	strangers, asked, proven bucket
}

type certificate struct {
	identity   *pki.Identity
	generation uint64
}

type statement struct {
	claim      *token.Claim
	generation uint64 // of the trust under which its certificate was verified last
}

type pairKey struct {
	side      Side
	own, peer token.Fingerprint
}

// A place is where workloads of one own statement connect to.
type place struct {
	own token.Fingerprint
	to  netip.AddrPort
}

// New makes an empty Peers of a node.
func New(node *pki.Node) *Peers {
	return &Peers{
		node:  node,
		own:   newLRUCache[string, *ownStatements](MaxOwnSets),
		certs: newLRUCache[[sha256.Size]byte, certificate](MaxCertificates),
		statements: newFairCache[token.Fingerprint, statement](shares{unproven: MaxStatements / 4,
			proven: MaxStatements * 3 / 4, owner: StatementsPerNode}),
		pairs: newFairCache[pairKey, *token.Pair](shares{unproven: MaxPairs / 4, proven: MaxPairs * 3 / 4,
			owner: PairsPerNode}),
		remembered: newLRUCache[place, token.Fingerprint](MaxRemembered),
		addresses: newFairCache[netip.Addr, *bucket](shares{
			unproven: 1, proven: MaxAddresses, owner: AddressesPerNode,
		}),
		plain:     newLRUCache[netip.AddrPort, struct{}](MaxPlain),
		answering: newLRUCache[netip.AddrPort, struct{}](MaxAnswering),
		strangers: bucket{perMille: 100, burst: 100 * time.Millisecond},
		asked:     bucket{perMille: 200, burst: 200 * time.Millisecond},
		proven:    bucket{perMille: 400, burst: 400 * time.Millisecond},
	}
}

// ownAllowance is that of an address that has proven itself: at once it may bring all
// statements that a node may have, and a few more each second.
func ownAllowance() *bucket { return &bucket{perMille: 20, burst: 100 * time.Millisecond} }

// Replace takes another certificate, key or trust for this node. What was concluded
// under another trust is not used before its certificate was verified again; what the
// new trust still says is kept. The error is pki.ErrOlderList, and changes nothing.
func (p *Peers) Replace(node *pki.Node, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := node.Trust.Follows(p.node.Trust); err != nil {
		return err
	}
	if !p.node.Identity.PublicKey.Equal(node.Identity.PublicKey) {
		p.former = append([]ed25519.PublicKey{p.node.Identity.PublicKey}, p.former...)
		p.former = p.former[:min(len(p.former), 4)]
	}
	if !bytes.Equal(p.node.Identity.Certificate, node.Identity.Certificate) {
		p.remembered.clear() // others do not know what this node says from now on
	}
	p.node = node
	p.keepOwn(node.Trust, now)
	return nil
}

// Stated returns the pair with a statement that came from an address, in T1 full
// (Server) or T2 full (Client). The error is, or wraps, a refusal.Reason.
func (p *Peers) Stated(
	side Side, own *token.OwnStatement, b []byte, from netip.Addr, now time.Time,
) (*token.Pair, error) {
	claim, err := p.check(side, b, from, now)
	if err != nil {
		return nil, err
	}
	return p.pair(side, own, claim, from, now)
}

// Named returns the pair that a short token names: a statement of workloads with these
// labels, the present one or the one before, and one of another node.
func (p *Peers) Named(side Side, labels map[string]string, own, peer token.Fingerprint, from netip.Addr,
	now time.Time) (*token.Pair, error) {
	mine := p.named(labels, own, now)
	if mine == nil {
		return nil, refusal.Unknown
	}
	claim, err := p.known(peer, now)
	if err != nil {
		return nil, err
	}
	if err := claim.Admit(from, now); err != nil {
		return nil, err
	}
	return p.pair(side, mine, claim, from, now)
}

// Remembered returns the pair with the statement that is still good for T1 short at a
// place, or nil.
func (p *Peers) Remembered(own *token.OwnStatement, to netip.AddrPort, now time.Time) *token.Pair {
	p.mu.Lock()
	peer, ok := p.remembered.get(place{own.Statement.Fingerprint(), to}, now)
	p.mu.Unlock()
	if !ok {
		return nil
	}
	claim, err := p.known(peer, now)
	if err != nil || claim.Admit(to.Addr(), now) != nil {
		return nil
	}
	pair, err := p.pair(Client, own, claim, to.Addr(), now)
	if err != nil {
		return nil
	}
	return pair
}

// Answered notes that T2 was good: its sender has the key of the pair's other statement
// now. If the statement came with it (T2 full), the next connections of the same own
// statement to this place name it, until a minute before its lifetime is over, counted
// from here: it may be a minute old, and its clock wrong.
func (p *Peers) Answered(pair *token.Pair, at netip.AddrPort, full bool, now time.Time) {
	p.Proven(Client, pair, at.Addr(), now)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answering.put(at, struct{}{}, now.Add(ProvenFor))
	p.plain.drop(at)
	hold := pair.Peer.Statement.Lifetime - shortMargin
	if !full || hold <= 0 {
		return
	}
	p.remembered.put(place{pair.Own.Statement.Fingerprint(), at}, pair.Peer.Statement.Fingerprint(), now.Add(hold))
}

// Proven notes that T3 (Server) or T2 (Client) was good: who speaks from the address has
// the key of the pair's other statement now.
func (p *Peers) Proven(side Side, pair *token.Pair, from netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	owner := nodeOf(pair.Peer)
	fingerprint := pair.Peer.Statement.Fingerprint()
	p.statements.prove(fingerprint)
	p.pairs.prove(pairKey{side, pair.Own.Statement.Fingerprint(), fingerprint})

	allowance, ok := p.addresses.get(from, now)
	if !ok {
		allowance = ownAllowance()
	}
	p.addresses.put(from, owner, allowance, now.Add(ProvenFor))
	p.addresses.prove(from)
}

// SetPlain notes that a place (an address and a port) answered as a machine without
// Thole does. It returns false, and notes nothing, where somebody proved himself at that
// place lately: who forges one such answer is not to gain more than that connection.
func (p *Peers) SetPlain(at netip.AddrPort, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.answering.get(at, now); ok {
		return false
	}
	p.plain.put(at, struct{}{}, now.Add(PlainFor))
	return true
}

// Plain reports whether a place is known to answer as a machine without Thole.
func (p *Peers) Plain(at netip.AddrPort, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.plain.get(at, now)
	return ok
}

// ForgetPlain has the next connection to a place find out anew.
func (p *Peers) ForgetPlain(at netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plain.drop(at)
}

// Sweep drops what has expired; ephemeral keys are to be gone soon after. It is to be
// called every few seconds.
func (p *Peers) Sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweepOwn(now)
	p.certs.sweep(now)
	p.statements.sweep(now)
	p.pairs.sweep(now)
	p.remembered.sweep(now)
	p.addresses.sweep(now)
	p.plain.sweep(now)
	p.answering.sweep(now)
}

// check returns what the bytes of a statement claim, checked for a packet from an
// address.
func (p *Peers) check(side Side, b []byte, from netip.Addr, now time.Time) (*token.Claim, error) {
	s, err := token.ParseStatement(b)
	if err != nil {
		return nil, err
	}
	claim, err := p.known(s.Fingerprint(), now)
	if err == nil && bytes.Equal(claim.Statement.Bytes(), b) {
		return claim, claim.Admit(from, now)
	}
	if err != nil && !errors.Is(err, refusal.Unknown) {
		return nil, err
	}
	p.mu.Lock()
	node, former := p.node, p.former
	cost := statementCost
	if c, ok := p.certs.get(sha256.Sum256(s.Certificate), now); !ok || c.generation != node.Trust.Generation() {
		cost += certificateCost
	}
	ok := p.allow(side, from, cost, now)
	p.mu.Unlock()
	if !ok {
		return nil, refusal.OverBudget
	}
	checker := token.Checker{Verifier: verifier{p, node.Trust}, Self: node.Identity.PublicKey}
	if claim, err = checker.Check(s, from, now); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(former, func(k ed25519.PublicKey) bool { return k.Equal(claim.Identity.PublicKey) }) {
		return nil, refusal.Reflected
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.node != node {
		return nil, refusal.TrustChanged // it comes again
	}
	p.statements.put(s.Fingerprint(), nodeOf(claim), statement{claim, node.Trust.Generation()}, claim.Until())
	return claim, nil
}

// known returns the claim of a statement that was checked before, whose certificate is
// one that is trusted now.
func (p *Peers) known(fingerprint token.Fingerprint, now time.Time) (*token.Claim, error) {
	p.mu.Lock()
	s, ok := p.statements.get(fingerprint, now)
	trust := p.node.Trust
	p.mu.Unlock()
	switch {
	case !ok:
		return nil, refusal.Unknown
	case s.generation == trust.Generation():
		return s.claim, nil
	}
	claim, err := again(verifier{p, trust}, s.claim, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.node.Trust != trust:
		return nil, refusal.TrustChanged
	case err != nil:
		p.statements.drop(fingerprint)
		return nil, err
	}
	p.statements.put(fingerprint, nodeOf(claim), statement{claim, trust.Generation()}, claim.Until())
	return claim, nil
}

// again returns a claim as it is under another trust. The statement's signature is by
// the certificate's key, as before.
func again(v verifier, claim *token.Claim, now time.Time) (*token.Claim, error) {
	identity, err := v.Verify(claim.Statement.Certificate, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.BadCertificate, err)
	}
	if identity.NotAfter.Equal(claim.Identity.NotAfter) {
		return claim, nil // the certificate is the same, so all else is
	}
	labels, err := identity.MayAssert(claim.Statement.Labels)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.NotGranted, err)
	}
	return &token.Claim{Statement: claim.Statement, Identity: identity, Labels: labels}, nil
}

// pair returns the pair of two statements, the same as long as it is kept.
func (p *Peers) pair(
	side Side, own *token.OwnStatement, claim *token.Claim, from netip.Addr, now time.Time,
) (*token.Pair, error) {
	key := pairKey{side, own.Statement.Fingerprint(), claim.Statement.Fingerprint()}
	p.mu.Lock()
	pair, ok := p.pairs.get(key, now)
	if ok && pair.Peer == claim && pair.Own == own {
		p.mu.Unlock()
		return pair, nil
	}
	allowed := p.allow(side, from, pairCost, now)
	p.mu.Unlock()
	if !allowed {
		return nil, refusal.OverBudget
	}
	derive := own.ClientKeys
	if side == Server {
		derive = own.ServerKeys
	}
	keys, err := derive(claim.Statement)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if other, ok := p.pairs.get(key, now); ok && other.Peer == claim && other.Own == own {
		return other, nil // somebody was faster
	}
	pair = &token.Pair{Own: own, Peer: claim, Keys: keys}
	until := own.Statement.NotBefore.Add(Lifetime + KeepFor)
	if end := claim.Until(); end.Before(until) {
		until = end
	}
	p.pairs.put(key, nodeOf(claim), pair, until)
	return pair, nil
}

// allow takes what verifying costs from the source's allowance. What we asked for comes
// from who can read our packets, so it has one of its own, which a flood cannot use up.
func (p *Peers) allow(side Side, from netip.Addr, cost time.Duration, now time.Time) bool {
	if side == Client {
		return p.asked.take(cost, now)
	}
	if own, ok := p.addresses.get(from, now); ok {
		return own.take(cost, now) && p.proven.take(cost, now)
	}
	return p.strangers.take(cost, now)
}

// IdentityOf returns whom a claim of this package is of, as its certificate has it.
func IdentityOf(claim *token.Claim) *pki.Identity { return claim.Identity.Rights.(*pki.Identity) }

// nodeOf is whose quota a claim counts against: the CA vouches for the name.
func nodeOf(claim *token.Claim) string { return IdentityOf(claim).Node }

// A verifier verifies certificates under one trust.
type verifier struct {
	*Peers
	trust *pki.Trust
}

// Verify is for token.Checker.
func (v verifier) Verify(der []byte, now time.Time) (token.Identity, error) {
	id, err := v.identity(der, now)
	if err != nil {
		return token.Identity{}, err
	}
	return token.Identity{PublicKey: id.PublicKey, NotAfter: id.NotAfter, Rights: id}, nil
}

func (v verifier) identity(der []byte, now time.Time) (*pki.Identity, error) {
	sum := sha256.Sum256(der)
	generation := v.trust.Generation()
	v.mu.Lock()
	c, ok := v.certs.get(sum, now)
	v.mu.Unlock()
	if ok && c.generation == generation {
		return c.identity, c.identity.ValidAt(now)
	}
	id, err := v.trust.Verify(der, now)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.certs.put(sum, certificate{id, generation}, now.Add(certificateTime))
	return id, nil
}
