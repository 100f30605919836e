package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// The ends of the link between the two nodes of a fleet.
var fleetEnds = [2][2]netip.Addr{
	{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00:10::1")},
	{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00:10::2")},
}

// newFleet makes two machines that are linked and have certificates of one CA. Their
// daemons run.
func newFleet(t *testing.T) (a, b *machine) {
	t.Helper()
	a, b, _ = newFleetOf(t)
	return a, b
}

func newFleetOf(t *testing.T) (a, b *machine, ca fleetCA) {
	t.Helper()
	a, b = bareMachine(t), bareMachine(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	ca = newFleetCA(t)
	startFleet(t, ca, a, b)
	return a, b, ca
}

// startFleet gives machines at fleetEnds certificates and starts their daemons.
func startFleet(t *testing.T, ca fleetCA, machines ...*machine) {
	t.Helper()
	var members []fleetMember
	for i, m := range machines {
		ends := []string{fleetEnds[i][0].String(), fleetEnds[i][1].String()}
		members = append(members, fleetMember{m, []string{"node-a", "node-b"}[i], ends})
	}
	startMembers(t, ca, members, "10.0.0.0/23,fd00:10::/48")
}

// A fleetMember is a node that is to be.
type fleetMember struct {
	*machine
	name      string
	addresses []string
}

// startMembers gives machines certificates of a CA and starts their daemons.
func startMembers(t testing.TB, ca fleetCA, members []fleetMember, networks string) {
	t.Helper()
	for _, m := range members {
		dir := filepath.Join(t.TempDir(), "pki")
		var addresses []netip.Addr
		for _, a := range m.addresses {
			addresses = append(addresses, netip.MustParseAddr(a))
		}
		ca.node(dir, m.name, addresses)
		m.args = append([]string{"--fleet", networks, "--pki", dir, "--log-level", "debug"}, m.args...)
		m.start(m.args...)
	}
}

type fleetCA struct {
	t testing.TB
	*pki.CADir
	dir    string
	grants pki.Grants // of its nodes
}

func newFleetCA(t testing.TB) fleetCA {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := pki.InitCA(dir, "test", pki.For(time.Now().Add(-time.Hour), 48*time.Hour))
	must(t, err)
	t.Cleanup(ca.Close)
	return fleetCA{t, ca, dir, pki.Grants{"app": {"*"}}}
}

// node makes a node's directory. It may assert what is granted, from its addresses.
func (ca fleetCA) node(dir, name string, addresses []netip.Addr) {
	ca.t.Helper()
	request, err := pki.Request(dir, name, false)
	must(ca.t, err)
	scope := pki.Scope{Grants: ca.grants}
	for _, a := range addresses {
		scope.Addresses = append(scope.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	certificate, _, err := ca.IssueTo(request, scope, pki.For(time.Now(), time.Hour))
	must(ca.t, err)
	crt, err := os.ReadFile(filepath.Join(ca.dir, "ca.crt"))
	must(ca.t, err)
	list, err := os.ReadFile(filepath.Join(ca.dir, "ca.crl"))
	must(ca.t, err)
	_, err = pki.Install(dir, pki.Delivery{Certificate: certificate, CAs: crt, Lists: list}, time.Now())
	must(ca.t, err)
}

// handshakes is the patience for connects that userspace has a part in.
const handshakes = 3 * time.Second

// reached reports whether a probe is answered by the listener at an address.
func reached(p *probe.Process, to string, wait time.Duration) bool {
	return p.TCPTo(probe.Target{To: to, Patience: wait}).Allowed()
}

// tell logs what the machines know, if the test has failed.
func tell(t *testing.T, machines ...*machine) {
	t.Cleanup(func() {
		for _, m := range machines {
			if t.Failed() {
				t.Log(m.daemon.Output(), m.Shell("cat /proc/net/nf_conntrack; nft list counters; cat "+
					"/proc/net/netfilter/nfnetlink_queue"))
			}
		}
	})
}

// queued returns how many packets the machine's queue has had.
func (m *machine) queued() string {
	m.t.Helper()
	return m.Shell("awk '{print $8}' /proc/net/netfilter/nfnetlink_queue")
}

// Workloads of two nodes reach each other by their labels, and behind the handshake
// userspace has no part in it.
func TestFleetByLabels(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	nodes := []*machine{a, b}
	web := []*probe.Process{a.labelledProbe("web", "app=web"), b.labelledProbe("web", "app=web")}
	db := []*probe.Process{a.labelledProbe("db", "app=db"), b.labelledProbe("db", "app=db")}
	for i := range nodes {
		web[i].Listen("tcp", "[::]:80")
		web[i].Listen("tcp", "[::]:81", probe.Greet)
	}
	for i, ends := range fleetEnds {
		for _, end := range ends {
			to, from := netip.AddrPortFrom(end, 80).String(), 1-i
			for range 2 { // T1 full, then short
				if v := web[from].TCPTo(probe.Target{To: to, Patience: handshakes}); !v.Allowed() {
					t.Errorf("same labels, to %s: %v", to, v)
				}
			}
			greeter := netip.AddrPortFrom(end, 81).String()
			if v := web[from].TCPTo(probe.Target{To: greeter, Quiet: true, Patience: handshakes}); !v.Allowed() {
				t.Errorf("the server speaks first, to %s: %v", greeter, v)
			}
			if reached(db[from], to, 300*time.Millisecond) {
				t.Errorf("other labels, to %s: connected", to)
			}
		}
	}
	below := a.labelled("deep", "app=web").Path() + "/below/below"
	if !reached(probe.Start(a.In(below), "below"), "10.0.0.2:80", handshakes) {
		t.Error("from a cgroup below a workload's: not connected")
	}
	conn, v := web[0].DialTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes})
	if conn == nil {
		t.Fatal(v)
	}
	talk(t, conn)
	talk(t, conn)
	before := a.queued() + b.queued()
	for range 20 {
		talk(t, conn)
	}
	if before == "" {
		t.Error("no queue was found")
	}
	if after := a.queued() + b.queued(); after != before {
		t.Errorf("the queues had packets %q, and %q after an open connection was used", before, after)
	}
}

// talk has the listener answer on a connection.
func talk(t *testing.T, conn *probe.Conn) {
	t.Helper()
	if outcome := conn.Send("who?\n"); outcome != probe.Connected {
		t.Fatalf("sending: %v", outcome)
	}
	if _, outcome := conn.Receive(handshakes); outcome != probe.Connected {
		t.Fatalf("the answer: %v", outcome)
	}
}

// cidrAndLabels lets web be reached by its like, and db by an address too.
const cidrAndLabels = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{cidr: 10.0.0.1/32}]
  egress:
  - to: [{cidr: 10.0.0.0/23}]
`

// What has no labels, and machines without Thole, are judged by their address as before;
// what may be reached only by label is never reached by falling back.
func TestFleetByAddress(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	outside := nstest.New(t)
	nstest.Link(a.Host, "10.0.1.1/24", "fd00:11::1/64", outside, "10.0.1.2/24", "fd00:11::2/64")
	for _, m := range []*machine{a, b} {
		must(t, m.apply(cidrAndLabels))
	}
	web, db := a.labelledProbe("web", "app=web"), a.labelledProbe("db", "app=db")
	free := probe.Start(a.In("free"), "free")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	b.labelledProbe("db", "app=db").Listen("tcp", "[::]:81")
	probe.Start(b.In("free"), "free").Listen("tcp", "[::]:82")
	probe.Start(outside.In("free"), "outside").Listen("tcp", "[::]:80")
	for _, tt := range []struct {
		name string
		from *probe.Process
		to   string
		want bool
	}{
		{"by label", web, "10.0.0.2:80", true},
		{"by label, IPv6", web, "[fd00:10::2]:80", true},
		{"labels of another", db, "10.0.0.2:80", false},
		{"unlabelled, to what only labels may reach", free, "10.0.0.2:80", false},
		{"unlabelled, to what its address may reach", free, "10.0.0.2:81", true},
		{"unlabelled, from another address", free, "[fd00:10::2]:81", false},
		{"labelled, to what its address may reach", db, "10.0.0.2:81", true},
		{"labelled, to what has no labels", db, "10.0.0.2:82", true},
		{"once more", db, "10.0.0.2:82", true},
		{"labelled, to what has no labels and its egress does not allow", web, "10.0.0.2:82", false},
		{"its own egress denies who answers", web, "10.0.0.2:81", false},
		{"by label, still", web, "10.0.0.2:80", true},
		{"without Thole, by address", db, "10.0.1.2:80", true},
		{"without Thole, not by label", web, "10.0.1.2:80", false},
	} {
		wait := handshakes
		if !tt.want {
			wait = 300 * time.Millisecond
		}
		if got := reached(tt.from, tt.to, wait); got != tt.want {
			t.Errorf("%s: connected: %t", tt.name, got)
		}
	}
}

// noWeb is cidrAndLabels, without what may reach web.
const noWeb = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: []
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
`

// What is open outlives the daemons, and a change of the policies does not; nothing is
// opened that nobody can verify.
func TestFleetDaemonsAndPolicies(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	for _, m := range []*machine{a, b} {
		must(t, m.apply(cidrAndLabels))
	}
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	conn, v := web.DialTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes})
	if conn == nil {
		t.Fatal(v)
	}
	talk(t, conn)
	talk(t, conn)
	for _, m := range []*machine{b, a} {
		must(t, m.daemon.Kill())
		_ = m.daemon.Wait() // it was killed
		talk(t, conn)
		if reached(web, "10.0.0.2:80", 300*time.Millisecond) {
			t.Error("a connection was opened without a daemon")
		}
		m.start(m.args...)
		talk(t, conn)
		if !reached(web, "10.0.0.2:80", handshakes) {
			t.Error("nothing can be opened after the daemon was started again")
		}
	}
	other, v := web.DialTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes})
	if other == nil {
		t.Fatal(v)
	}
	talk(t, other)
	must(t, a.apply(strings.Replace(cidrAndLabels, "  - to: [{workloads: {matchLabels: {app: web}}}]",
		"  - to: [{workloads: {matchLabels: {app: none}}}]", 1)))
	other.Send("who?\n")
	if answer, outcome := other.Receive(300 * time.Millisecond); outcome == probe.Connected {
		t.Errorf("an answer after the sender's policies changed: %q", answer)
	}
	must(t, a.apply(cidrAndLabels))
	if conn, v = web.DialTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes}); conn == nil {
		t.Fatal(v)
	}
	talk(t, conn)
	must(t, b.apply(noWeb))
	conn.Send("who?\n")
	if answer, outcome := conn.Receive(300 * time.Millisecond); outcome == probe.Connected {
		t.Errorf("an answer after the policies changed: %q", answer)
	}
	if reached(web, "10.0.0.2:80", 300*time.Millisecond) {
		t.Error("a connection was opened that the new policies deny")
	}
}

// A node whose certificate was revoked opens nothing more, once the list is there.
func TestFleetRevokedNode(t *testing.T) {
	a, b, ca := newFleetOf(t)
	tell(t, a, b)
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	if !reached(web, "10.0.0.2:80", handshakes) {
		t.Fatal("not connected")
	}
	issued, err := ca.Issued()
	must(t, err)
	for _, i := range issued {
		if i.Identity.Node == "node-a" {
			_, err = ca.Revoke([]pki.Serial{i.Identity.Serial}, time.Now())
			must(t, err)
		}
	}
	list, err := os.ReadFile(filepath.Join(ca.dir, "ca.crl"))
	must(t, err)
	_, err = pki.Install(b.args[3], pki.Delivery{Lists: list}, time.Now())
	must(t, err)
	must(t, b.daemon.Signal(syscall.SIGHUP))
	nstest.WaitFor(t, 5*time.Second, "the node not to be believed any more", func() bool {
		return !reached(web, "10.0.0.2:80", 300*time.Millisecond)
	})
}
