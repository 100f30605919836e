package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// The files of both kinds of directories; see the package comment.
const (
	nodeKeyFile  = "node.key"
	nextKeyFile  = "next.key"
	nodeCertFile = "node.crt"
	trustFile    = "trust.pem"
	caKeyFile    = "ca.key"
	caCertFile   = "ca.crt"
	listFile     = "ca.crl"
	issuedDir    = "issued"
)

// A Node is what a node's directory holds.
type Node struct {
	Key      ed25519.PrivateKey
	Identity *Identity
	Trust    *Trust
}

// Load reads a node's directory: its certificate, which must hold now, its key, and
// whom it trusts. It changes nothing. An error is one of this package, or fs.ErrNotExist
// where something is not there; nothing is returned then.
//
// Who loads again checks the new Trust against the old one: Trust.Follows.
func Load(dir string, now time.Time) (*Node, error) {
	node, _, err := LoadPart(dir, now)
	return node, err
}

// LoadPart is Load, but where only the certificate or the key cannot be used, it returns the Trust beside the error:
// somebody may have been revoked.
func LoadPart(dir string, now time.Time) (*Node, *Trust, error) {
	d, unlock, err := openDirectory(dir, syscall.LOCK_SH)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	trust, err := d.trust()
	if err != nil {
		return nil, nil, err
	}
	der, err := d.certificate()
	if err != nil {
		return nil, trust, err
	}
	id, err := trust.Verify(der, now)
	if err != nil {
		return nil, trust, fmt.Errorf("%s: %w", d.file(nodeCertFile), err)
	}
	_, key, err := d.keyOf(id)
	if err != nil {
		return nil, trust, err
	}
	return &Node{Key: key, Identity: id, Trust: trust}, trust, nil
}

// Files returns the names of the files of a node's directory that Load reads.
func Files() []string { return []string{nodeKeyFile, nextKeyFile, nodeCertFile, trustFile} }

// trust returns whom a node's directory says to trust.
func (d directory) trust() (*Trust, error) {
	data, err := d.readPublic(trustFile)
	if err != nil {
		return nil, err
	}
	trust, err := parseTrust(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(trustFile), err)
	}
	return trust, nil
}

func parseTrust(data []byte) (*Trust, error) {
	var cas, lists [][]byte
	for len(data) > 0 {
		block, rest := pem.Decode(data)
		switch {
		case block == nil:
			return nil, fmt.Errorf("%w: the file is not PEM up to its end", ErrMalformed)
		case block.Type == blockCertificate:
			cas = append(cas, block.Bytes)
		case block.Type == blockList && len(lists) < maxCAs:
			lists = append(lists, block.Bytes)
		default:
			return nil, fmt.Errorf("%w: the file contains a %s too many", ErrMalformed, block.Type)
		}
		data = rest
	}
	return NewTrust(cas, lists)
}

func (d directory) certificate() ([]byte, error) {
	data, err := d.readPublic(nodeCertFile)
	if err != nil {
		return nil, err
	}
	der, err := block(data, blockCertificate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(nodeCertFile), err)
	}
	return der, nil
}

// keyOf returns the key that the certificate is for, and its file: the node's key, or
// the next one, if Install was interrupted.
func (d directory) keyOf(id *Identity) (name string, key ed25519.PrivateKey, err error) {
	for _, name := range []string{nodeKeyFile, nextKeyFile} {
		key, err := d.key(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if id.PublicKey.Equal(key.Public()) {
			return name, key, nil
		}
	}
	return "", nil, fmt.Errorf("%w: %s of node %s was requested with a key that is not in %s", ErrNoKey, id.Serial,
		id.Node, d.path)
}

func (d directory) key(name string) (ed25519.PrivateKey, error) {
	data, err := d.readSecret(name)
	if err != nil {
		return nil, err
	}
	der, err := block(data, blockKey)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(name), err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w key", d.file(name), ErrMalformed) // the cause could quote the key
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %w key: allowed: Ed25519", d.file(name), ErrMalformed)
	}
	return key, nil
}

// newKey makes a key in a file that must not be there yet.
func (d directory) newKey(name string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %v", err)
	}
	return key, d.writeKey(name, key)
}

func (d directory) writeKey(name string, key ed25519.PrivateKey) error {
	if _, err := os.Lstat(d.file(name)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already", d.file(name))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding a key: %v", err)
	}
	return d.write(name, encodePEM(blockKey, der), 0o600)
}

// Request returns a request for a certificate, PEM, and makes the key for it if there
// is none. With next it is for a new key, which takes the place of the present one when
// its certificate is installed.
func Request(dir, node string, next bool) ([]byte, error) {
	if err := checkNode(node); err != nil {
		return nil, err
	}
	d, unlock, err := makeDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.refuseCA(); err != nil {
		return nil, err
	}
	name := nodeKeyFile
	if next {
		name = nextKeyFile
	}
	key, err := d.key(name)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = d.newKey(name)
	}
	if err != nil {
		return nil, err
	}
	der, err := NewRequest(node, key)
	if err != nil {
		return nil, err
	}
	return encodePEM(blockRequest, der), nil
}

func (d directory) refuseCA() error {
	if _, err := os.Lstat(d.file(caKeyFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s is the directory of a CA; a node needs a directory of its own", d.path)
}

// A Delivery is what a node is given: PEM each, and each may be missing.
type Delivery struct {
	Certificate []byte
	CAs         []byte // all that are trusted from now on, one or two
	Lists       []byte // of CAs that are trusted; they stand beside those that are there
}

// Install verifies a delivery and writes it to a node's directory, so that Load sees all
// of it or nothing. It refuses a certificate that does not hold now or for which there
// is no key here, CAs that did not issue the node's certificate, and older lists. A list
// that revokes the node itself is installed.
func Install(dir string, in Delivery, now time.Time) (*Trust, error) {
	d, unlock, err := openDirectory(dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.refuseCA(); err != nil {
		return nil, err
	}
	trust, err := d.nextTrust(in)
	if err != nil {
		return nil, err
	}
	id, err := d.nextIdentity(in, trust, now)
	if err != nil {
		return nil, err
	}
	if err := d.writeTrust(trust); err != nil {
		return nil, err
	}
	if in.Certificate == nil {
		return trust, nil
	}
	return trust, d.writeIdentity(id)
}

// nextTrust returns whom the node trusts with the delivery.
func (d directory) nextTrust(in Delivery) (*Trust, error) {
	before, err := d.trust()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		before = &Trust{}
	case err != nil:
		return nil, err
	}
	var cas, lists [][]byte
	for _, ca := range before.cas {
		cas = append(cas, ca.cert.Raw)
	}
	if in.CAs != nil {
		if cas, err = blocks(in.CAs, blockCertificate, maxCAs); err != nil {
			return nil, fmt.Errorf("the CA's certificate: %w", err)
		}
	}
	if len(cas) == 0 {
		return nil, fmt.Errorf("no CA is trusted in %s yet: give one with --ca", d.path)
	}
	if in.Lists != nil {
		if lists, err = blocks(in.Lists, blockList, maxCAs); err != nil {
			return nil, fmt.Errorf("the revocation list: %w", err)
		}
	}
	given, err := NewTrust(cas, lists)
	if err != nil {
		return nil, err
	}
	return given.keepLists(before)
}

// keepLists adds the lists of another Trust where there are none, and refuses to go back.
func (t *Trust) keepLists(before *Trust) (*Trust, error) {
	next := &Trust{cas: append([]trustedCA(nil), t.cas...)}
	for i := range next.cas {
		ca := &next.cas[i]
		if old := before.find(ca.cert.Raw); ca.list == nil && old != nil {
			ca.list = old.list
		}
	}
	next.generation = next.hash()
	return next, next.Follows(before)
}

// nextIdentity returns the identity in a delivery. If there is none, the installed
// certificate must only be one of a CA that is still trusted.
func (d directory) nextIdentity(in Delivery, trust *Trust, now time.Time) (*Identity, error) {
	if in.Certificate != nil {
		der, err := block(in.Certificate, blockCertificate)
		if err != nil {
			return nil, fmt.Errorf("the certificate: %w", err)
		}
		id, err := trust.Verify(der, now)
		if err != nil {
			return nil, err
		}
		_, _, err = d.keyOf(id)
		return id, err
	}
	der, err := d.certificate()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id, _, err := trust.verifyOrigin(der)
	if err != nil {
		return nil, fmt.Errorf("the installed certificate would not be trusted here: %w: install the new one first, "+
			"or with this", err)
	}
	return id, nil
}

func (d directory) writeTrust(t *Trust) error {
	var data []byte
	for _, ca := range t.cas {
		data = append(data, encodePEM(blockCertificate, ca.cert.Raw)...)
		if ca.list != nil {
			data = append(data, encodePEM(blockList, ca.list.raw)...)
		}
	}
	return d.write(trustFile, data, 0o644)
}

// writeIdentity writes the certificate before it moves the key: Load takes the key that
// fits.
func (d directory) writeIdentity(id *Identity) error {
	if err := d.write(nodeCertFile, encodePEM(blockCertificate, id.Certificate), 0o644); err != nil {
		return err
	}
	name, _, err := d.keyOf(id)
	if err != nil || name == nodeKeyFile {
		return err
	}
	return d.rename(d.file(nextKeyFile), d.file(nodeKeyFile))
}
