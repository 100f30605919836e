package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The bounds of what is trusted.
const (
	maxCAs      = 2       // the fleet's, and the next one while it changes
	maxListSize = 1 << 20 // bytes of one revocation list: some 35,000 certificates
)

// A Trust is a set of CAs, each with its revocation list or none yet. It is not
// changed by anybody.
type Trust struct {
	cas        []trustedCA
	generation uint64
}

type trustedCA struct {
	cert *x509.Certificate
	list *revocationList // nil: none yet
}

// A revocationList is a CA's list, its signature checked.
type revocationList struct {
	raw     []byte
	number  uint64
	revoked map[Serial]time.Time
}

// NewTrust makes a Trust of one or two CAs' certificates and their lists, all in DER.
// Of several lists of one CA the one with the highest number counts.
func NewTrust(cas, lists [][]byte) (*Trust, error) {
	if len(cas) == 0 || len(cas) > maxCAs {
		return nil, fmt.Errorf("%d CAs are given; allowed: one, or two while the fleet changes from one to the other",
			len(cas))
	}
	t := &Trust{}
	for _, der := range cas {
		cert, err := parseCA(der)
		if err != nil {
			return nil, err
		}
		if t.find(cert.Raw) != nil {
			return nil, fmt.Errorf("the CA %s is given twice", cert.Subject.CommonName)
		}
		t.cas = append(t.cas, trustedCA{cert: cert})
	}
	for _, der := range lists {
		if err := t.addList(der); err != nil {
			return nil, err
		}
	}
	t.generation = t.hash()
	return t, nil
}

// parseCA reads the certificate of a CA made by this package, signed by itself.
func parseCA(der []byte) (*x509.Certificate, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !hasUsage(cert) {
		return nil, fmt.Errorf("%w: the certificate of %q is not that of a fleet's CA", ErrUsage,
			cert.Subject.CommonName)
	}
	if err := checkCritical(cert); err != nil {
		return nil, err
	}
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) || cert.CheckSignatureFrom(cert) != nil {
		return nil, fmt.Errorf("%w: the CA %q is not signed by itself", ErrForeign, cert.Subject.CommonName)
	}
	return cert, nil
}

// addList takes a list in while the Trust is made.
func (t *Trust) addList(der []byte) error {
	parsed, list, err := parseList(der)
	if err != nil {
		return err
	}
	for i := range t.cas {
		ca := &t.cas[i]
		if !bytes.Equal(parsed.RawIssuer, ca.cert.RawSubject) || parsed.CheckSignatureFrom(ca.cert) != nil {
			continue
		}
		if ca.list == nil || list.number > ca.list.number {
			ca.list = list
		}
		return nil
	}
	return fmt.Errorf("%w: the revocation list of %q", ErrForeign, parsed.Issuer.CommonName)
}

// parseList reads a list, and does not yet believe it.
func parseList(der []byte) (*x509.RevocationList, *revocationList, error) {
	if len(der) > maxListSize {
		return nil, nil, fmt.Errorf("%w revocation list: more than %d bytes", ErrMalformed, maxListSize)
	}
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%w revocation list: %v", ErrMalformed, err)
	}
	if !isCanonical(der, parsed.RawTBSRevocationList, parsed.Signature) {
		return nil, nil, fmt.Errorf("%w revocation list: it is not in its canonical encoding, "+
			"or not signed with Ed25519", ErrMalformed)
	}
	if parsed.Number == nil || !parsed.Number.IsUint64() {
		return nil, nil, fmt.Errorf("%w revocation list: it has no number of at most 64 bits", ErrMalformed)
	}
	for _, e := range parsed.Extensions {
		if !e.Id.Equal(oidCRLNumber) && !e.Id.Equal(oidAuthorityKey) {
			return nil, nil, fmt.Errorf("%w revocation list: it has the extension %v and may be incomplete",
				ErrMalformed, e.Id)
		}
	}
	list := &revocationList{raw: der, number: parsed.Number.Uint64(), revoked: make(map[Serial]time.Time)}
	for _, e := range parsed.RevokedCertificateEntries {
		serial, ok := serialOf(e.SerialNumber)
		if !ok || len(e.Extensions) > 0 {
			return nil, nil, fmt.Errorf("%w revocation list: an entry that is not a serial number and a time",
				ErrMalformed)
		}
		list.revoked[serial] = e.RevocationTime
	}
	return parsed, list, nil
}

// Verify returns the identity that a certificate gives, if one of the CAs issued it,
// it holds now, and its CA has not revoked it.
func (t *Trust) Verify(der []byte, now time.Time) (*Identity, error) {
	id, ca, err := t.verifyOrigin(der)
	if err != nil {
		return nil, err
	}
	if err := id.ValidAt(now); err != nil {
		return nil, err
	}
	if err := ca.checkRevoked(id); err != nil {
		return nil, err
	}
	return id, nil
}

// verifyOrigin verifies all but the time and the lists.
func (t *Trust) verifyOrigin(der []byte) (*Identity, *trustedCA, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	ca := t.issuer(cert)
	if ca == nil {
		return nil, nil, fmt.Errorf("%w: a certificate of %q by %q; trusted: %s", ErrForeign, cert.Subject.CommonName,
			cert.Issuer.CommonName, t)
	}
	id, err := readIdentity(cert)
	if err != nil {
		return nil, nil, err
	}
	if ca.cert.NotBefore.After(id.NotBefore) {
		id.NotBefore = ca.cert.NotBefore
	}
	if ca.cert.NotAfter.Before(id.NotAfter) {
		id.NotAfter = ca.cert.NotAfter
	}
	id.Reference = ca.name() + "/" + id.Serial.String()
	return id, ca, nil
}

// name tells a CA from all others.
func (ca *trustedCA) name() string {
	sum := sha256.Sum256(ca.cert.Raw)
	return hex.EncodeToString(sum[:16])
}

// Vouches reports whether what a certificate once proved may be believed still, by its
// Identity's Reference: its CA is trusted, and has not revoked it. That it has expired
// does not matter: what was proven then was true.
func (t *Trust) Vouches(reference string) bool {
	name, number, _ := strings.Cut(reference, "/")
	serial, err := ParseSerial(number)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(t.cas, func(ca trustedCA) bool {
		return ca.name() == name && ca.checkRevoked(&Identity{Serial: serial}) == nil
	})
}

// issuer returns the CA that signed a certificate, or nil.
func (t *Trust) issuer(cert *x509.Certificate) *trustedCA {
	for i := range t.cas {
		ca := &t.cas[i]
		if bytes.Equal(cert.RawIssuer, ca.cert.RawSubject) && cert.CheckSignatureFrom(ca.cert) == nil {
			return ca
		}
	}
	return nil
}

func (ca *trustedCA) checkRevoked(id *Identity) error {
	if ca.list == nil {
		return nil
	}
	if at, ok := ca.list.revoked[id.Serial]; ok {
		return fmt.Errorf("%w: the certificate %s of node %s, on %s (list %d of %s)", ErrRevoked, id.Serial, id.Node,
			stamp(at), ca.list.number, ca.cert.Subject.CommonName)
	}
	return nil
}

// Generation is a number that is another one where a CA or a list is another one. What
// was concluded under one generation does not count under another.
func (t *Trust) Generation() uint64 { return t.generation }

func (t *Trust) hash() uint64 {
	h := sha256.New()
	add := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
	for _, ca := range t.cas {
		add(ca.cert.Raw)
		if ca.list == nil {
			add(nil)
			continue
		}
		add(ca.list.raw)
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// Follows says whether this Trust may take the place of another: no CA that both trust
// has lost its list or has an older one. The error is ErrOlderList.
func (t *Trust) Follows(before *Trust) error {
	var errs []error
	for _, old := range before.cas {
		ca := t.find(old.cert.Raw)
		if ca == nil || old.list == nil {
			continue
		}
		name := old.cert.Subject.CommonName
		switch {
		case ca.list == nil:
			errs = append(errs, fmt.Errorf("%w: there is no revocation list of %s; number %d is installed",
				ErrOlderList, name, old.list.number))
		case ca.list.number < old.list.number:
			errs = append(errs, fmt.Errorf("%w: revocation list %d of %s; number %d is installed", ErrOlderList,
				ca.list.number, name, old.list.number))
		case ca.list.number == old.list.number && !bytes.Equal(ca.list.raw, old.list.raw):
			errs = append(errs, fmt.Errorf("%w: revocation list %d of %s; another one with that number is installed",
				ErrOlderList, ca.list.number, name))
		}
	}
	return errors.Join(errs...)
}

// find returns the CA with this certificate, or nil.
func (t *Trust) find(der []byte) *trustedCA {
	i := slices.IndexFunc(t.cas, func(ca trustedCA) bool { return bytes.Equal(ca.cert.Raw, der) })
	if i < 0 {
		return nil
	}
	return &t.cas[i]
}

// String names the CAs.
func (t *Trust) String() string {
	var b bytes.Buffer
	for i, ca := range t.cas {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", ca.cert.Subject.CommonName)
	}
	return b.String()
}
