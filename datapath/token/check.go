package token

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"thole/datapath/refusal"
	"time"
)

// A Verifier verifies certificates.
type Verifier interface {
	// Verify returns whom der certifies at now. Its chain, times and extensions are in
	// order, and it is not revoked.
	Verify(der []byte, now time.Time) (Identity, error)
}

// An Identity is what a certificate says of a node.
type Identity struct {
	PublicKey ed25519.PublicKey
	NotAfter  time.Time // as the certificate says; MaxSkew comes on top
	Rights
}

// Rights are what a certificate lets its node do.
type Rights interface {
	// MayAssert returns labels with those that the certificate adds, or why it does not
	// grant them. It does not change labels.
	MayAssert(labels map[string]string) (map[string]string, error)
	// MaySpeakFrom reports whether the node may use the address.
	MaySpeakFrom(netip.Addr) bool
}

// A Checker checks statements of other nodes.
type Checker struct {
	Verifier Verifier
	Self     ed25519.PublicKey // this node's: what it signed is refused
}

// A Claim is what a statement that was checked proves of who holds its ephemeral key.
type Claim struct {
	Statement *Statement
	Identity  Identity
	Labels    map[string]string // the statement's, and those that the certificate adds
}

// Check verifies a statement that came from an address, cheap before dear where the
// order is free: certificate, signature, times, address, grants.
func (c *Checker) Check(s *Statement, from netip.Addr, now time.Time) (*Claim, error) {
	identity, err := c.Verifier.Verify(s.Certificate, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.BadCertificate, err)
	}
	if c.Self.Equal(identity.PublicKey) {
		return nil, refusal.Reflected
	}
	if !s.signedBy(identity.PublicKey) {
		return nil, refusal.BadSignature
	}
	claim := &Claim{Statement: s, Identity: identity}
	if err := claim.Admit(from, now); err != nil {
		return nil, err
	}
	if claim.Labels, err = identity.MayAssert(s.Labels); err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.NotGranted, err)
	}
	return claim, nil
}

// Admit reports why a claim that was checked before does not hold for a packet from
// this address now. Short tokens need it each time: their statement was checked for
// another packet. Whether the certificate was revoked meanwhile is for who keeps the
// claim.
func (c *Claim) Admit(from netip.Addr, now time.Time) error {
	if now.Before(c.Statement.NotBefore.Add(-MaxSkew)) {
		return refusal.NotYetValid
	}
	if now.After(c.Until()) {
		return refusal.Expired
	}
	if !c.Identity.MaySpeakFrom(from) {
		return refusal.WrongAddress
	}
	return nil
}

// Until is the last moment of the claim: of its statement or of the certificate.
func (c *Claim) Until() time.Time {
	if end := c.Identity.NotAfter.Add(MaxSkew); end.Before(c.Statement.end()) {
		return end
	}
	return c.Statement.end()
}
