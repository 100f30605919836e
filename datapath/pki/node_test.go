package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
)

// A fleet is a CA and nodes, in directories of the test.
type fleet struct {
	t   testing.TB
	dir string
}

func newFleet(t testing.TB) fleet {
	t.Helper()
	f := fleet{t, t.TempDir()}
	f.initCA("ca")
	return f
}

func (f fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f fleet) initCA(name string) {
	f.t.Helper()
	ca, err := InitCA(f.path(name), "test", For(now.Add(-day), 3650*day))
	f.must(err)
	ca.Close()
}

func (f fleet) openCA(name string) *CADir {
	f.t.Helper()
	ca, err := OpenCA(f.path(name))
	f.must(err)
	f.t.Cleanup(ca.Close)
	return ca
}

// read returns a file of the fleet.
func (f fleet) read(name string) []byte {
	f.t.Helper()
	data, err := os.ReadFile(f.path(name))
	f.must(err)
	return data
}

func (f fleet) write(name string, data []byte, mode os.FileMode) {
	f.t.Helper()
	f.must(os.WriteFile(f.path(name), data, mode))
	f.must(os.Chmod(f.path(name), mode))
}

// issue answers a new request of a node.
func (f fleet) issue(ca, node string, next bool) []byte {
	f.t.Helper()
	request, err := Request(f.path(node), node, next)
	f.must(err)
	c, err := OpenCA(f.path(ca))
	f.must(err)
	defer c.Close()
	certificate, _, err := c.IssueTo(request, typical(f.t), For(now, 90*day))
	f.must(err)
	return certificate
}

func (f fleet) install(node string, in Delivery) error {
	_, err := Install(f.path(node), in, now)
	return err
}

// join makes a node of the fleet.
func (f fleet) join(node string) {
	f.t.Helper()
	f.must(f.install(node, Delivery{Certificate: f.issue("ca", node, false), CAs: f.read("ca/ca.crt"),
		Lists: f.read("ca/ca.crl")}))
}

func (f fleet) load(node string) *Node {
	f.t.Helper()
	n, err := Load(f.path(node), now)
	f.must(err)
	return n
}

// revoke revokes what a node has, and returns the list.
func (f fleet) revoke(ca, node string) []byte {
	f.t.Helper()
	c, err := OpenCA(f.path(ca))
	f.must(err)
	defer c.Close()
	id, err := c.Read(f.read(node + "/node.crt"))
	f.must(err)
	_, err = c.Revoke([]Serial{id.Serial}, now)
	f.must(err)
	return f.read(ca + "/ca.crl")
}

func TestNode(t *testing.T) {
	f := newFleet(t)
	f.join("web-1")
	n := f.load("web-1")
	if n.Identity.Node != "web-1" || !n.Identity.PublicKey.Equal(n.Key.Public()) {
		t.Errorf("it is %s", n.Identity.Node)
	}
	if again := f.load("web-1"); again.Trust.Generation() != n.Trust.Generation() {
		t.Error("nothing changed, and the generation did")
	}
	for name, mode := range map[string]os.FileMode{
		"web-1": fs.ModeDir | 0o700, "web-1/node.key": 0o600, "web-1/node.crt": 0o644, "web-1/trust.pem": 0o644,
		"ca": fs.ModeDir | 0o700, "ca/ca.key": 0o600, "ca/ca.crt": 0o644, "ca/ca.crl": 0o644,
		"ca/issued": fs.ModeDir | 0o700,
	} {
		info, err := os.Lstat(f.path(name))
		f.must(err)
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
	}
	for _, dir := range []string{"web-1", "ca", "ca/issued"} {
		left, err := filepath.Glob(f.path(dir) + "/.*-*")
		if err != nil || left != nil {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	f := newFleet(t)
	f.join("other")
	for name, test := range map[string]struct {
		spoil func(dir string)
		want  error
	}{
		"key read by the group": {func(d string) { f.must(os.Chmod(d+"/node.key", 0o640)) }, ErrPermissions},
		"key read by others":    {func(d string) { f.must(os.Chmod(d+"/node.key", 0o604)) }, ErrPermissions},
		"key written by others": {func(d string) { f.must(os.Chmod(d+"/node.key", 0o602)) }, ErrPermissions},
		"certificate written":   {func(d string) { f.must(os.Chmod(d+"/node.crt", 0o646)) }, ErrPermissions},
		"trust written":         {func(d string) { f.must(os.Chmod(d+"/trust.pem", 0o664)) }, ErrPermissions},
		"directory written":     {func(d string) { f.must(os.Chmod(d, 0o777)) }, ErrPermissions},
		"no key":                {func(d string) { f.must(os.Remove(d + "/node.key")) }, ErrNoKey},
		"another's key":         {func(string) { f.write("n/node.key", f.read("other/node.key"), 0o600) }, ErrNoKey},
		"no certificate":        {func(d string) { f.must(os.Remove(d + "/node.crt")) }, fs.ErrNotExist},
		"no trust":              {func(d string) { f.must(os.Remove(d + "/trust.pem")) }, fs.ErrNotExist},
		"no directory":          {func(d string) { f.must(os.RemoveAll(d)) }, fs.ErrNotExist},
		"another's certificate": {func(string) { f.write("n/node.crt", f.read("other/node.crt"), 0o644) }, ErrNoKey},
		"a CA as the certificate": {func(d string) {
			f.must(os.Link(f.path("ca/ca.crt"), d+"/node2"))
			f.must(os.Rename(d+"/node2", d+"/node.crt"))
		}, ErrUsage},
		"a key as a symlink": {func(d string) {
			f.must(os.Rename(d+"/node.key", d+"/k"))
			f.must(os.Symlink("k", d+"/node.key"))
		}, syscall.ELOOP},
		"a key as a pipe": {func(d string) {
			f.must(os.Remove(d + "/node.key"))
			f.must(syscall.Mkfifo(d+"/node.key", 0o600))
		}, nil},
		"garbage as the key":     {func(string) { f.write("n/node.key", []byte("garbage"), 0o600) }, ErrMalformed},
		"garbage as certificate": {func(string) { f.write("n/node.crt", []byte("garbage"), 0o644) }, ErrMalformed},
		"garbage behind trust": {func(string) {
			f.write("n/trust.pem", append(f.read("n/trust.pem"), 'x'), 0o644)
		}, ErrMalformed},
		"two certificates": {func(string) {
			f.write("n/node.crt", bytes.Repeat(f.read("n/node.crt"), 2), 0o644)
		}, ErrMalformed},
		"a key of another kind": {func(string) { f.write("n/node.key", ecKeyPEM(t), 0o600) }, ErrMalformed},
		"without end":           {func(string) { f.write("n/node.crt", make([]byte, maxFileSize+1), 0o644) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f.must(os.RemoveAll(f.path("n")))
			f.join("n")
			test.spoil(f.path("n"))
			n, err := Load(f.path("n"), now)
			if err == nil || n != nil {
				t.Fatalf("loaded: %v", n)
			}
			if test.want != nil {
				want(t, err, test.want)
			}
			if !strings.Contains(err.Error(), f.dir) {
				t.Errorf("it does not say which file: %v", err)
			}
		})
	}
}

// A link may lead to a node's directory; the trust alone is read where only the rest cannot be used; and who holds the
// lock, as any user may who can read the directory, keeps nobody from reading.
func TestLoadByALinkInPartAndLocked(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	f.must(os.Symlink("n", f.path("link")))
	n, err := Load(f.path("link"), now)
	f.must(err)
	if _, err := Install(f.path("link"), Delivery{Certificate: f.read("n/node.crt")}, now); err != nil {
		t.Errorf("installing by the link: %v", err)
	}
	locked, err := os.Open(f.path("n"))
	f.must(err)
	defer locked.Close()
	f.must(syscall.Flock(int(locked.Fd()), syscall.LOCK_EX))
	if again, err := Load(f.path("n"), now); err != nil || again.Identity.Serial != n.Identity.Serial {
		t.Errorf("while another has the lock: %v", err)
	}
	f.must(os.Chmod(f.path("n/node.key"), 0o644))
	node, trust, err := LoadPart(f.path("n"), now)
	want(t, err, ErrPermissions)
	if node != nil || trust == nil || trust.Generation() != n.Trust.Generation() {
		t.Errorf("with a key that cannot be used: %v, %v", node, trust)
	}
}

func ecKeyPEM(t *testing.T) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM(blockKey, der)
}

func TestOwners(t *testing.T) {
	nstest.Need(t, "root")
	f := newFleet(t)
	for _, name := range []string{"", "/node.key", "/node.crt", "/trust.pem"} {
		f.must(os.RemoveAll(f.path("n")))
		f.join("n")
		f.must(os.Chown(f.path("n"+name), 12345, -1))
		_, err := Load(f.path("n"), now)
		want(t, err, ErrPermissions)
	}
}

func TestLoadAtOtherTimes(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	_, err := Load(f.path("n"), now.Add(-time.Hour))
	want(t, err, ErrNotYetValid)
	_, err = Load(f.path("n"), now.Add(91*day))
	want(t, err, ErrExpired)
	f.load("n")
}

func TestNewKey(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	before := f.load("n")
	certificate := f.issue("ca", "n", true)
	if again := f.issue("ca", "n", true); !bytes.Equal(keyIn(t, again), keyIn(t, certificate)) {
		t.Error("a request that is repeated is for another key")
	}
	if between := f.load("n"); !between.Key.Equal(before.Key) {
		t.Error("the new key is used before its certificate is there")
	}
	f.must(f.install("n", Delivery{Certificate: certificate}))
	after := f.load("n")
	if after.Key.Equal(before.Key) || after.Trust.Generation() != before.Trust.Generation() {
		t.Error("the key is still the old one, or the trust is another")
	}
	if _, err := os.Lstat(f.path("n/next.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next key is still there: %v", err)
	}
}

func keyIn(t *testing.T, certificate []byte) []byte {
	der, err := block(certificate, blockCertificate)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert.RawSubjectPublicKeyInfo
}

// TestInterruptedInstall: wherever an installation ends, the node loads, and the same
// installation can be done again.
func TestInterruptedInstall(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	certificate := f.issue("ca", "n", true)
	f.write("n/node.crt", certificate, 0o644) // and the key is not yet moved
	n := f.load("n")
	if !n.Identity.PublicKey.Equal(n.Key.Public()) {
		t.Error("the key is another's")
	}
	f.must(f.install("n", Delivery{Certificate: certificate}))
	if !f.load("n").Key.Equal(n.Key) {
		t.Error("the key is another one now")
	}
}

// TestLoadBesideInstall: Load sees what was or what is, and never an error.
func TestLoadBesideInstall(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	stop := make(chan struct{})
	var loads int
	var failure error
	var wait sync.WaitGroup
	wait.Go(func() {
		for failure == nil {
			select {
			case <-stop:
				return
			default:
				_, failure = Load(f.path("n"), now)
				loads++
			}
		}
	})
	for range 10 {
		f.must(f.install("n", Delivery{Certificate: f.issue("ca", "n", true)}))
	}
	close(stop)
	wait.Wait()
	if failure != nil {
		t.Error(failure)
	}
	t.Logf("loaded %d times", loads)
}

func TestInstallRefuses(t *testing.T) {
	f := newFleet(t)
	f.initCA("foreign")
	f.join("n")
	for name, test := range map[string]struct {
		in   Delivery
		want error
	}{
		"a foreign certificate":    {Delivery{Certificate: f.issue("foreign", "n", false)}, ErrForeign},
		"another's certificate":    {Delivery{Certificate: f.issue("ca", "other", false)}, ErrNoKey},
		"a CA that did not issue":  {Delivery{CAs: f.read("foreign/ca.crt")}, ErrForeign},
		"a foreign list":           {Delivery{Lists: f.read("foreign/ca.crl")}, ErrForeign},
		"a list as a CA":           {Delivery{CAs: f.read("ca/ca.crl")}, ErrMalformed},
		"a key as a certificate":   {Delivery{Certificate: f.read("n/node.key")}, ErrMalformed},
		"nothing as a certificate": {Delivery{Certificate: []byte("\n")}, ErrMalformed},
		"two certificates": {Delivery{Certificate: append(f.read("n/node.crt"), f.read("n/node.crt")...)},
			ErrMalformed},
		"three lists":   {Delivery{Lists: bytes.Repeat(f.read("ca/ca.crl"), 3)}, ErrMalformed},
		"the CA, twice": {Delivery{CAs: bytes.Repeat(f.read("ca/ca.crt"), 2)}, nil},
		"another's as a CA, broken": {Delivery{CAs: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END " +
			"CERTIFICATE-----\n")}, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			before := [][]byte{f.read("n/node.crt"), f.read("n/trust.pem"), f.read("n/node.key")}
			err := f.install("n", test.in)
			if err == nil {
				t.Fatal("installed")
			}
			if test.want != nil {
				want(t, err, test.want)
			}
			for i, file := range []string{"n/node.crt", "n/trust.pem", "n/node.key"} {
				if !bytes.Equal(f.read(file), before[i]) {
					t.Errorf("%s changed", file)
				}
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		_, err := Install(f.path("n"), Delivery{Certificate: f.issue("ca", "n", false)}, now.Add(91*day))
		want(t, err, ErrExpired)
	})
	t.Run("no CA yet", func(t *testing.T) {
		certificate := f.issue("ca", "new", false)
		if err := f.install("new", Delivery{Certificate: certificate}); err == nil {
			t.Error("installed")
		}
		f.must(f.install("new", Delivery{CAs: f.read("ca/ca.crt")}))
		f.must(f.install("new", Delivery{Certificate: certificate}))
		f.load("new")
	})
	t.Run("in the CA's directory", func(t *testing.T) {
		if err := f.install("ca", Delivery{CAs: f.read("ca/ca.crt")}); err == nil {
			t.Error("installed")
		}
		if _, err := Request(f.path("ca"), "n", false); err == nil {
			t.Error("requested")
		}
	})
}

func TestRevocation(t *testing.T) {
	f := newFleet(t)
	f.join("n")
	f.join("other")
	first, certificate := f.read("ca/ca.crl"), f.load("n").Identity.Certificate
	before := f.load("other")
	second := f.revoke("ca", "n")

	f.must(f.install("other", Delivery{Lists: second}))
	after := f.load("other")
	_, err := after.Trust.Verify(certificate, now)
	want(t, err, ErrRevoked)
	f.must(after.Trust.Follows(before.Trust))
	if after.Trust.Generation() == before.Trust.Generation() {
		t.Error("a new list is no new generation")
	}

	// The revoked node learns of it, too: its list is installed, and it does not load.
	f.must(f.install("n", Delivery{Lists: second}))
	_, err = Load(f.path("n"), now)
	want(t, err, ErrRevoked)
	want(t, f.install("n", Delivery{Certificate: encodePEM(blockCertificate, certificate)}), ErrRevoked)

	// There is no way back to the list before, nor by giving the CA again.
	want(t, f.install("other", Delivery{Lists: first}), ErrOlderList)
	want(t, f.install("other", Delivery{CAs: f.read("ca/ca.crt"), Lists: first}), ErrOlderList)
	f.must(f.install("other", Delivery{CAs: f.read("ca/ca.crt")}))
	_, err = f.load("other").Trust.Verify(certificate, now)
	want(t, err, ErrRevoked)

	// With a new certificate the node is back.
	f.must(f.install("n", Delivery{Certificate: f.issue("ca", "n", true)}))
	f.load("n")
}

// TestRotationOfTheCA goes from one CA to the next; at no step is a node without a
// certificate that the others believe.
func TestRotationOfTheCA(t *testing.T) {
	f := newFleet(t)
	nodes := []string{"a", "b"}
	for _, n := range nodes {
		f.join(n)
	}
	f.initCA("next")
	eachBelievesEach := func(step string) {
		t.Helper()
		for _, n := range nodes {
			for _, m := range nodes {
				if _, err := f.load(n).Trust.Verify(f.load(m).Identity.Certificate, now); err != nil {
					t.Errorf("%s: %s does not believe %s: %v", step, n, m, err)
				}
			}
		}
	}
	both := append(f.read("ca/ca.crt"), f.read("next/ca.crt")...)
	for _, n := range nodes {
		f.must(f.install(n, Delivery{CAs: both}))
		eachBelievesEach("trust both: " + n)
	}
	last, next := f.openCA("ca"), f.openCA("next")
	for _, n := range nodes {
		id, err := last.Read(f.read(n + "/node.crt"))
		f.must(err)
		certificate, _, err := next.Renew(id, nil, id.Scope(), For(now, 90*day))
		f.must(err)
		f.must(f.install(n, Delivery{Certificate: certificate}))
		eachBelievesEach("renew: " + n)
	}
	for _, n := range nodes {
		f.must(f.install(n, Delivery{CAs: f.read("next/ca.crt")}))
		eachBelievesEach("trust the next alone: " + n)
		if trust := f.load(n).Trust; len(trust.cas) != 1 || trust.cas[0].list != nil {
			t.Errorf("%s still has the last CA or its list", n)
		}
	}
}

func TestCADirectory(t *testing.T) {
	f := newFleet(t)
	if _, err := InitCA(f.path("ca"), "test", For(now, day)); err == nil {
		t.Error("a CA took another's place")
	}
	f.join("n")
	if _, err := InitCA(f.path("n"), "test", For(now, day)); err == nil {
		t.Error("a CA took a node's place")
	}
	for _, name := range []string{"", "Fleet", "fleet/1", strings.Repeat("a", 17)} {
		if _, err := InitCA(f.path("x"), name, For(now, day)); err == nil {
			t.Errorf("a CA of the name %q", name)
		}
	}
	ca := f.openCA("ca")
	issued, err := ca.Issued()
	f.must(err)
	if len(issued) != 1 || issued[0].Node != "n" || !issued[0].Revoked.IsZero() {
		t.Errorf("issued: %v", issued)
	}
	request, err := Request(f.path("n"), "another", false)
	f.must(err)
	_, _, err = ca.IssueTo(request, typical(t), For(now, day))
	if err == nil || !strings.Contains(err.Error(), "has the same key as node n") {
		t.Errorf("one key for two nodes: %v", err)
	}
	if _, _, err := ca.Renew(issued[0].Identity, request, typical(t), For(now, day)); err == nil {
		t.Error("renewed for another node")
	}
	for name, scope := range map[string]Scope{
		"no address":   scopeOf(t, []string{"a=b"}, nil, nil),
		"wildcard key": scopeOf(t, []string{"*=b"}, nil, []string{"any"}),
		"both":         scopeOf(t, []string{"a=b"}, []string{"a=b"}, []string{"any"}),
		"host bits":    scopeOf(t, nil, nil, []string{"192.0.2.1/24"}),
	} {
		if _, _, err := ca.Renew(issued[0].Identity, nil, scope, For(now, day)); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	f.must(os.Chmod(f.path("ca/ca.key"), 0o644))
	ca.Close()
	_, err = OpenCA(f.path("ca"))
	want(t, err, ErrPermissions)
}

// TestListNumbers go up, also where the CA's directory comes from a backup, and where
// the clock goes back.
func TestListNumbers(t *testing.T) {
	f := newFleet(t)
	f.join("a")
	f.join("b")
	backup := f.read("ca/ca.crl")
	ca := f.openCA("ca")
	revokeAt := func(node string, at time.Time) uint64 {
		t.Helper()
		number, err := ca.Revoke([]Serial{f.load(node).Identity.Serial}, at)
		f.must(err)
		return number
	}
	first := revokeAt("a", now)
	if again := revokeAt("a", now.Add(time.Hour)); again != first {
		t.Error("a new list that says nothing new")
	}
	second := revokeAt("b", now.Add(-day))
	if second != first+1 {
		t.Errorf("list %d came after %d", second, first)
	}
	ca.Close()
	f.write("ca/ca.crl", backup, 0o644)
	ca = f.openCA("ca")
	if third := revokeAt("b", now.Add(time.Hour)); third <= second {
		t.Errorf("list %d came after %d", third, second)
	}
}

func TestSummarize(t *testing.T) {
	f := newFleet(t)
	f.join("a")
	f.join("b")
	list := f.revoke("ca", "b")
	states := func(at time.Time, dir string) string {
		t.Helper()
		all, err := Summarize(f.path(dir), at)
		f.must(err)
		var words []string
		for _, s := range all {
			words = append(words, s.Kind+" "+s.State)
		}
		return strings.Join(words, ", ")
	}
	for _, test := range []struct {
		dir  string
		at   time.Time
		want string
	}{
		{"ca", now, "ca valid, list valid, node valid, node revoked"},
		{"a", now, "ca valid, list valid, node valid"},
		{"a", now.Add(100 * day), "ca valid, list valid, node expired"},
		{"a", now.Add(-100 * day), "ca not valid yet, list valid, node not valid yet"},
		{"a", now.Add(3700 * day), "ca expired, list valid, node expired"},
	} {
		if got := states(test.at, test.dir); got != test.want {
			t.Errorf("%s at %v: %s, want %s", test.dir, test.at, got, test.want)
		}
	}
	f.must(f.install("b", Delivery{Lists: list}))
	if got := states(now, "b"); got != "ca valid, list valid, node revoked" {
		t.Errorf("b: %s", got)
	}
	for name, want := range map[string]string{
		"ca/ca.crt": KindCA, "ca/ca.crl": KindList, "a/node.crt": KindNode,
	} {
		all, err := Inspect(f.read(name), now)
		if err != nil || len(all) != 1 || all[0].Kind != want || all[0].State != stateUnverified {
			t.Errorf("%s: %v (%v)", name, all, err)
		}
	}
	if _, err := Inspect(f.read("a/node.key"), now); err == nil || strings.Contains(err.Error(), "MC4") {
		t.Errorf("a key is shown: %v", err)
	}
}

func BenchmarkLoad(b *testing.B) {
	f := newFleet(b)
	f.join("n")
	for b.Loop() {
		f.load("n")
	}
}

// What a certificate proved is believed as long as its CA is trusted and has not revoked it.
func TestVouches(t *testing.T) {
	now := time.Now()
	ca, err := NewAuthority("fleet", For(now, 48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("fleet", For(now, 48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue("node", public, Scope{Addresses: anyAddress}, For(now, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	trust := func(revoked map[Serial]time.Time, cas ...*Authority) *Trust {
		var ders, lists [][]byte
		for _, a := range cas {
			list, err := a.List(1, revoked, now)
			if err != nil {
				t.Fatal(err)
			}
			ders, lists = append(ders, a.cert.Raw), append(lists, list)
		}
		made, err := NewTrust(ders, lists)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	id, err := trust(nil, ca).Verify(der, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		trust *Trust
		want  bool
	}{
		"its CA":                 {trust(nil, ca), true},
		"its CA and another":     {trust(nil, other, ca), true},
		"another CA of the name": {trust(nil, other), false},
		"revoked":                {trust(map[Serial]time.Time{id.Serial: now}, ca), false},
		"another is revoked":     {trust(map[Serial]time.Time{newSerial(): now}, ca), true},
	} {
		if got := tt.trust.Vouches(id.Reference); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	for _, bad := range []string{"", "/", id.Serial.String(), id.Reference + "0"} {
		if trust(nil, ca).Vouches(bad) {
			t.Errorf("%q is vouched for", bad)
		}
	}
}
