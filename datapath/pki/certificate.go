package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"
)

// The object identifiers; see the package comment.
var (
	oidScope = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 1414025036, 1}
	oidUsage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 1414025036, 2}
)

var (
	oidCRLNumber    = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidAuthorityKey = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// A signed structure of X.509: what was signed, how, and the signature.
type signed struct {
	Content   asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

var oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}

// isCanonical reports whether the bytes around the signed part, which no signature
// covers, are the only ones possible: Go's parser does not look behind the signature.
func isCanonical(der, content, signature []byte) bool {
	again, err := asn1.Marshal(signed{
		Content:   asn1.RawValue{FullBytes: content},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidEd25519},
		Signature: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
	return err == nil && len(signature) == ed25519.SignatureSize && bytes.Equal(again, der)
}

// parseCertificate reads a certificate of a node or a CA, and does not yet believe it.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificate {
		return nil, fmt.Errorf("%w certificate: more than %d bytes", ErrMalformed, MaxCertificate)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w certificate: %v", ErrMalformed, err)
	}
	if cert.Version != 3 || cert.SignatureAlgorithm != x509.PureEd25519 || cert.PublicKeyAlgorithm != x509.Ed25519 {
		return nil, fmt.Errorf("%w certificate: allowed: X.509 v3 with Ed25519, for the key and for the signature",
			ErrMalformed)
	}
	if !isCanonical(der, cert.RawTBSCertificate, cert.Signature) {
		return nil, fmt.Errorf("%w certificate: it is not in its canonical encoding", ErrMalformed)
	}
	return cert, nil
}

// readIdentity returns what a node's certificate says. Whether that is true is not
// asked here: neither the signature is checked, nor the time, nor a list.
func readIdentity(cert *x509.Certificate) (*Identity, error) {
	if err := checkUsage(cert); err != nil {
		return nil, err
	}
	serial, ok := serialOf(cert.SerialNumber)
	if !ok {
		return nil, fmt.Errorf("%w certificate: its serial number has more than %d bytes", ErrMalformed, len(serial))
	}
	node := cert.Subject.CommonName
	if err := checkSubject(cert.RawSubject, node); err != nil {
		return nil, fmt.Errorf("%w certificate: %v", ErrMalformed, err)
	}
	extension := cert.Extensions[slices.IndexFunc(cert.Extensions, isScope)] // checkUsage found it
	scope, err := decodeScope(extension.Value)
	if err != nil {
		return nil, err
	}
	return &Identity{
		Node:        node,
		PublicKey:   cert.PublicKey.(ed25519.PublicKey), // parseCertificate saw the algorithm
		Serial:      serial,
		Grants:      scope.Grants,
		Require:     scope.Require,
		Addresses:   scope.Addresses,
		NotBefore:   cert.NotBefore,
		NotAfter:    cert.NotAfter,
		Certificate: cert.Raw,
	}, nil
}

func isScope(e pkix.Extension) bool { return e.Id.Equal(oidScope) && e.Critical }

// checkUsage accepts a certificate that was made for a node, and for nothing else.
func checkUsage(cert *x509.Certificate) error {
	switch {
	case !cert.BasicConstraintsValid || cert.IsCA:
		return fmt.Errorf("%w: the certificate is one of a CA", ErrUsage)
	case cert.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("%w: the certificate's key usage is not digitalSignature alone", ErrUsage)
	case !hasUsage(cert):
		return fmt.Errorf("%w: the certificate's extended key usage is not %v alone", ErrUsage, oidUsage)
	case !slices.ContainsFunc(cert.Extensions, isScope):
		return fmt.Errorf("%w: the certificate has no critical extension %v", ErrUsage, oidScope)
	}
	return checkCritical(cert, oidScope)
}

func hasUsage(cert *x509.Certificate) bool {
	return len(cert.ExtKeyUsage) == 0 && len(cert.UnknownExtKeyUsage) == 1 && cert.UnknownExtKeyUsage[0].Equal(oidUsage)
}

// checkCritical refuses critical extensions that neither Go's parser nor we know, and
// those that would narrow what we do not ask about.
func checkCritical(cert *x509.Certificate, known ...asn1.ObjectIdentifier) error {
	for _, e := range cert.Extensions {
		isOurs := slices.ContainsFunc(known, e.Id.Equal) || isUsageExtension(e.Id)
		if e.Critical && !isOurs {
			return fmt.Errorf("%w: the certificate has the critical extension %v, which is unknown here",
				ErrUsage, e.Id)
		}
	}
	return nil
}

// isUsageExtension names keyUsage, basicConstraints and extKeyUsage.
func isUsageExtension(id asn1.ObjectIdentifier) bool {
	return len(id) == 4 && slices.Equal(id[:3], []int{2, 5, 29}) && slices.Contains([]int{15, 19, 37}, id[3])
}

// checkSubject accepts a name that consists of a node's name alone.
func checkSubject(raw []byte, node string) error {
	if err := checkNode(node); err != nil {
		return err
	}
	want, err := asn1.Marshal(pkix.Name{CommonName: node}.ToRDNSequence())
	if err != nil || !bytes.Equal(raw, want) {
		return fmt.Errorf("the subject of %s has more than a common name", node)
	}
	return nil
}

// A Validity is the time in which a certificate holds.
type Validity struct{ NotBefore, NotAfter time.Time }

// For returns the validity that begins now and lasts so long, in whole seconds.
func For(now time.Time, lifetime time.Duration) Validity {
	now = now.UTC().Truncate(time.Second)
	return Validity{now, now.Add(lifetime)}
}
