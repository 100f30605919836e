package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"thole/compiler/policy"
)

// ClockSkew is how far the clocks of two nodes may be apart.
const ClockSkew = 300 * time.Second

// MaxCertificate is the size of the largest certificate that is read or issued. A
// statement in a handshake has 1,042 bytes for it and the labels together.
const MaxCertificate = 768

// A Serial is a certificate's number, big-endian.
type Serial [8]byte

func (s Serial) String() string { return hex.EncodeToString(s[:]) }

// ParseSerial reads what String writes.
func ParseSerial(s string) (Serial, error) {
	var serial Serial
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(serial) {
		return Serial(b), nil
	}
	return serial, fmt.Errorf("invalid serial number %q: must be %d hexadecimal digits", s, 2*len(serial))
}

func newSerial() Serial {
	var s Serial
	rand.Read(s[:]) // it never fails
	s[0] = s[0]&0x3f | 0x40
	return s
}

func (s Serial) number() *big.Int { return new(big.Int).SetBytes(s[:]) }

func serialOf(n *big.Int) (s Serial, ok bool) {
	if n == nil || n.Sign() <= 0 || n.BitLen() > 8*len(s) {
		return s, false
	}
	n.FillBytes(s[:])
	return s, true
}

// An Identity is what a verified certificate says of a node. It is not changed by
// anybody, its maps included.
type Identity struct {
	Node      string // the value of thole/node
	PublicKey ed25519.PublicKey
	Serial    Serial
	Grants    Grants            // label key → what values it may assert
	Require   map[string]string // labels that the verifier adds
	Addresses []netip.Prefix    // where it may speak from and at

	// The time in which it holds: the certificate's and the CA's.
	NotBefore, NotAfter time.Time

	Certificate []byte // DER
	Reference   string // its CA and its number: what Trust.Vouches asks for
}

// Scope returns what the certificate says beside who the node is.
func (id *Identity) Scope() Scope {
	return Scope{Grants: id.Grants, Require: id.Require, Addresses: id.Addresses}
}

// MayAssert returns the labels of a workload for which the node vouches: those that it
// asserts, those that are required of it, and its name. One label that is not granted
// refuses them all.
func (id *Identity) MayAssert(labels map[string]string) (map[string]string, error) {
	all := make(map[string]string, len(labels)+len(id.Require)+1)
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		required, fixed := id.Require[key]
		switch {
		case fixed && value != required:
			return nil, fmt.Errorf("%w: the label %s=%q to node %s, which is required to have %[2]s=%[5]s",
				ErrNotGranted, key, value, id.Node, required)
		case !fixed && !id.Grants.Allow(key, value):
			return nil, fmt.Errorf("%w: the label %s=%q to node %s; granted: %s", ErrNotGranted, quoteKey(key), value,
				id.Node, id.granted(key))
		}
		all[key] = value
	}
	maps.Copy(all, id.Require)
	all[policy.NodeFact] = id.Node
	return all, nil
}

// granted says what values of a key are granted, or, if none is, what keys are.
func (id *Identity) granted(key string) string {
	if values, ok := id.Grants[key]; ok {
		return Grants{key: values}.String()
	}
	if len(id.Grants) == 0 {
		return "no label"
	}
	return id.Grants.String()
}

// quoteKey leaves a label's key as it is, unless it came from a stranger's keyboard.
func quoteKey(key string) string {
	if policy.CheckUserLabelKey(key) == nil {
		return key
	}
	return fmt.Sprintf("%q", key)
}

// MaySpeakFrom reports whether the node may speak from (and at) an address. An IPv4
// address in IPv6's clothes is none of a node's.
func (id *Identity) MaySpeakFrom(addr netip.Addr) bool {
	if addr.Is4In6() {
		return false
	}
	addr = addr.WithZone("")
	return slices.ContainsFunc(id.Addresses, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// ValidAt says whether the time is one at which the certificate holds; the error is
// ErrNotYetValid or ErrExpired.
func (id *Identity) ValidAt(now time.Time) error {
	if now.Before(id.NotBefore.Add(-ClockSkew)) {
		return fmt.Errorf("%w: the certificate of node %s is valid from %s, and it is %s", ErrNotYetValid, id.Node,
			stamp(id.NotBefore), stamp(now))
	}
	if now.After(id.NotAfter.Add(ClockSkew)) {
		return fmt.Errorf("%w: the certificate of node %s was valid until %s, and it is %s", ErrExpired, id.Node,
			stamp(id.NotAfter), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
