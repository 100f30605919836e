package pki

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A CADir is the directory of a CA, open and locked: nobody else issues or revokes.
type CADir struct {
	*Authority
	dir   directory
	trust *Trust // in this CA, with its list
	close func()
}

// InitCA makes a CA in a directory that has none, with an empty revocation list.
func InitCA(dir, name string, validity Validity) (*CADir, error) {
	d, unlock, err := makeDirectory(dir)
	if err != nil {
		return nil, err
	}
	c, err := initCA(d, name, validity)
	if err != nil {
		unlock()
		return nil, err
	}
	c.close = unlock
	return c, nil
}

func initCA(d directory, name string, validity Validity) (*CADir, error) {
	for _, file := range []string{caKeyFile, caCertFile, nodeCertFile, nodeKeyFile} {
		if _, err := os.Lstat(d.file(file)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s exists already: a CA needs a directory of its own", d.file(file))
		}
	}
	a, err := NewAuthority(name, validity)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.file(issuedDir), 0o700); err != nil {
		return nil, err
	}
	c := &CADir{Authority: a, dir: d}
	if err := c.writeList(nil, validity.NotBefore); err != nil {
		return nil, err
	}
	if err := d.write(caCertFile, encodePEM(blockCertificate, a.cert.Raw), 0o644); err != nil {
		return nil, err
	}
	return c, d.writeKey(caKeyFile, a.key) // last: with it the directory is a CA's
}

// OpenCA opens the directory of a CA. Close it.
func OpenCA(dir string) (*CADir, error) {
	d, unlock, err := openDirectory(dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	c, err := readCA(d)
	if err != nil {
		unlock()
		return nil, err
	}
	c.close = unlock
	return c, nil
}

func readCA(d directory) (*CADir, error) {
	key, err := d.key(caKeyFile)
	if err != nil {
		return nil, err
	}
	data, err := d.readPublic(caCertFile)
	if err != nil {
		return nil, err
	}
	der, err := block(data, blockCertificate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(caCertFile), err)
	}
	data, err = d.readPublic(listFile)
	if err != nil {
		return nil, err
	}
	list, err := block(data, blockList)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(listFile), err)
	}
	trust, err := NewTrust([][]byte{der}, [][]byte{list})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	cert := trust.cas[0].cert
	if !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", d.file(caKeyFile), d.file(caCertFile))
	}
	return &CADir{Authority: &Authority{key: key, cert: cert}, dir: d, trust: trust}, nil
}

// Close gives the directory free.
func (c *CADir) Close() { c.close() }

// An Issued is a certificate that was issued, as a file of the CA says.
type Issued struct {
	*Identity
	Revoked time.Time // zero: it is not
}

// Issued returns the certificates that this CA issued and still has a file of, by node
// and time.
func (c *CADir) Issued() ([]Issued, error) {
	entries, err := os.ReadDir(c.dir.file(issuedDir))
	if err != nil {
		return nil, err
	}
	var all []Issued
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".crt") || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		name := issuedDir + "/" + entry.Name()
		data, err := c.dir.readPublic(name)
		if err != nil {
			return nil, err
		}
		id, err := c.Read(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.dir.file(name), err)
		}
		all = append(all, Issued{id, c.trust.cas[0].list.revoked[id.Serial]})
	}
	slices.SortFunc(all, func(a, b Issued) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.NotBefore.Compare(b.NotBefore), compareSerials(a.Serial, b.Serial))
	})
	return all, nil
}

// Read returns the identity in a certificate that this CA issued, PEM: also if it is
// expired or revoked.
func (c *CADir) Read(data []byte) (*Identity, error) {
	der, err := block(data, blockCertificate)
	if err != nil {
		return nil, err
	}
	id, _, err := c.trust.verifyOrigin(der)
	return id, err
}

// CheckRevoked returns ErrRevoked for an identity that is revoked.
func (c *CADir) CheckRevoked(id *Identity) error { return c.trust.cas[0].checkRevoked(id) }

// IssueTo answers a request, PEM, and keeps a copy of the certificate, PEM.
func (c *CADir) IssueTo(request []byte, scope Scope, validity Validity) ([]byte, *Identity, error) {
	der, err := block(request, blockRequest)
	if err != nil {
		return nil, nil, err
	}
	node, key, err := ParseRequest(der)
	if err != nil {
		return nil, nil, err
	}
	return c.issue(node, key, scope, validity)
}

// Renew issues a certificate for the node that an older one names: for the key of that
// one, or of a request, PEM, if there is one.
func (c *CADir) Renew(old *Identity, request []byte, scope Scope, validity Validity) ([]byte, *Identity, error) {
	if request == nil {
		return c.issue(old.Node, old.PublicKey, scope, validity)
	}
	der, err := block(request, blockRequest)
	if err != nil {
		return nil, nil, err
	}
	node, key, err := ParseRequest(der)
	if err != nil {
		return nil, nil, err
	}
	if node != old.Node {
		return nil, nil, fmt.Errorf("the request is for node %s, and the certificate is of node %s", node, old.Node)
	}
	return c.issue(node, key, scope, validity)
}

func (c *CADir) issue(node string, key ed25519.PublicKey, scope Scope, validity Validity) ([]byte, *Identity, error) {
	issued, err := c.Issued()
	if err != nil {
		return nil, nil, err
	}
	for _, other := range issued {
		if other.PublicKey.Equal(key) && other.Node != node {
			return nil, nil, fmt.Errorf("node %s has the same key as node %s (certificate %s): "+
				"each node must make its own", node, other.Node, other.Serial)
		}
	}
	der, err := c.Issue(node, key, scope, validity)
	if err != nil {
		return nil, nil, err
	}
	data := encodePEM(blockCertificate, der)
	id, err := c.Read(data)
	if err != nil {
		return nil, nil, fmt.Errorf("the new certificate is wrong: %w", err)
	}
	return data, id, c.dir.write(issuedDir+"/"+id.Serial.String()+".crt", data, 0o644)
}

// Revoke makes a list that has these certificates too, and returns its number. Nodes
// that are to refuse them must be given the list.
func (c *CADir) Revoke(serials []Serial, now time.Time) (number uint64, err error) {
	revoked := make(map[Serial]time.Time)
	for serial, at := range c.trust.cas[0].list.revoked {
		revoked[serial] = at
	}
	for _, serial := range serials {
		if _, ok := revoked[serial]; !ok {
			revoked[serial] = now
		}
	}
	if len(revoked) == len(c.trust.cas[0].list.revoked) {
		return c.ListNumber(), nil
	}
	err = c.writeList(revoked, now)
	return c.ListNumber(), err
}

// ListNumber is the number of the CA's list.
func (c *CADir) ListNumber() uint64 { return c.trust.cas[0].list.number }

// writeList writes the next list. Its number is the time, or the last one's successor:
// so it goes up also where the directory came back from a backup.
func (c *CADir) writeList(revoked map[Serial]time.Time, now time.Time) error {
	number := uint64(max(now.Unix(), 1))
	if c.trust != nil {
		number = max(number, c.ListNumber()+1)
	}
	der, err := c.List(number, revoked, now)
	if err != nil {
		return err
	}
	trust, err := NewTrust([][]byte{c.cert.Raw}, [][]byte{der})
	if err != nil {
		return err
	}
	if err := c.dir.write(listFile, encodePEM(blockList, der), 0o644); err != nil {
		return err
	}
	c.trust = trust
	return nil
}
