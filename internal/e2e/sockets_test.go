package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/nstest/probe"
	"thole/policies"
)

var (
	app = func(name string) policy.Labels { return policy.Labels{"app": name} }

	// The ways to a listener on the node itself.
	own      = []string{"10.0.0.1", "fd00:10::1"}
	loopback = []string{"127.0.0.1", "::1"}
)

// soon is how long a denied connect may take on a busy machine. A time-out of
// TCP's first retransmission takes a second.
const soon = 700 * time.Millisecond

// sameLabels is a node under the default policy with two workloads of app=web, one
// of app=db, and something unlabelled.
type sameLabels struct {
	*node
	web, web2, db, free *probe.Process
}

func newSameLabels(t *testing.T) *sameLabels {
	n := newNode(t)
	n.Shell("ip link add own type bridge && ip link set own up && ip addr add 10.0.0.1/24 dev own && ip addr add " +
		"fd00:10::1/64 dev own nodad")
	s := &sameLabels{node: n}
	s.web = probe.Start(n.label("thole.slice/web", app("web")), "web")
	s.web2 = probe.Start(n.label("thole.slice/web2", app("web")), "web2")
	s.db = probe.Start(n.label("thole.slice/db", app("db")), "db")
	s.free = probe.Start(n.In("elsewhere"), "free")
	n.enforce(policies.Default)
	return s
}

func join(host string, port int) string {
	return netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port)).String()
}

// allowed fails the test unless v came through; denied unless it was refused at once.
func allowed(t testing.TB, what string, v probe.Verdict) {
	t.Helper()
	if !v.Allowed() {
		t.Errorf("%s: %s, want it allowed", what, v)
	}
}

func denied(t testing.TB, what string, v probe.Verdict) {
	t.Helper()
	if v.Allowed() || v.Elapsed > soon {
		t.Errorf("%s: %s, want it denied at once", what, v)
	}
}

// Every way to a listener: protocol, family, address, and what kind of listener.
func TestEveryWayToAListener(t *testing.T) {
	s := newSameLabels(t)
	port := 8000
	for _, listen := range []string{"0.0.0.0", "::", "127.0.0.1", "::1", "10.0.0.1", "fd00:10::1"} {
		for _, to := range append(own, loopback...) {
			if !reaches(listen, to) {
				continue
			}
			port++
			t.Run(fmt.Sprintf("listening on %s, called at %s", listen, to), func(t *testing.T) {
				for _, option := range [][]probe.Option{nil, {probe.ReusePort}, {probe.Greet}} {
					l := s.web.Listen("tcp", join(listen, port), option...)
					dial := func(p *probe.Process) probe.Verdict {
						return p.TCPTo(probe.Target{To: join(to, port), Quiet: len(option) == 1 &&
							option[0] == probe.Greet})
					}
					allowed(t, fmt.Sprint("tcp, same labels ", option), dial(s.web2))
					allowed(t, fmt.Sprint("tcp, itself ", option), dial(s.web))
					denied(t, fmt.Sprint("tcp, other labels ", option), dial(s.db))
					denied(t, fmt.Sprint("tcp, unlabelled ", option), dial(s.free))
					l.Close()
				}
				u := s.web.OpenUDP("udp", join(listen, port))
				defer u.Close()
				allowed(t, "udp, same labels", s.web2.UDP(join(to, port), u))
				allowed(t, "udp, itself", s.web.UDP(join(to, port), u))
				denied(t, "udp, other labels", s.db.UDP(join(to, port), u))
				denied(t, "udp, unlabelled", s.free.UDP(join(to, port), u))
			})
		}
	}
}

// reaches says whether a listener on one address hears what is sent to the other.
func reaches(listen, to string) bool {
	l, a := netip.MustParseAddr(listen), netip.MustParseAddr(to)
	return l == a || l == netip.IPv6Unspecified() || l == netip.IPv4Unspecified() && a.Is4()
}

// What a workload may not reach: other workloads, and the unlabelled but for name
// resolution.
func TestEgressOfTheDefault(t *testing.T) {
	s := newSameLabels(t)
	for _, to := range append(own, loopback...) {
		s.free.Listen("tcp", join(to, 80))
		s.free.Listen("tcp", join(to, 53))
		u80, u53 := s.free.OpenUDP("udp", join(to, 80)), s.free.OpenUDP("udp", join(to, 53))
		denied(t, "tcp 80 of unlabelled at "+to, s.web.TCP(join(to, 80)))
		denied(t, "udp 80 of unlabelled at "+to, s.web.UDP(join(to, 80), u80))
		allowed(t, "tcp 53 of unlabelled at "+to, s.web.TCP(join(to, 53)))
		allowed(t, "udp 53 of unlabelled at "+to, s.web.UDP(join(to, 53), u53))
	}
}

// A child has its parent's labels.
func TestForksInherit(t *testing.T) {
	s := newSameLabels(t)
	s.web.Fork("child").Listen("tcp", "127.0.0.1:80")
	allowed(t, "same labels to a child", s.web2.TCP("127.0.0.1:80"))
	denied(t, "other labels to a child", s.db.TCP("127.0.0.1:80"))
	s.web.Listen("tcp", "127.0.0.1:81")
	allowed(t, "a grandchild", s.web2.Fork("child").Fork("grandchild").TCP("127.0.0.1:81"))
	denied(t, "a child of other labels", s.db.Fork("child").TCP("127.0.0.1:81"))
}

// Two workloads share a port by SO_REUSEPORT: each connection is judged by the
// listener that gets it.
func TestReusePortAcrossWorkloads(t *testing.T) {
	s := newSameLabels(t)
	s.web.Listen("tcp", "127.0.0.1:80", probe.ReusePort)
	s.db.Listen("tcp", "127.0.0.1:80", probe.ReusePort)
	reached := map[string]int{}
	for range 100 {
		if v := s.web2.TCP("127.0.0.1:80"); v.Allowed() {
			reached[v.Server]++
		}
	}
	if reached["web"] == 0 || reached["db"] != 0 {
		t.Errorf("reached %v, want web sometimes and db never", reached)
	}
}

// A socket keeps the cgroup in which it was born, also when its process moves.
func TestSocketsKeepTheirBirthplace(t *testing.T) {
	s := newSameLabels(t)
	s.web.Listen("tcp", "127.0.0.1:80")
	s.In("elsewhere").Adopt(s.web.PID())
	denied(t, "unlabelled to a socket born labelled", s.free.TCP("127.0.0.1:80"))
	allowed(t, "same labels to a socket born labelled", s.web2.TCP("127.0.0.1:80"))
	s.web.Listen("tcp", "127.0.0.1:81")
	allowed(t, "unlabelled to a socket born after the move", s.free.TCP("127.0.0.1:81"))
}

// A UDP port changes hands within the life of a flow: neither end inherits what
// the other was allowed.
func TestUDPPortChangesHands(t *testing.T) {
	s := newSameLabels(t)
	server := s.web.OpenUDP("udp", "127.0.0.1:53")
	client := s.web2.OpenUDP("udp", "127.0.0.1:4000")
	allowed(t, "same labels", client.Try(server.Addr, server))
	allowed(t, "the answer", server.Try(client.Addr, client))

	client.Close()
	thief := s.db.OpenUDP("udp", "127.0.0.1:4000")
	denied(t, "other labels with the same source port", thief.Try(server.Addr, server))
	if v := server.Try(thief.Addr, thief); v.Allowed() {
		t.Errorf("an answer reached who has the port now: %s", v)
	}
	thief.Close()

	client = s.web2.OpenUDP("udp", "127.0.0.1:4000")
	allowed(t, "the first again", client.Try(server.Addr, server))
	server.Close()
	heir := s.db.OpenUDP("udp", "127.0.0.1:53")
	denied(t, "to other labels on the same port", client.Try(heir.Addr, heir))
}

// A change that takes an allowance away reaches connections that are open; those
// that are allowed go on.
func TestRevocation(t *testing.T) {
	s := newSameLabels(t)
	l := s.web.Listen("tcp", "127.0.0.1:80", probe.Manual)
	revoked, v := s.web2.Dial(l.Addr)
	allowed(t, "same labels", v)
	server := l.Accept(5 * time.Second)
	kept, _ := s.web.Dial(l.Addr)
	keptServer := l.Accept(5 * time.Second)

	s.enforce(example(t, "deny-all.yaml"))
	revoked.Send("secret")
	if data, _ := server.Receive(0); data != "" {
		t.Errorf("%q arrived after the revocation", data)
	}
	kept.Send("own")
	if data, o := keptServer.Receive(5 * time.Second); data != "own" {
		t.Errorf("to itself: %q, %s; want it to go on", data, o)
	}
}

// What is unlabelled behaves as without Thole: no drops, and its packets meet only
// the early exits. Another program's table on the same hooks stays as it is.
func TestUnlabelledIsUntouched(t *testing.T) {
	s := newSameLabels(t)
	foreign := `table inet other {
		chain in { type filter hook input priority filter; policy accept; tcp dport 81 counter drop; }
		chain out {
			type filter hook output priority filter; policy accept; tcp dport 82 counter reject with tcp reset;
		}
	}`
	must(t, s.Nft(foreign))
	before := s.Shell("nft -s list table inet other")
	other := probe.Start(s.In("elsewhere/other"), "other")
	s.free.Listen("tcp", "[::]:80")
	s.free.Listen("tcp", "[::]:81")
	s.free.Listen("tcp", "[::]:82")
	u := s.free.OpenUDP("udp", "[::]:80")
	settled, unlabelled := s.counter("allowed"), s.counter("unlabelled")
	for _, to := range append(own, loopback...) {
		allowed(t, "tcp at "+to, other.TCP(join(to, 80)))
		allowed(t, "udp at "+to, other.UDP(join(to, 80), u))
		allowed(t, "ping "+to, other.Ping(to))
	}
	if v := other.TCP("127.0.0.1:81"); v.Outcome != probe.Silent {
		t.Errorf("the other table's drop: %s", v)
	}
	if v := other.TCP("127.0.0.1:82"); v.Outcome != probe.Refused {
		t.Errorf("the other table's reset: %s", v)
	}
	if v := other.TCP("127.0.0.1:83"); v.Outcome != probe.Refused {
		t.Errorf("nobody listens: %s", v)
	}
	for _, c := range []string{"denied", "discarded", "injected"} {
		if n := s.counter(c); n != 0 {
			t.Errorf("%d packets were %s", n, c)
		}
	}
	if n := s.counter("allowed"); n != settled {
		t.Errorf("%d packets went past the early exits", n-settled)
	}
	if s.counter("unlabelled") == unlabelled {
		t.Error("the early exits counted nothing")
	}
	s.enforce(example(t, "deny-all.yaml"))
	must(t, s.Nft("delete table inet thole"))
	if after := s.Shell("nft -s list table inet other"); after != before {
		t.Errorf("the other table was\n%s\nand is\n%s", before, after)
	}
}

// An unlabelled client takes over the port of a workload that asked an unlabelled server: conntrack remembers the
// workload, and the client is answered all the same.
func TestUnlabelledTakesOverAUDPPort(t *testing.T) {
	s := newSameLabels(t)
	for _, to := range append(own, loopback...) {
		server := s.free.OpenUDP("udp", join(to, 53))
		client := s.web.OpenUDP("udp", join(to, 4000))
		allowed(t, "a workload asks at "+to, client.Try(server.Addr, server))
		allowed(t, "the answer", server.Try(client.Addr, client))
		client.Close()
		heir := s.free.OpenUDP("udp", join(to, 4000))
		allowed(t, "something unlabelled asks from its port", heir.Try(server.Addr, server))
		allowed(t, "the answer to something unlabelled", server.Try(heir.Addr, heir))
		heir.Close()
		server.Close()
	}
}

// Another program marks all connections, also those of this node. The class in the mark is nobody's, or a workload's.
func TestConntrackMarksOnLoopback(t *testing.T) {
	s := newSameLabels(t)
	for i, mark := range []string{"1", "0xca6c", "0x70001", "0x12345", "0x1ca6c"} {
		must(t, s.Nft("table inet other { chain o { type filter hook output priority 20; ct mark set "+mark+"; }; }"))
		for _, to := range append(own, loopback...) {
			server, client := s.free.OpenUDP("udp", join(to, 53)), s.free.OpenUDP("udp", join(to, 0))
			allowed(t, "a request with mark "+mark, client.Try(server.Addr, server))
			allowed(t, "the answer with mark "+mark, server.Try(client.Addr, client))
			server.Close()
			client.Close()
			if mark == "0x12345" || mark == "0x1ca6c" {
				continue // over TCP this epoch, with a class, is a workload's connection
			}
			l := s.free.Listen("tcp", join(to, 8000+i))
			allowed(t, "TCP with mark "+mark, s.free.TCP(l.Addr))
		}
		must(t, s.Nft("delete table inet other"))
	}
}

// A workload whose cgroup lies in another workload's is another one: it cannot send what that one may, nor receive its
// answers.
func TestWorkloadInsideAnother(t *testing.T) {
	n := newNode(t)
	world := probe.Start(everywhereElse(t, n.Host).In("world"), "world")
	n.label("user.slice", app("outer"))
	n.label("user.slice/inner", app("inner"))
	n.label("system.slice", app("server"))
	server, outer := probe.Start(n.In("system.slice"), "server"), probe.Start(n.In("user.slice"), "outer")
	inner := probe.Start(n.In("user.slice/inner"), "inner")
	n.enforce([]byte(`apiVersion: thole/v1
kind: Policy
metadata: {name: server}
spec: {selector: {matchLabels: {app: server}}, ingress: [{from: [{workloads: {matchLabels: {app: outer}}}]}]}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: inner}
spec: {selector: {matchLabels: {app: inner}}, ingress: [], egress: []}
`))
	for _, f := range []struct{ loopback, other, node, world string }{
		{"127.0.0.1", "127.0.0.2", "10.0.0.1", "192.0.2.1"}, {"::1", "fd00:10::1", "fd00:10::1", "2001:db8::1"},
	} {
		to := server.OpenUDP("udp", join(f.loopback, 5353))
		client, forger := outer.OpenUDP("udp", join(f.loopback, 6000)), inner.OpenUDP("udp", join(f.other, 6000))
		allowed(t, "the outer one", client.Try(to.Addr, to))
		forger.SendFrom(f.loopback, to.Addr, "forged")
		if to.Got("forged") {
			t.Errorf("%s: the inner workload sent in the outer one's name", f.loopback)
		}
		outside := world.OpenUDP("udp", join(f.world, 5353))
		client.Close()
		client = outer.OpenUDP("udp", join(f.node, 6001))
		allowed(t, "the outer one to the outside", client.Try(outside.Addr, outside))
		forger = inner.OpenUDP("udp", join(f.loopback, 6001))
		forger.SendFrom(f.node, outside.Addr, "forged")
		if outside.Got("forged") {
			t.Errorf("%s: the inner workload sent to the outside in the outer one's name", f.loopback)
		}
		heir := inner.OpenUDP("udp", join(f.loopback, 6000))
		if v := to.Try(heir.Addr, heir); v.Allowed() {
			t.Errorf("%s: the inner workload received an answer to the outer one", f.loopback)
		}
	}
}
