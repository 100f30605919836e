package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// linkOutside joins a machine of the fleet to a host without Thole that is in the
// fleet's networks.
func linkOutside(t *testing.T, m *machine) *nstest.Host {
	t.Helper()
	outside := nstest.New(t)
	nstest.Link(m.Host, "10.0.1.1/24", "fd00:11::1/64", outside, "10.0.1.2/24", "fd00:11::2/64")
	return outside
}

// A machine without Thole costs one round trip more, once: its place is remembered.
func TestFleetPlainIsRemembered(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	must(t, a.apply(cidrAndLabels))
	outside := linkOutside(t, a)
	server := probe.Start(outside.In("free"), "outside")
	server.Listen("tcp", "[::]:80")
	server.Listen("tcp", "[::]:81")
	db := a.labelledProbe("db", "app=db")
	seen := wire.Observe(outside)
	syns := func(port uint16) int {
		return seen.Count(func(p wire.Packet) bool {
			return p.Network == "tcp" && p.SYN && !p.ACK && p.To.Port() == port
		})
	}
	want := map[uint16]int{}
	for i, port := range []uint16{80, 80, 80, 81, 81, 80} {
		if v := db.TCPTo(probe.Target{To: fmt.Sprintf("10.0.1.2:%d", port), Patience: handshakes}); !v.Allowed() {
			t.Fatalf("connect %d, to port %d: %v", i, port, v)
		}
		if want[port] == 0 {
			want[port]++ // with T1, which is reset
		}
		want[port]++
		if got := syns(port); got != want[port] {
			t.Fatalf("after connect %d port %d has seen %d SYNs, want %d", i, port, got, want[port])
		}
	}
}

// A connect to a machine without Thole that the policy denies is refused at the first
// answer: the process sees no connection, and the machine keeps none that is half open.
func TestFleetPlainDenied(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	must(t, a.apply(cidrAndLabels))
	outside := linkOutside(t, a)
	probe.Start(outside.In("free"), "outside").Listen("tcp", "[::]:80")
	web := a.labelledProbe("web", "app=web")
	seen := wire.Observe(outside)
	for _, to := range []string{"10.0.1.2:80", "[fd00:11::2]:80"} {
		for _, when := range []string{"at first", "remembered"} {
			if v := web.TCPTo(probe.Target{To: to, Patience: handshakes}); v.Outcome != probe.Refused ||
				v.Elapsed > nstest.Patience(900*time.Millisecond) {
				t.Errorf("%s, %s: %s after %v, want it refused at once", to, when, v, v.Elapsed)
			}
		}
	}
	if n := seen.Count(func(p wire.Packet) bool {
		return p.Network == "tcp" && !p.SYN && p.ACK && p.To.Port() == 80
	}); n != 0 {
		t.Errorf("%d packets with ACK have come", n)
	}
	if half := outside.Shell("ss -Htn state syn-recv"); half != "" {
		t.Errorf("half open: %s", half)
	}
}

// Where a place had no Thole, or no labels, a workload with labels may listen by now: it
// is reached by its labels when TCP's next SYN goes out.
func TestFleetPlainNoMore(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	both := strings.Replace(cidrAndLabels, "  - to: [{workloads: {matchLabels: {app: web}}}]\n",
		"  - to: [{workloads: {matchLabels: {app: web}}}, {cidr: 10.0.0.0/23}]\n", 1)
	must(t, a.apply(both))
	must(t, b.apply(cidrAndLabels))
	web := a.labelledProbe("web", "app=web")
	free := probe.Start(b.In("free"), "free")
	listener := free.Listen("tcp", "[::]:80")
	for range 2 {
		if v := web.TCPTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes}); !v.Allowed() {
			t.Fatalf("to what has no labels: %v", v)
		}
	}
	listener.Close()
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	if v := web.TCPTo(probe.Target{To: "10.0.0.2:80", Patience: 2 * handshakes}); !v.Allowed() || v.Server != "web" {
		t.Errorf("to what has labels now: %v", v)
	}
	if v := web.TCPTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes}); !v.Allowed() ||
		v.Elapsed > 900*time.Millisecond {
		t.Errorf("once more: %v after %v", v, v.Elapsed)
	}
}

// An ICMP error about a SYN with T1 quotes a number that the kernel never sent: it is
// translated, so that a connect fails at once and not by time.
func TestFleetErrorsAreTranslated(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	must(t, a.apply(`
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  egress:
  - to: [{cidr: 10.0.0.0/23}, {cidr: "fd00:10::/64"}]
`))
	router := linkOutside(t, a)
	router.Shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip route add prohibit " +
		"10.0.0.200; ip route add prohibit fd00:10::200")
	a.Shell("ip route add 10.0.0.200 via 10.0.1.2; ip route add fd00:10::200 via fd00:11::2")
	db := a.labelledProbe("db", "app=db")
	for _, to := range []string{"10.0.0.200:80", "[fd00:10::200]:80"} {
		if v := db.TCPTo(probe.Target{To: to, Patience: handshakes}); v.Outcome != probe.Prohibited {
			t.Errorf("to %s, which a router refuses: %v", to, v)
		}
	}
	// The same where the packets do not go by userspace.
	free := probe.Start(a.In("free"), "free")
	if v := free.TCPTo(probe.Target{To: "10.0.0.200:80", Patience: handshakes}); v.Outcome != probe.Prohibited {
		t.Errorf("without labels: %v", v)
	}
}

// Path MTU discovery works in the first packets behind the handshake.
func TestFleetSmallPath(t *testing.T) {
	a, b := bareMachine(t), bareMachine(t)
	router := nstest.New(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", router, "10.0.0.254/24", "fd00:10::254/64")
	left, right := nstest.Link(router, "10.0.1.254/24", "fd00:11::254/64", b.Host, "10.0.1.1/24", "fd00:11::1/64")
	router.Shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link set " + left + " mtu 1280")
	_ = right // it takes 1,500 bytes, and so says its MSS
	a.Shell("ip route add 10.0.1.0/24 via 10.0.0.254; ip route add fd00:11::/64 via fd00:10::254")
	b.Shell("ip route add 10.0.0.0/24 via 10.0.1.254; ip route add fd00:10::/64 via fd00:11::254")
	startMembers(t, newFleetCA(t), []fleetMember{
		{a, "node-a", []string{"10.0.0.1", "fd00:10::1"}}, {b, "node-b", []string{"10.0.1.1", "fd00:11::1"}},
	}, "10.0.0.0/23,fd00:10::/31")
	tell(t, a, b)
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	for _, to := range []string{"10.0.1.1:80", "[fd00:11::1]:80"} {
		conn, v := web.DialTo(probe.Target{To: to, Patience: handshakes})
		if conn == nil {
			t.Fatalf("to %s: %v", to, v)
		}
		if outcome := conn.Send(strings.Repeat("x", 4000)); outcome != probe.Connected {
			t.Fatal(outcome)
		}
		if _, outcome := conn.Receive(handshakes); outcome != probe.Connected {
			t.Errorf("to %s: %v after a first segment that was too big", to, outcome)
		}
	}
}

// auditEgress would deny, by label, what it lets pass.
const auditEgress = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: strict}
spec:
  selector: {matchLabels: {app: web}}
  enforcement: audit
  egress:
  - to: [{workloads: {matchLabels: {app: db}}}]
`

// An audit policy's denial of a connection to another node's workload is recorded, and
// the connection stays one to that workload: a change of the policies decides it by label.
func TestFleetAudit(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	must(t, a.apply(auditEgress))
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	conn, v := web.DialTo(probe.Target{To: "10.0.0.2:80", Patience: handshakes})
	if conn == nil {
		t.Fatal(v)
	}
	talk(t, conn)
	talk(t, conn)
	if out := a.Shell("nft list counter inet thole would_deny_strict"); strings.Contains(out, "packets 0 ") {
		t.Errorf("nothing was recorded: %s", out)
	}
	must(t, a.apply(cidrAndLabels)) // allows it by label, and by no address
	talk(t, conn)
	talk(t, conn)
}
