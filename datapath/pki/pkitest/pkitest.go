package pkitest

import (
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"thole/datapath/pki"
)

// An Authority is a CA, and where it is.
type Authority struct {
	t   testing.TB
	CA  *pki.CADir
	Dir string
}

// New makes a CA that ends with the test. It is valid now.
func New(t testing.TB) Authority {
	t.Helper()
	return NewValid(t, pki.For(time.Now().Add(-time.Hour), 48*time.Hour))
}

// NewValid is New with another validity.
func NewValid(t testing.TB, validity pki.Validity) Authority {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := pki.InitCA(dir, "test", validity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	return Authority{t, ca, dir}
}

// Must fails the test for an error.
func (a Authority) Must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// File reads a file of the CA.
func (a Authority) File(name string) []byte {
	a.t.Helper()
	data, err := os.ReadFile(filepath.Join(a.Dir, name))
	a.Must(err)
	return data
}

// Certificate returns the CA's certificate, DER.
func (a Authority) Certificate() []byte {
	a.t.Helper()
	block, _ := pem.Decode(a.File("ca.crt"))
	if block == nil {
		a.t.Fatal("ca.crt is not PEM")
	}
	return block.Bytes
}

// Install gives a node's directory a certificate that requires these labels, and this CA's trust. It returns the
// certificate's serial number.
func (a Authority) Install(dir string, require map[string]string) pki.Serial {
	a.t.Helper()
	request, err := pki.Request(dir, "node-a", false)
	a.Must(err)
	scope := pki.Scope{
		Grants: pki.Grants{"app": {"*"}}, Require: require,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
	}
	certificate, id, err := a.CA.IssueTo(request, scope, pki.For(time.Now(), time.Hour))
	a.Must(err)
	delivery := pki.Delivery{Certificate: certificate, CAs: a.File("ca.crt"), Lists: a.File("ca.crl")}
	_, err = pki.Install(dir, delivery, time.Now())
	a.Must(err)
	return id.Serial
}
