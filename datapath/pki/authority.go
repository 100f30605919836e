package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
)

// An Authority is a CA with its key. It signs what it is asked to and remembers
// nothing; see CADir.
type Authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
}

// NewAuthority makes a CA with a new key, which certifies itself. The name is that of
// the fleet; what tells two CAs of one name apart is added to it.
func NewAuthority(name string, validity Validity) (*Authority, error) {
	if err := checkNode(name); err != nil || len(name) > 16 {
		return nil, fmt.Errorf("invalid CA name %q: must be at most 16 lower-case letters, "+
			"digits, . and - between them", name)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the CA's key: %v", err)
	}
	sum := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber:          newSerial().number(),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s-%x", name, sum[:4])},
		NotBefore:             validity.NotBefore,
		NotAfter:              validity.NotAfter,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidUsage},
		SubjectKeyId:          sum[:8],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, fmt.Errorf("making the CA's certificate: %v", err)
	}
	cert, err := parseCA(der)
	if err != nil {
		return nil, fmt.Errorf("making the CA's certificate: %w", err)
	}
	return &Authority{key: key, cert: cert}, nil
}

// Name is the CA's subject.
func (a *Authority) Name() string { return a.cert.Subject.CommonName }

// Issue certifies that the key is the node's, and what the node may do. It returns DER.
func (a *Authority) Issue(node string, key ed25519.PublicKey, scope Scope, validity Validity) ([]byte, error) {
	if err := checkNode(node); err != nil {
		return nil, err
	}
	if err := scope.check(); err != nil {
		return nil, err
	}
	if err := a.checkValidity(validity); err != nil {
		return nil, err
	}
	extension, err := scope.encode()
	if err != nil {
		return nil, fmt.Errorf("encoding the grants: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial().number(),
		Subject:               pkix.Name{CommonName: node},
		NotBefore:             validity.NotBefore,
		NotAfter:              validity.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidUsage},
		ExtraExtensions:       []pkix.Extension{{Id: oidScope, Critical: true, Value: extension}},
	}
	parent := *a.cert
	parent.SubjectKeyId = nil // the issuer's name is unique: 21 bytes less in every handshake
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate: %v", err)
	}
	if len(der) > MaxCertificate {
		return nil, fmt.Errorf("the certificate has %d bytes; allowed: %d, because every handshake contains it: "+
			"grant fewer values, or prefixes", len(der), MaxCertificate)
	}
	return der, nil
}

func (a *Authority) checkValidity(v Validity) error {
	switch {
	case !v.NotAfter.After(v.NotBefore):
		return errors.New("a certificate must be valid for some time")
	case v.NotAfter.After(a.cert.NotAfter):
		return fmt.Errorf("the certificate would be valid until %s, and the CA %s is valid until %s: "+
			"issue it for fewer days, or make the next CA", stamp(v.NotAfter), a.Name(), stamp(a.cert.NotAfter))
	}
	return nil
}

// List signs a revocation list, DER.
func (a *Authority) List(number uint64, revoked map[Serial]time.Time, now time.Time) ([]byte, error) {
	template := &x509.RevocationList{
		Number:     new(big.Int).SetUint64(number),
		ThisUpdate: now,
		NextUpdate: latest(now, a.cert.NotAfter), // RFC 5280 wants one; lists do not expire here
	}
	for _, serial := range slices.SortedFunc(maps.Keys(revoked), compareSerials) {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial.number(), RevocationTime: revoked[serial]})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list: %v", err)
	}
	if len(der) > maxListSize {
		return nil, fmt.Errorf("the revocation list has %d bytes; allowed: %d: make the next CA, whose list is empty",
			len(der), maxListSize)
	}
	return der, nil
}

func compareSerials(a, b Serial) int { return strings.Compare(string(a[:]), string(b[:])) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// NewRequest asks for a certificate for a key: PKCS #10, DER.
func NewRequest(node string, key ed25519.PrivateKey) ([]byte, error) {
	if err := checkNode(node); err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}

// ParseRequest returns who asks, and the key of which the request proves possession. A
// request only names a node: what it may assert is for the CA to say.
func ParseRequest(der []byte) (node string, key ed25519.PublicKey, err error) {
	if len(der) > MaxCertificate {
		return "", nil, fmt.Errorf("%w request: more than %d bytes", ErrMalformed, MaxCertificate)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return "", nil, fmt.Errorf("%w request: %v", ErrMalformed, err)
	}
	key, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok || r.SignatureAlgorithm != x509.PureEd25519 {
		return "", nil, fmt.Errorf("%w request: its key is %v; allowed: Ed25519", ErrMalformed, r.PublicKeyAlgorithm)
	}
	if err := r.CheckSignature(); err != nil {
		return "", nil, fmt.Errorf("%w request: its signature is not by its key", ErrMalformed)
	}
	if len(r.Extensions) > 0 {
		return "", nil, fmt.Errorf("%w request: it asks for extensions; allowed: a name and a key", ErrMalformed)
	}
	node = r.Subject.CommonName
	if err := checkSubject(r.RawSubject, node); err != nil {
		return "", nil, fmt.Errorf("%w request: %v", ErrMalformed, err)
	}
	return node, key, nil
}
