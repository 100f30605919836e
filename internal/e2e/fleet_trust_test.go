package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// file reads one of the CA's public files.
func (ca fleetCA) file(name string) []byte {
	ca.t.Helper()
	data, err := os.ReadFile(filepath.Join(ca.dir, name))
	must(ca.t, err)
	return data
}

// renew gives a node a certificate for a new key, and trust in these CAs.
func (ca fleetCA) renew(m *machine, name string, scope pki.Scope, trusted ...fleetCA) {
	ca.t.Helper()
	request, err := pki.Request(m.pki(), name, true)
	must(ca.t, err)
	certificate, _, err := ca.IssueTo(request, scope, pki.For(time.Now(), time.Hour))
	must(ca.t, err)
	m.install(pki.Delivery{Certificate: certificate, CAs: certificates(trusted)})
}

func certificates(cas []fleetCA) (all []byte) {
	for _, ca := range cas {
		all = append(all, ca.file("ca.crt")...)
	}
	return all
}

func (m *machine) pki() string { return m.args[3] }

// install delivers to the machine, and has its daemon read it.
func (m *machine) install(d pki.Delivery) {
	m.t.Helper()
	_, err := pki.Install(m.pki(), d, time.Now())
	must(m.t, err)
	m.reload()
}

// reload returns when the daemon has read its certificate and trust again.
func (m *machine) reload() {
	m.t.Helper()
	const read = "certificate and trust were read"
	before := strings.Count(m.daemon.Output(), read)
	must(m.t, m.daemon.Signal(syscall.SIGHUP))
	nstest.WaitFor(m.t, 20*time.Second, "the daemon to read them", func() bool {
		return strings.Count(m.daemon.Output(), read) > before
	})
}

// revoke has the CA revoke all certificates of a node.
func (ca fleetCA) revoke(node string) {
	ca.t.Helper()
	issued, err := ca.Issued()
	must(ca.t, err)
	for _, i := range issued {
		if i.Identity.Node == node {
			_, err = ca.Revoke([]pki.Serial{i.Identity.Serial}, time.Now())
			must(ca.t, err)
		}
	}
}

func scopeOf(addresses [2]netip.Addr, require map[string]string) pki.Scope {
	s := pki.Scope{Grants: pki.Grants{"app": {"*"}}, Require: require}
	for _, a := range addresses {
		s.Addresses = append(s.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	return s
}

// dial opens a connection that has been used.
func dial(t *testing.T, p *probe.Process, to string) *probe.Conn {
	t.Helper()
	conn, v := p.DialTo(probe.Target{To: to, Patience: handshakes})
	if conn == nil {
		t.Fatalf("from %s to %s: %v", p.Name, to, v)
	}
	talk(t, conn)
	talk(t, conn)
	return conn
}

// silent reports whether nothing is answered on a connection.
func silent(conn *probe.Conn) bool {
	conn.Send("who?\n")
	_, outcome := conn.Receive(500 * time.Millisecond)
	return outcome != probe.Connected
}

// The open connections of a node whose certificate was revoked end at their next packet,
// in both directions; those of others go on.
func TestFleetRevocationEndsConnections(t *testing.T) {
	ca := newFleetCA(t)
	a, b, c := bareMachine(t), bareMachine(t), bareMachine(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	nstest.Link(c.Host, "10.0.1.1/24", "fd00:11::1/64", b.Host, "10.0.1.2/24", "fd00:11::2/64")
	startMembers(t, ca, []fleetMember{
		{a, "node-a", []string{"10.0.0.1", "fd00:10::1"}}, {c, "node-c", []string{"10.0.1.1", "fd00:11::1"}},
		{b, "node-b", []string{"10.0.0.2", "fd00:10::2", "10.0.1.2", "fd00:11::2"}},
	}, "10.0.0.0/23,fd00:10::/31")
	tell(t, a, b, c)
	probes := map[*machine]*probe.Process{}
	for _, m := range []*machine{a, b, c} {
		probes[m] = m.labelledProbe("web", "app=web")
		probes[m].Listen("tcp", "[::]:80")
	}
	fromA, fromA6, toA := dial(t, probes[a], "10.0.0.2:80"), dial(t, probes[a], "[fd00:10::2]:80"),
		dial(t, probes[b], "10.0.0.1:80")
	fromC, toC := dial(t, probes[c], "10.0.1.2:80"), dial(t, probes[b], "[fd00:11::1]:80")
	ca.revoke("node-a")
	b.install(pki.Delivery{Lists: ca.file("ca.crl")})
	for name, conn := range map[string]*probe.Conn{"from the node": fromA, "from the node, IPv6": fromA6,
		"to the node": toA} {
		if !silent(conn) {
			t.Errorf("%s: answered after its revocation", name)
		}
	}
	talk(t, fromC)
	talk(t, toC)
	must(t, b.daemon.Kill())
	_ = b.daemon.Wait() // it was killed
	b.start(b.args...)
	if !silent(fromA) {
		t.Error("answered after a restart")
	}
	talk(t, fromC)
	talk(t, toC)
	if reached(probes[a], "10.0.0.2:80", 300*time.Millisecond) ||
		reached(probes[b], "10.0.0.1:80", 300*time.Millisecond) {
		t.Error("a connection was opened")
	}
	if !reached(probes[c], "10.0.1.2:80", handshakes) {
		t.Error("another node was cut")
	}
}

// A node's certificate and key are renewed, and the CA is changed for another: nothing
// that is open ends, but what only the CA that is gone vouched for.
func TestFleetRenewalAndRotation(t *testing.T) {
	a, b, old := newFleetOf(t)
	tell(t, a, b)
	machines, names := []*machine{a, b}, []string{"node-a", "node-b"}
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	first := dial(t, web, "10.0.0.2:80")
	for i, m := range machines {
		old.renew(m, names[i], scopeOf(fleetEnds[i], nil), old)
		talk(t, first)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Fatalf("not connected after %s was renewed", names[i])
		}
	}
	next := newFleetCA(t)
	for i, m := range machines { // both trust both, before anybody has a certificate of the next
		m.install(pki.Delivery{CAs: certificates([]fleetCA{old, next})})
		talk(t, first)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Fatalf("not connected after %s trusted two CAs", names[i])
		}
	}
	for _, i := range []int{1, 0} { // the client last: it forgets whose statements it may name in T1 short
		m := machines[i]
		next.renew(m, names[i], scopeOf(fleetEnds[i], nil), old, next)
		talk(t, first)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Fatalf("not connected after %s had a certificate of the next CA", names[i])
		}
	}
	second := dial(t, web, "10.0.0.2:80")
	for i, m := range machines {
		m.install(pki.Delivery{CAs: certificates([]fleetCA{next})})
		talk(t, second)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Fatalf("not connected after %s trusted the next CA alone", names[i])
		}
	}
	if !silent(first) {
		t.Error("a connection goes on that only the old CA vouched for")
	}
}

// byTeam lets nobody in but who has the label that a node's certificate requires.
const byTeam = `
apiVersion: thole/v1
kind: Policy
metadata: {name: team}
spec:
  selector: {matchLabels: {app: web, team: a}}
  ingress:
  - from: [{workloads: {matchLabels: {team: a}}}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: node}
spec:
  selector: {matchLabels: {app: db, thole/node: node-b}}
  ingress: []
`

// What a certificate requires is put on the node's own workloads, with its name, and
// changes with it.
func TestFleetRequiredLabels(t *testing.T) {
	a, b, ca := newFleetOf(t)
	tell(t, a, b)
	ca.renew(a, "node-a", scopeOf(fleetEnds[0], map[string]string{"team": "a"}), ca)
	ca.renew(b, "node-b", scopeOf(fleetEnds[1], map[string]string{"team": "a"}), ca)
	for _, m := range []*machine{a, b} {
		must(t, m.apply(byTeam))
	}
	near, far := b.labelledProbe("near", "app=near"), a.labelledProbe("far", "app=far")
	web, db := b.labelledProbe("web", "app=web"), b.labelledProbe("db", "app=db")
	web.Listen("tcp", "[::]:80")
	db.Listen("tcp", "[::]:81")
	var list []api.Workload
	must(t, json.Unmarshal([]byte(b.Shell(b.thole+" get workloads -o json")), &list))
	for _, w := range list {
		if w.Labels["team"] != "a" || w.Facts["thole/node"] != "node-b" {
			t.Errorf("workload %s: labels %v, facts %v", w.Name, w.Labels, w.Facts)
		}
	}
	if !reached(near, "127.0.0.1:80", handshakes) {
		t.Error("on this node, by the required label: not connected")
	}
	if !reached(far, "10.0.0.2:80", handshakes) {
		t.Error("from another node, by the required label: not connected")
	}
	if reached(near, "127.0.0.1:81", 300*time.Millisecond) {
		t.Error("the node's name selects nothing")
	}
	open := dial(t, near, "127.0.0.1:80")
	ca.renew(b, "node-b", scopeOf(fleetEnds[1], map[string]string{"team": "b"}), ca)
	must(t, json.Unmarshal([]byte(b.Shell(b.thole+" get workloads -o json")), &list))
	for _, w := range list {
		if w.Labels["team"] != "b" {
			t.Errorf("after the renewal: workload %s: labels %v", w.Name, w.Labels)
		}
	}
	talk(t, open) // web is of team b now: no policy isolates it
	other := probe.Start(b.labelled("other", "team=a"), "other")
	if out := b.Shell(b.thole + " status || true"); !strings.Contains(out,
		"team=a contradicts this node's certificate, which requires team=b") {
		t.Errorf("status says nothing of a label that contradicts:\n%s", out)
	}
	_ = other
}

// Where this node's own certificate cannot be used, traffic with other nodes is closed,
// and that on this node goes on; a list that revokes others counts all the same.
func TestFleetOwnCertificate(t *testing.T) {
	a, b, ca := newFleetOf(t)
	tell(t, a, b)
	web, near := a.labelledProbe("web", "app=web"), b.labelledProbe("near", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	open := dial(t, web, "10.0.0.2:80")
	must(t, b.daemon.Kill())
	_ = b.daemon.Wait() // it was killed
	ca.revoke("node-b")
	_, err := pki.Install(b.pki(), pki.Delivery{Lists: ca.file("ca.crl")}, time.Now())
	must(t, err)
	b.start(b.args...)
	if !reached(near, "127.0.0.1:80", handshakes) {
		t.Error("on this node: not connected")
	}
	if !reached(b.labelledProbe("later", "app=web"), "127.0.0.1:80", handshakes) {
		t.Error("on this node, one that begins later: not connected")
	}
	if reached(web, "10.0.0.2:80", 300*time.Millisecond) {
		t.Error("from another node: connected")
	}
	talk(t, open)
	ca.renew(b, "node-b", scopeOf(fleetEnds[1], nil), ca)
	if !reached(web, "10.0.0.2:80", handshakes) {
		t.Error("after the renewal: not connected")
	}
	talk(t, open)
	must(t, os.Chmod(filepath.Join(b.pki(), "node.key"), 0o644))
	ca.revoke("node-a")
	_, err = pki.Install(b.pki(), pki.Delivery{Lists: ca.file("ca.crl")}, time.Now())
	must(t, err)
	b.reload()
	if !silent(open) {
		t.Error("a node that was revoked goes on, since this node's own key cannot be read")
	}
}
