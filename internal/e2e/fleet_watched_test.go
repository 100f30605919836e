package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/datapath/queue"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/daemon"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// inForce is the time in which what is installed has to be in force.
const inForce = time.Second

// noticed waits until something is in force, and reports whether that was in time. Where it is not, the old program is
// told by SIGHUP, and has to have it in force then.
func (m *machine) noticed(old bool, what string, cond func() bool) {
	m.t.Helper()
	begun, in := time.Now(), false
	limit := nstest.Patience(inForce)
	nstest.WaitFor(m.t, 2*inForce, "a second to be over, or for "+what, func() bool {
		in = cond()
		return in || time.Since(begun) > limit
	})
	took := time.Since(begun)
	switch {
	case old && in:
		m.t.Fatalf("%s: the old program noticed it after %v: this test shows nothing", what, took)
	case old:
		m.reload()
		nstest.WaitFor(m.t, 10*time.Second, what+", after SIGHUP", cond)
	case !in || took > limit:
		m.t.Errorf("%s: not in force after %v", what, took)
	default:
		m.t.Logf("%s: in force after %v", what, took)
	}
}

// put installs with the machine's own program, as an administrator does. It sends no signal.
func (m *machine) put(t testing.TB, d pki.Delivery) {
	t.Helper()
	dir := t.TempDir()
	command := m.thole + " pki install --pki " + m.pki()
	for i, part := range []struct {
		flag string
		data []byte
	}{{"--ca ", d.CAs}, {"--crl ", d.Lists}, {"", d.Certificate}} {
		if part.data != nil {
			path := filepath.Join(dir, fmt.Sprint(i))
			must(t, os.WriteFile(path, part.data, 0o644))
			command += " " + part.flag + path
		}
	}
	m.Shell(command + " || test " + fmt.Sprint(d.Lists != nil) + " = true") // a list may revoke the node itself
}

// issue returns a certificate for a node's present key.
func (ca fleetCA) issue(dir, node string, scope pki.Scope) []byte {
	ca.t.Helper()
	request, err := pki.Request(dir, node, false)
	must(ca.t, err)
	certificate, _, err := ca.IssueTo(request, scope, pki.For(time.Now(), time.Hour))
	must(ca.t, err)
	return certificate
}

// client asks the machine's daemon from this process, which takes less time than to start a program.
func (m *machine) client() *api.Client {
	return api.NewClient(fmt.Sprintf("/proc/%d/root%s", m.daemon.Pid, daemon.DefaultSocket))
}

// workload returns what the daemon says of a workload of thole run, by its label app.
func (m *machine) workload(app string) (found api.Workload) {
	m.t.Helper()
	list, err := m.client().Workloads(context.Background())
	must(m.t, err)
	for _, w := range list {
		if w.Labels["app"] == app {
			return w
		}
	}
	return found
}

// degraded returns why the machine's fleet is degraded, or "".
func (m *machine) degraded() string {
	m.t.Helper()
	s, err := m.client().Status(context.Background())
	must(m.t, err)
	for _, p := range s.Problems {
		if p.Code == condition.FleetDegraded {
			return p.Text
		}
	}
	return ""
}

// saysDegraded checks what "thole status" prints, and its exit status.
func (m *machine) saysDegraded(want bool) {
	m.t.Helper()
	out, err := m.Command(m.thole, "status", "-o", "json").Output()
	if has := strings.Contains(string(out), `"fleet-degraded"`); has != want || (err != nil) != want {
		m.t.Errorf("degraded: want %t; thole status: %v\n%s", want, err, out)
	}
}

// fleetWith makes two machines of a fleet with a program. The daemon of b runs; a has a certificate and no daemon yet.
func fleetWith(t *testing.T, program string) (a, b *machine, ca fleetCA) {
	t.Helper()
	a, b = bareMachine(t), bareMachine(t)
	a.thole, b.thole = program, program
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	ca = newFleetCA(t)
	startMembers(t, ca, []fleetMember{{b, "node-b", []string{"10.0.0.2", "fd00:10::2"}}}, "10.0.0.0/23,fd00:10::/48")
	must(t, b.apply(cidrAndLabels)) // what certificates require changes nothing for app=web
	dir := filepath.Join(t.TempDir(), "pki")
	ca.node(dir, "node-a", fleetEnds[0][:])
	a.args = append([]string{"--fleet", "10.0.0.0/23,fd00:10::/48", "--pki", dir, "--log-level", "debug"}, a.args...)
	return a, b, ca
}

// startA starts the daemon of the first machine.
func startA(t *testing.T, a, b *machine) {
	t.Helper()
	a.start(a.args...)
	tell(t, a, b)
	must(t, a.apply(cidrAndLabels))
}

// fails reports whether a daemon ends with an error that says why.
func (m *machine) fails(why string) bool {
	m.t.Helper()
	p := m.In("daemon").Start(m.thole, append([]string{"daemon", "--state", "/run/state"}, m.args...)...)
	err := p.Wait()
	m.t.Logf("the daemon ended: %v: %s", err, p.Output())
	return err != nil && strings.Contains(p.Output(), why)
}

// A renewed certificate is in force within a second: what it requires is on the node's workloads, and what it grants
// may be proven.
func TestFleetWatchedRenewal(t *testing.T) {
	eachProgram(t, func(t *testing.T, old bool, program string) {
		a, b, ca := fleetWith(t, program)
		startA(t, a, b)
		web := a.labelledProbe("web", "app=web")
		b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
		for _, team := range []string{"a", "b"} {
			scope := scopeOf(fleetEnds[0], map[string]string{"team": team})
			a.put(t, pki.Delivery{Certificate: ca.issue(a.pki(), "node-a", scope)})
			a.noticed(old, "the required label team="+team, func() bool {
				return a.workload("web").Labels["team"] == team
			})
			if node := a.workload("web").Facts["thole/node"]; node != "node-a" {
				t.Errorf("thole/node=%q", node)
			}
		}
		connects := func() bool { return reached(web, "10.0.0.2:80", 500*time.Millisecond) }
		nstest.WaitFor(t, handshakes, "a connection", connects)
		none := scopeOf(fleetEnds[0], nil)
		none.Grants = pki.Grants{"app": {"db"}}
		a.put(t, pki.Delivery{Certificate: ca.issue(a.pki(), "node-a", none)})
		a.noticed(old, "the grant's end", func() bool { return !connects() })
		a.put(t, pki.Delivery{Certificate: ca.issue(a.pki(), "node-a", scopeOf(fleetEnds[0], nil))})
		a.noticed(old, "the grant", connects)
	})
}

// A revocation is in force within a second: connections that were proven with the certificate end, and none opens.
func TestFleetWatchedRevocation(t *testing.T) {
	eachProgram(t, func(t *testing.T, old bool, program string) {
		a, b, ca := fleetWith(t, program)
		startA(t, a, b)
		web, webB := a.labelledProbe("web", "app=web"), b.labelledProbe("web", "app=web")
		web.Listen("tcp", "[::]:80")
		webB.Listen("tcp", "[::]:80")
		from, to := dial(t, web, "10.0.0.2:80"), dial(t, webB, "10.0.0.1:80")
		ca.revoke("node-a")
		b.put(t, pki.Delivery{Lists: ca.file("ca.crl")})
		ended := false
		b.noticed(old, "the connection's end", func() bool {
			if !ended && from.Send("who?\n") == probe.Connected {
				_, outcome := from.Receive(300 * time.Millisecond)
				ended = outcome != probe.Connected
			}
			return ended
		})
		if !silent(from) || !silent(to) {
			t.Error("a connection goes on that was proven with a revoked certificate")
		}
		if reached(web, "10.0.0.2:80", 300*time.Millisecond) {
			t.Error("a connection was opened")
		}
	})
}

// The files may be replaced in any way.
func TestFleetWatchedSwaps(t *testing.T) {
	ca := newFleetCA(t)
	m := bareMachine(t)
	tell(t, m)
	base := t.TempDir()
	dir := filepath.Join(base, "pki")
	// made makes a directory of the same node with a certificate that requires another label.
	made := func(team string) string {
		path := filepath.Join(base, "pki-"+team)
		must(t, os.CopyFS(path, os.DirFS(dir)))
		must(t, os.Chmod(path, 0o700))
		for _, name := range []string{"node.key", "node.crt", "trust.pem"} {
			must(t, os.Chmod(filepath.Join(path, name), 0o600))
		}
		certificate := ca.issue(path, "node-a", scopeOf(fleetEnds[0], map[string]string{"team": team}))
		_, err := pki.Install(path, pki.Delivery{Certificate: certificate}, time.Now())
		must(t, err)
		return path
	}
	startMembers(t, ca, []fleetMember{{m, "node-a", []string{"10.0.0.1"}}}, "10.0.0.0/8")
	must(t, m.daemon.Signal(syscall.SIGTERM))
	must(t, m.daemon.Wait())
	must(t, os.Rename(m.pki(), dir))
	m.args[3] = dir
	m.start(m.args...)
	m.labelled("web", "app=web")
	has := func(team string) {
		t.Helper()
		m.noticed(false, "team="+team, func() bool { return m.workload("web").Labels["team"] == team })
		if why := m.degraded(); why != "" {
			t.Errorf("team=%s: degraded: %s", team, why)
		}
	}

	file := made("file")
	must(t, os.Rename(filepath.Join(file, "node.crt"), filepath.Join(dir, "node.crt")))
	has("file")

	directory := made("directory")
	must(t, os.Rename(dir, filepath.Join(base, "old")))
	must(t, os.Rename(directory, dir))
	has("directory")

	link := made("link")
	must(t, os.Rename(dir, filepath.Join(base, "older")))
	must(t, os.Symlink(link, dir))
	has("link")

	swapped := filepath.Join(base, "pki-link-2")
	must(t, os.Rename(made("link-2"), filepath.Join(base, "elsewhere")))
	must(t, os.Rename(filepath.Join(base, "elsewhere"), swapped))
	must(t, os.Symlink(filepath.Base(swapped), dir+".tmp"))
	must(t, os.Rename(dir+".tmp", dir))
	has("link-2")
}

// A file that cannot be used leaves the earlier one in force and is reported; once it can be used, it is in force.
func TestFleetWatchedBadFiles(t *testing.T) {
	program, err := tholeBinary()
	must(t, err)
	a, b, ca := fleetWith(t, program)
	startA(t, a, b)
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	connects := func() bool { return reached(web, "10.0.0.2:80", handshakes) }
	scope := scopeOf(fleetEnds[0], map[string]string{"team": "a"})
	a.put(t, pki.Delivery{Certificate: ca.issue(a.pki(), "node-a", scope)})
	a.noticed(false, "team=a", func() bool { return a.workload("web").Labels["team"] == "a" })

	crt, key := filepath.Join(a.pki(), "node.crt"), filepath.Join(a.pki(), "node.key")
	scope.Require = map[string]string{"team": "b"}
	next := ca.issue(a.pki(), "node-a", scope)
	f, err := os.OpenFile(crt, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	defer f.Close()
	_, err = f.Write(next[:len(next)/2])
	must(t, err)
	a.noticed(false, "half a certificate", func() bool { return strings.Contains(a.degraded(), "node.crt") })
	if team := a.workload("web").Labels["team"]; team != "a" || !connects() {
		t.Errorf("the old certificate is not in force: team=%s", team)
	}
	_, err = f.Write(next[len(next)/2:])
	must(t, err)
	a.noticed(false, "the whole certificate", func() bool {
		return a.workload("web").Labels["team"] == "b" && a.degraded() == ""
	})

	must(t, os.Chmod(key, 0o644))
	a.noticed(false, "the mode of the key", func() bool { return strings.Contains(a.degraded(), "chmod 0600") })
	a.saysDegraded(true)
	if !connects() {
		t.Error("the old key is not in force")
	}
	must(t, os.Chmod(key, 0o600))
	a.noticed(false, "the right mode", func() bool { return a.degraded() == "" })
	a.saysDegraded(false)

	must(t, os.RemoveAll(a.pki()))
	a.noticed(false, "the directory's end", func() bool { return a.degraded() != "" })
	if !connects() {
		t.Error("the old certificate is not in force")
	}
}

// Without keys, certificate, trust or the whole directory, the node is enforced all the same; its fleet is degraded and
// closed, and recovers when they are there.
func TestFleetDegradedWithoutFiles(t *testing.T) {
	for _, tt := range []struct {
		name   string
		remove func(t *testing.T, dir string)
	}{
		{"no directory", func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Dir(dir))) }},
		{"no trust", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "trust.pem"))) }},
		{"no certificate", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "node.crt"))) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachProgram(t, func(t *testing.T, old bool, program string) {
				a, b, ca := fleetWith(t, program)
				copied, dir := filepath.Join(t.TempDir(), "copy"), filepath.Join(t.TempDir(), "below", "pki")
				must(t, os.Rename(a.pki(), copied))
				must(t, os.MkdirAll(dir, 0o700))
				for _, name := range []string{"node.key", "node.crt", "trust.pem"} {
					a.Shell("cp -p " + filepath.Join(copied, name) + " " + dir)
				}
				tt.remove(t, dir)
				a.args[3] = dir
				if old {
					if !a.fails("no such file") || strings.Contains(a.Shell("nft list tables"), "thole") {
						t.Error("the old program starts, or enforces: this test shows nothing")
					}
					return
				}
				startA(t, a, b)
				if why := a.degraded(); !strings.Contains(why, "no such file") || !strings.Contains(why, dir) {
					t.Errorf("degraded: %q", why)
				}
				a.saysDegraded(true)
				web, near := a.labelledProbe("web", "app=web"), a.labelledProbe("near", "app=web")
				other := a.labelledProbe("other", "app=db")
				web.Listen("tcp", "[::]:80")
				b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
				if !reached(near, "127.0.0.1:80", handshakes) || reached(other, "127.0.0.1:80", 300*time.Millisecond) {
					t.Error("the node is not enforced")
				}
				if reached(web, "10.0.0.2:80", 300*time.Millisecond) {
					t.Error("to another node: connected")
				}
				must(t, os.MkdirAll(dir, 0o700))
				certificate := ca.issue(copied, "node-a", scopeOf(fleetEnds[0], map[string]string{"team": "a"}))
				a.Shell("cp -p " + copied + "/node.key " + dir)
				a.put(t, pki.Delivery{Certificate: certificate, CAs: ca.file("ca.crt")})
				a.noticed(false, "the certificate", func() bool {
					return a.degraded() == "" && a.workload("web").Labels["team"] == "a"
				})
				a.saysDegraded(false)
				if node := a.workload("web").Facts["thole/node"]; node != "node-a" {
					t.Errorf("thole/node=%q", node)
				}
				if !reached(web, "10.0.0.2:80", handshakes) {
					t.Error("to another node: not connected")
				}
			})
		})
	}
}

// Where another process has the queue, the node is enforced; when it gives it back, the fleet recovers.
func TestFleetDegradedQueue(t *testing.T) {
	eachProgram(t, func(t *testing.T, old bool, program string) {
		a, b, _ := fleetWith(t, program)
		release := a.bindQueue(t)
		if old {
			if !a.fails("queue") {
				t.Error("the old program goes on: this test shows nothing")
			}
			return
		}
		startA(t, a, b)
		nstest.WaitFor(t, 5*time.Second, "the reason", func() bool {
			return strings.Contains(a.degraded(), "queue 5448")
		})
		web, near := a.labelledProbe("web", "app=web"), a.labelledProbe("near", "app=web")
		web.Listen("tcp", "[::]:80")
		b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
		if !reached(near, "127.0.0.1:80", handshakes) || reached(web, "10.0.0.2:80", 300*time.Millisecond) {
			t.Error("the node is not enforced, or another node was reached")
		}
		if out := a.Shell(a.thole + " doctor || true"); !strings.Contains(out, "is it read by another process?") {
			t.Errorf("doctor does not say why:\n%s", out)
		}
		release()
		nstest.WaitFor(t, 10*time.Second, "the fleet to recover", func() bool { return a.degraded() == "" })
		a.saysDegraded(false)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Error("to another node: not connected")
		}
	})
}

// bindQueue has this process bind the fleet's queue in the machine's network namespace, until the function is called.
func (m *machine) bindQueue(t *testing.T) (release func()) {
	t.Helper()
	var q *queue.Queue
	must(t, m.Do(func() {
		var err error
		drop := func(queue.Packet) queue.Verdict { return queue.Drop() }
		q, err = queue.Open(queue.Config{Number: daemon.DefaultQueue}, drop)
		must(t, err)
	}))
	t.Cleanup(q.Close)
	return q.Close
}
