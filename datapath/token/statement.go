package token

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"thole/datapath/refusal"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxStatement is the largest statement in bytes: with it, T2 full fits into one
	// packet on IPv6's smallest path, 1280 − 40 (IPv6) − 20 (TCP) − 20 (its options on a
	// SYN) − 8 (ours) − 38.
	MaxStatement = 1154
	// MaxLifetime bounds how long a statement may be said to hold.
	MaxLifetime = 300 * time.Second
	// MaxSkew is how far two nodes' clocks may differ.
	MaxSkew = 300 * time.Second

	suite          = 1
	fixedSize      = 112                         // of a statement, without certificate and labels
	signatureStart = fixedSize - 64              // as far as there are neither certificate nor labels
	minStatement   = fixedSize + 1 + 3           // a certificate of a byte, a key of a byte, no value
	maxLabelPart   = 255                         // bytes of a key, or of a value
	maxNotBefore   = 253_402_300_799             // seconds: the last of the year 9999
	signedPrefix   = "thole/1 statement\x00"     // what else the node's key signs begins otherwise
	reservedPrefix = "thole/"                    // labels that only a daemon sets
	maxBody        = MaxStatement - (64)         // bytes before the signature
	maxSigned      = len(signedPrefix) + maxBody // bytes that are signed
)

// Content is what a statement says: for the time from NotBefore on, who holds the
// private key of Ephemeral speaks for a workload with these labels on the certified
// node. Seconds count; what is below is cut off.
type Content struct {
	NotBefore   time.Time
	Lifetime    time.Duration
	Ephemeral   [32]byte // X25519
	Certificate []byte   // DER
	Labels      map[string]string
}

// A Statement is a signed Content. It is never changed once it is made.
type Statement struct {
	Content
	bytes []byte
	hash  [sha256.Size]byte
}

// A TooBigError says that a statement would not fit, with both numbers.
type TooBigError struct {
	Size, Limit int // bytes
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("the labels and the certificate make a statement of %d bytes; allowed: %d", e.Size, e.Limit)
}

// Fits reports why no statement can be made of labels and a certificate: a
// *TooBigError, or a refusal.Reason.
func Fits(labels map[string]string, certificate []byte) error {
	if len(certificate) == 0 {
		return refusal.BadLength
	}
	size := fixedSize + len(certificate)
	for key, value := range labels {
		if reason := checkLabel(key, value); reason != 0 {
			return fmt.Errorf("label %q: %w", key, reason)
		}
		size += 2 + len(key) + len(value)
	}
	switch {
	case len(labels) == 0:
		return refusal.NoLabels
	case size > MaxStatement:
		return &TooBigError{Size: size, Limit: MaxStatement}
	}
	return nil
}

// Sign makes a statement of this node, with its key and a fresh ephemeral one of
// X25519, which c.Ephemeral is set to. What it is given is copied.
func Sign(c Content, node ed25519.PrivateKey, ephemeral *ecdh.PrivateKey) (*OwnStatement, error) {
	if ephemeral.Curve() != ecdh.X25519() {
		return nil, errors.New("the ephemeral key is not one of X25519")
	}
	c.Ephemeral = [32]byte(ephemeral.PublicKey().Bytes())
	s, err := sign(c, node)
	if err != nil {
		return nil, err
	}
	return &OwnStatement{Statement: s, key: ephemeral}, nil
}

func sign(c Content, node ed25519.PrivateKey) (*Statement, error) {
	if err := Fits(c.Labels, c.Certificate); err != nil {
		return nil, err
	}
	notBefore, lifetime := c.NotBefore.Unix(), c.Lifetime/time.Second
	if notBefore < 0 || !validTimes(uint64(notBefore), lifetime) {
		return nil, refusal.BadLifetime
	}
	body := c.appendBody(make([]byte, 0, MaxStatement))
	return ParseStatement(append(body, ed25519.Sign(node, signed(body))...))
}

// appendBody appends all but the signature.
func (c *Content) appendBody(b []byte) []byte {
	labels := appendLabels(nil, c.Labels)
	b = append(b, Version, suite)
	b = binary.BigEndian.AppendUint64(b, uint64(c.NotBefore.Unix()))
	b = binary.BigEndian.AppendUint16(b, uint16(c.Lifetime/time.Second))
	b = append(b, c.Ephemeral[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Certificate)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(labels)))
	b = append(b, c.Certificate...)
	return append(b, labels...)
}

func appendLabels(b []byte, labels map[string]string) []byte {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		b = append(b, byte(len(key)), byte(len(value)))
		b = append(b, key...)
		b = append(b, value...)
	}
	return b
}

// ParseStatement parses all of b, which it copies: statements outlive their packet.
// Nothing is verified; see Checker.
func ParseStatement(b []byte) (*Statement, error) {
	switch {
	case len(b) < minStatement || len(b) > MaxStatement:
		return nil, refusal.BadLength
	case b[0] != Version:
		return nil, refusal.BadVersion
	case b[1] != suite:
		return nil, refusal.BadSuite
	}
	certificate := int(binary.BigEndian.Uint16(b[44:]))
	labels := int(binary.BigEndian.Uint16(b[46:]))
	if certificate == 0 || fixedSize+certificate+labels != len(b) {
		return nil, refusal.BadLength
	}
	notBefore := binary.BigEndian.Uint64(b[2:])
	lifetime := time.Duration(binary.BigEndian.Uint16(b[10:]))
	if !validTimes(notBefore, lifetime) {
		return nil, refusal.BadLifetime
	}
	parsed, err := parseLabels(b[signatureStart+certificate : signatureStart+certificate+labels])
	if err != nil {
		return nil, err
	}
	s := &Statement{bytes: slices.Clone(b), hash: sha256.Sum256(b)}
	s.NotBefore = time.Unix(int64(notBefore), 0)
	s.Lifetime = lifetime * time.Second
	s.Ephemeral = [32]byte(b[12:44])
	s.Certificate = s.bytes[signatureStart : signatureStart+certificate : signatureStart+certificate]
	s.Labels = parsed
	return s, nil
}

func validTimes(notBefore uint64, seconds time.Duration) bool {
	return notBefore <= maxNotBefore && seconds > 0 && seconds <= MaxLifetime/time.Second
}

func parseLabels(b []byte) (map[string]string, error) {
	labels := make(map[string]string)
	for last := ""; len(b) > 0; {
		if len(b) < 2 {
			return nil, refusal.BadLength
		}
		key, value := int(b[0]), int(b[1])
		if len(b) < 2+key+value {
			return nil, refusal.BadLength
		}
		k, v := string(b[2:2+key]), string(b[2+key:2+key+value])
		if reason := checkLabel(k, v); reason != 0 {
			return nil, reason
		}
		if k <= last {
			return nil, refusal.LabelOrder
		}
		labels[k], last, b = v, k, b[2+key+value:]
	}
	if len(labels) == 0 {
		return nil, refusal.NoLabels
	}
	return labels, nil
}

// checkLabel returns why a label may not be in a statement, or zero. Docker lets
// labels hold nearly everything; what would disturb a terminal or a log stays at home.
func checkLabel(key, value string) refusal.Reason {
	switch {
	case key == "" || len(key) > maxLabelPart || len(value) > maxLabelPart:
		return refusal.BadLabel
	case strings.HasPrefix(key, reservedPrefix):
		return refusal.ReservedLabel
	case !printable(key) || !printable(value):
		return refusal.BadLabel
	}
	return 0
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// signed is what the node's key signs for a statement without its signature.
func signed(body []byte) []byte {
	return append(append(make([]byte, 0, maxSigned), signedPrefix...), body...)
}

// Bytes returns the encoded statement. The caller does not change it.
func (s *Statement) Bytes() []byte { return s.bytes }

// Fingerprint names the statement. It was computed from its bytes.
func (s *Statement) Fingerprint() Fingerprint { return Fingerprint(s.hash[:16]) }

// signedBy reports whether the signature is key's.
func (s *Statement) signedBy(key ed25519.PublicKey) bool {
	if len(key) != ed25519.PublicKeySize {
		return false // ed25519.Verify would panic
	}
	end := len(s.bytes) - ed25519.SignatureSize
	return ed25519.Verify(key, signed(s.bytes[:end]), s.bytes[end:])
}

// end is the last moment at which s holds, on a clock that is as late as may be.
func (s *Statement) end() time.Time { return s.NotBefore.Add(s.Lifetime + MaxSkew) }
