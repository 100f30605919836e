package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// table is our table as nft prints it, without what counts.
func (m *machine) table() string { return m.Shell("nft -s list table inet thole") }

// Whatever is bad, the loaded table stays as it was.
func TestBadInputChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.labelledProbe("web", "app=web")
	before := m.table()
	for _, bad := range []struct{ name, yaml, want string }{
		{"not YAML", "{{{", "stdin:1:1"},
		{"unknown key", "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: a}\nspec: {selector: {}, ingres: []}\n",
			`did you mean "ingress"?`},
		{"half a file", "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: a}\nspec:\n  selector: {}\n  ingress:\n",
			"ingress"},
		{"an alias", "apiVersion: thole/v1\nkind: Policy\nmetadata: &a {name: a}\nspec: *a\n", "alias"},
		{"a megabyte", strings.Repeat("# long\n", 300_000), "1048576"},
	} {
		err := m.apply(bad.yaml)
		if err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v, want an error with %q", bad.name, err, bad.want)
		}
		if after := m.table(); after != before {
			t.Fatalf("%s: the table changed:\n%s", bad.name, after)
		}
	}
}

// A directory that is followed: a good set is taken, a bad one changes nothing, and
// the last good one also outlives the daemon.
func TestFollowedDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, yaml string) {
		t.Helper()
		tmp := filepath.Join(dir, "."+name)
		must(t, os.WriteFile(tmp, []byte(yaml), 0o644))
		must(t, os.Rename(tmp, filepath.Join(dir, name)))
	}
	write("allow.yaml", policyFrom("web"))
	m := newMachine(t, "--policies", dir)
	db := m.labelledProbe("db", "app=db")
	web := m.labelledProbe("web", "app=web")
	dev := m.labelledProbe("dev", "app=dev")
	db.Listen("tcp", "127.0.0.1:5432")
	allowed(t, "web", web.TCP("127.0.0.1:5432"))
	denied(t, "dev", dev.TCP("127.0.0.1:5432"))

	write("allow.yaml", policyFrom("dev"))
	nstest.WaitFor(t, 10*time.Second, "the changed file to count", func() bool {
		return dev.TCP("127.0.0.1:5432").Allowed()
	})
	denied(t, "web", web.TCP("127.0.0.1:5432"))

	good := m.table()
	write("bad.yaml", "kind: Nonsense\n")
	nstest.WaitFor(t, 10*time.Second, "the error in status", func() bool {
		out, _ := m.Command(m.thole, "status").CombinedOutput()
		return strings.Contains(string(out), "bad.yaml:1:1")
	})
	if now := m.table(); now != good {
		t.Errorf("a bad file changed the table")
	}
	m.daemon.Signal(syscall.SIGTERM)
	must(t, m.daemon.Wait())
	if now := m.table(); now != good {
		t.Errorf("the daemon's end changed the table")
	}
	m.start("--policies", dir)
	allowed(t, "dev, after a restart over the bad file", dev.TCP("127.0.0.1:5432"))
	denied(t, "web, after a restart over the bad file", web.TCP("127.0.0.1:5432"))
}

func policyFrom(app string) string {
	return fmt.Sprintf(`apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {matchLabels: {app: %s}}}]
`, app)
}

// A daemon that ends leaves the table enforcing; one that starts adopts it, and the
// processes of thole run with their labels. Live connections go on.
func TestAdoption(t *testing.T) {
	m := newMachine(t)
	a := m.labelledProbe("a", "app=web")
	b := m.labelledProbe("b", "app=web")
	l := a.Listen("tcp", "127.0.0.1:80", probe.Manual)
	conn, v := b.Dial(l.Addr)
	allowed(t, "same labels", v)
	server := l.Accept(5 * time.Second)
	free := probe.Start(m.In("elsewhere"), "free")

	for range 3 {
		m.daemon.Kill()
		m.daemon.Wait()
		denied(t, "unlabelled, with the daemon dead", free.TCP(l.Addr))
		m.start()
		denied(t, "unlabelled, with a new daemon", free.TCP(l.Addr))
		conn.Send("still here")
		if data, o := server.Receive(5 * time.Second); data != "still here" {
			t.Fatalf("the live connection: %q, %s", data, o)
		}
	}
	out := m.Shell(m.thole + " get workloads")
	if !strings.Contains(out, "app=web") || strings.Count(out, "run") != 2 {
		t.Errorf("the workloads after restarts:\n%s", out)
	}
}

// Cleanup removes what is ours and nothing else, also without a daemon.
func TestCleanup(t *testing.T) {
	m := newMachine(t)
	must(t, m.Nft("table inet other { chain c { type filter hook input priority 0; }; }"))
	m.labelledProbe("web", "app=web").Listen("tcp", "127.0.0.1:80")
	free := probe.Start(m.In("elsewhere"), "free")
	denied(t, "before", free.TCP("127.0.0.1:80"))
	m.daemon.Kill()
	m.daemon.Wait()
	m.Shell(m.thole + " cleanup --state /run/state")
	allowed(t, "after", free.TCP("127.0.0.1:80"))
	if out := m.NftList(); strings.Contains(out, "thole") || !strings.Contains(out, "table inet other") {
		t.Errorf("after cleanup:\n%s", out)
	}
}

// Who is not root may give the labels of a grant, and is told which.
func TestGrants(t *testing.T) {
	m := newMachine(t)
	const grant = `
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: alice}
spec: {users: ["1234"], labels: {app: [web, shop], env: ["*"]}, require: {team: a}}
`
	must(t, m.apply(policyFrom("web")+"---"+grant))
	must(t, os.Chmod(filepath.Dir(m.thole), 0o755))
	as := func(uid int, args ...string) (string, error) {
		out, err := m.In("users").As(uid).Command(m.thole, append([]string{"run"}, args...)...).CombinedOutput()
		return string(out), err
	}
	show := []string{"--", "cat", "/proc/self/cgroup"}
	for _, c := range []struct {
		what string
		uid  int
		args []string
		want string // in the error; "": allowed
	}{
		{"granted", 1234, []string{"-l", "app=web"}, ""},
		{"any value", 1234, []string{"-l", "app=shop", "-l", "env=anything"}, ""},
		{"another value", 1234, []string{"-l", "app=db"}, "app=web"},
		{"another key", 1234, []string{"-l", "app=web", "-l", "role=admin"}, "env=*"},
		{"a required label with another value", 1234, []string{"-l", "app=web", "-l", "team=b"}, "team"},
		{"no grant", 4321, []string{"-l", "app=web"}, "LabelGrant"},
	} {
		out, err := as(c.uid, append(c.args, show...)...)
		switch {
		case c.want == "" && (err != nil || !strings.Contains(out, "/thole.slice/")):
			t.Errorf("%s: %v: %s, want it to run", c.what, err, out)
		case c.want != "" && (err == nil || !strings.Contains(out, c.want)):
			t.Errorf("%s: %v: %s, want a refusal with %q", c.what, err, out, c.want)
		}
	}
	nstest.WaitFor(t, 10*time.Second, "nothing to be left", func() bool {
		return !strings.Contains(m.Shell("ls /sys/fs/cgroup/thole.slice 2>/dev/null || true"), ".scope")
	})
}

// Another program flushes or edits our table: it is noticed and mended.
func TestDriftIsMended(t *testing.T) {
	m := newMachine(t)
	m.labelledProbe("web", "app=web").Listen("tcp", "127.0.0.1:80")
	free := probe.Start(m.In("elsewhere"), "free")
	denied(t, "before", free.TCP("127.0.0.1:80"))
	for _, edit := range []string{"flush ruleset", "delete table inet thole", "flush chain inet thole input",
		"add rule inet thole output accept"} {
		must(t, m.Nft(edit))
		nstest.WaitFor(t, 10*time.Second, "the table to be mended after "+edit, func() bool {
			return strings.Contains(m.Shell(m.thole+" status"), `by "nft"`) && !free.TCP("127.0.0.1:80").Allowed() &&
				!strings.Contains(m.Shell("nft list chain inet thole output 2>/dev/null || true"), "\taccept\n\t}")
		})
	}
}
