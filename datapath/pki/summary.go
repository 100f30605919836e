package pki

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The kinds of what a Summary is about.
const (
	KindCA      = "ca"
	KindList    = "list"
	KindNode    = "node"
	KindRequest = "request"
)

// A Summary is what people want to know of a certificate, a request or a list.
type Summary struct {
	Kind      string            `json:"kind"`
	Name      string            `json:"name"` // a list's: its CA's
	State     string            `json:"state"`
	Serial    string            `json:"serial,omitempty"`
	Issuer    string            `json:"issuer,omitempty"`
	Key       string            `json:"key,omitempty"` // KeyFingerprint
	Bytes     int               `json:"bytes"`
	NotBefore time.Time         `json:"notBefore,omitzero"`
	NotAfter  time.Time         `json:"notAfter,omitzero"`
	Grants    Grants            `json:"grants,omitempty"`
	Require   map[string]string `json:"require,omitempty"`
	Addresses []netip.Prefix    `json:"addresses,omitempty"`
	Number    uint64            `json:"number,omitempty"`  // a list's
	Revoked   *int              `json:"revoked,omitempty"` // a list's: how many
}

// KeyFingerprint is what people compare: half of the key's SHA-256, in hex.
func KeyFingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// The states of what is valid, and of what nobody vouches for: a file.
const (
	stateValid      = "valid"
	stateUnverified = "unverified"
)

// IsCA reports whether a directory is that of a CA.
func IsCA(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, caKeyFile))
	return err == nil
}

// Summarize returns what is in the directory of a node or a CA, and what state it is in.
func Summarize(dir string, now time.Time) ([]Summary, error) {
	if IsCA(dir) {
		return surveyCA(dir, now)
	}
	d, unlock, err := openDirectory(dir, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	trust, err := d.trust()
	if err != nil {
		return nil, err
	}
	all := trust.summaries(now)
	der, err := d.certificate()
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	id, ca, err := trust.verifyOrigin(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(nodeCertFile), err)
	}
	return append(all, id.summary(ca, now)), nil
}

func surveyCA(dir string, now time.Time) ([]Summary, error) {
	c, err := OpenCA(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	issued, err := c.Issued()
	if err != nil {
		return nil, err
	}
	all := c.trust.summaries(now)
	for _, i := range issued {
		all = append(all, i.summary(&c.trust.cas[0], now))
	}
	return all, nil
}

func (t *Trust) summaries(now time.Time) []Summary {
	var all []Summary
	for _, ca := range t.cas {
		all = append(all, summaryOfCA(ca.cert, now))
		if ca.list != nil {
			all = append(all, ca.list.summary(ca.cert.Subject.CommonName, stateValid))
		}
	}
	return all
}

func summaryOfCA(cert *x509.Certificate, now time.Time) Summary {
	serial, _ := serialOf(cert.SerialNumber)
	name := cert.Subject.CommonName
	return Summary{
		Kind: KindCA, Name: name, Serial: serial.String(), Bytes: len(cert.Raw),
		State: stateAt(&Identity{NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}, now),
		Key:   KeyFingerprint(cert.PublicKey.(ed25519.PublicKey)), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
	}
}

func (l *revocationList) summary(name, state string) Summary {
	n := len(l.revoked)
	return Summary{Kind: KindList, Name: name, State: state, Bytes: len(l.raw), Number: l.number, Revoked: &n}
}

// summary is that of an identity whose CA is known, or nil.
func (id *Identity) summary(ca *trustedCA, now time.Time) Summary {
	s := Summary{
		Kind: KindNode, Name: id.Node, Serial: id.Serial.String(), Bytes: len(id.Certificate), State: stateAt(id, now),
		Key: KeyFingerprint(id.PublicKey), NotBefore: id.NotBefore, NotAfter: id.NotAfter,
		Grants: id.Grants, Require: id.Require, Addresses: id.Addresses,
	}
	if ca == nil {
		s.State = stateUnverified
		return s
	}
	s.Issuer = ca.cert.Subject.CommonName
	if ca.checkRevoked(id) != nil {
		s.State = ErrRevoked.Error()
	}
	return s
}

func stateAt(id *Identity, now time.Time) string {
	err := id.ValidAt(now)
	switch {
	case errors.Is(err, ErrExpired):
		return ErrExpired.Error()
	case err != nil:
		return ErrNotYetValid.Error()
	}
	return stateValid
}

// Inspect returns what a PEM file says, which nobody vouches for.
func Inspect(data []byte, now time.Time) ([]Summary, error) {
	var all []Summary
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		s, err := inspectBlock(block, now)
		if err != nil {
			return nil, err
		}
		all, data = append(all, s), rest
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: it holds neither a certificate, nor a request, nor a revocation list (PEM)",
			ErrMalformed)
	}
	return all, nil
}

func inspectBlock(block *pem.Block, now time.Time) (Summary, error) {
	switch block.Type {
	case blockRequest:
		node, key, err := ParseRequest(block.Bytes)
		return Summary{Kind: KindRequest, Name: node, State: stateUnverified, Key: KeyFingerprint(key),
			Bytes: len(block.Bytes)}, err
	case blockList:
		parsed, list, err := parseList(block.Bytes)
		if err != nil {
			return Summary{}, err
		}
		return list.summary(parsed.Issuer.CommonName, stateUnverified), nil
	case blockCertificate:
		return inspectCertificate(block.Bytes, now)
	}
	return Summary{}, fmt.Errorf("%w: the file contains a %s", ErrMalformed, block.Type)
}

func inspectCertificate(der []byte, now time.Time) (Summary, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return Summary{}, err
	}
	if cert.IsCA {
		s := summaryOfCA(cert, now)
		s.State = stateUnverified
		return s, nil
	}
	id, err := readIdentity(cert)
	if err != nil {
		return Summary{}, err
	}
	s := id.summary(nil, now)
	s.Issuer = cert.Issuer.CommonName
	return s, nil
}
