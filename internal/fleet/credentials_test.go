package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/datapath/pki/pkitest"
	"thole/internal/condition"
)

// Each step of a credentials' life.
func TestCredentials(t *testing.T) {
	a, dir := pkitest.New(t), filepath.Join(t.TempDir(), "pki")
	c := credentials{dir: dir}
	read := func(what string, wantChanged bool, wantErr string) {
		t.Helper()
		changed := c.read(time.Now())
		if changed != wantChanged {
			t.Errorf("%s: changed: %t", what, changed)
		}
		if (c.err == nil) != (wantErr == "") || c.err != nil && !strings.Contains(c.err.Error(), wantErr) {
			t.Errorf("%s: error %v, want %q", what, c.err, wantErr)
		}
	}
	read("no directory", false, "no certificate can be used")
	first := a.Install(dir, nil)
	read("installed", true, "")
	read("once more", false, "")
	crt := filepath.Join(dir, "node.crt")
	whole, err := os.ReadFile(crt)
	a.Must(err)
	a.Must(os.WriteFile(crt, whole[:len(whole)/2], 0o644))
	read("half a certificate", false, "the previous certificate stays in force")
	older, err := os.ReadFile(filepath.Join(dir, "trust.pem"))
	a.Must(err)
	_, err = a.CA.Revoke([]pki.Serial{first}, time.Now())
	a.Must(err)
	reference := c.node.Identity.Reference
	a.Must(os.WriteFile(filepath.Join(dir, "trust.pem"), append(a.File("ca.crt"), a.File("ca.crl")...), 0o644))
	read("a newer list, with half a certificate", true, "the previous certificate stays in force")
	if c.trust.Vouches(reference) || c.node.Trust != c.trust {
		t.Error("the newer list is not in force")
	}
	a.Must(os.WriteFile(filepath.Join(dir, "trust.pem"), older, 0o644))
	a.Must(os.WriteFile(crt, whole, 0o644))
	read("an older list", false, "older than the installed list")
	if c.trust.Vouches(reference) {
		t.Error("an older list is in force")
	}
	a.Install(dir, map[string]string{"team": "a"})
	read("renewed", true, "")
}

// Only with the trust, what was proven with a revoked certificate ends; the certificate's labels stay unknown.
func TestFleetTrustAlone(t *testing.T) {
	a, dir := pkitest.New(t), filepath.Join(t.TempDir(), "pki")
	serial := a.Install(dir, nil)
	a.Must(os.Remove(filepath.Join(dir, "node.key")))
	c := credentials{dir: dir}
	if !c.read(time.Now()) || c.node != nil || c.trust == nil || c.err == nil {
		t.Fatalf("%+v", c)
	}
	if c.trust.Vouches("other/" + serial.String()) {
		t.Error("the trust is not in force")
	}
}

func TestFleetConditions(t *testing.T) {
	list := conditions("why", "/etc/thole/pki", errors.New("no watches left"))
	if len(list) != 2 || list[0].Code != condition.FleetDegraded || list[0].Text != "why" ||
		list[1].Code != condition.PKIUnwatched || !strings.Contains(list[1].String(), "no watches left") {
		t.Errorf("%+v", list)
	}
	if list := conditions("", "", nil); list != nil {
		t.Errorf("without a problem: %+v", list)
	}
}
