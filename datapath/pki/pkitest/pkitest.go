package pkitest

import (
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

// New makes a CA that ends with the test.
func New(t testing.TB) Authority {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := pki.InitCA(dir, "test", pki.For(time.Now().Add(-time.Hour), 48*time.Hour))
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
