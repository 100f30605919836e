package attack

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler/mark"
	"thole/compiler/policy"
)

// A packet socket sees what others send, and sends past OUTPUT.
func TestLimitPacketSockets(t *testing.T) {
	s := newScene(t, denyAll)
	s.db.only(unix.CAP_NET_RAW)
	u := s.stranger().udp(theirs + ":80")
	denied(t, "out by UDP", reachesUDP(s.db, "", theirs+":80", u))
	mac := s.outside.Shell("cat /sys/class/net/veth0/address")
	s.db.injectTo("veth0", mac, udpPacket(ours+":5000", theirs+":80", "secret"))
	limit(t, "out by a packet socket", u.got() == "secret")

	all := unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	seen := &sock{s.db, s.db.ok(call{Op: "socket", A: unix.AF_PACKET, B: unix.SOCK_DGRAM, C: all}).FD}
	reachesUDP(s.free, "", "127.0.0.1:80", s.free.udp("127.0.0.1:80"))
	limit(t, "what others send", strings.Contains(seen.got(), "hello"))
}

// CAP_NET_RAW is enough to give a packet the priority of what a tunnel puts around a judged one: it leaves the node. It
// reaches nothing on this node.
func TestLimitPriorityOfTunnels(t *testing.T) {
	s := newScene(t, denyAll)
	s.Shell("ip link set lo multicast on; ip route add 224.0.0.251/32 dev lo; ip route add 224.0.0.252/32 dev veth0")
	priority := [3]int{unix.SOL_SOCKET, unix.SO_PRIORITY, mark.WrappedPriority}
	unprivileged := newAgent(t, s.Host, s.In("thole.slice/db").As(1234)).socket("0.0.0.0:0", unix.SOCK_DGRAM)
	set := call{Op: "setint", FD: unprivileged.fd, A: priority[0], B: priority[1], C: priority[2]}
	if errno := unprivileged.do(set).Errno; errno != unix.EPERM {
		t.Errorf("the priority without a capability: %v, want it refused", errno)
	}
	s.db.only(unix.CAP_NET_RAW)
	sends := func(to string, at *sock) bool {
		s.t.Helper()
		u := s.db.udp("0.0.0.0:0", priority, [3]int{unix.SOL_SOCKET, unix.SO_BROADCAST, 1})
		defer u.close()
		u.sendTo(to, "secret")
		return strings.Contains(at.got(), "secret")
	}
	world := s.stranger()
	outside, l := world.udp(theirs+":80"), world.listen(theirs+":80")
	denied(t, "without the priority", reachesUDP(s.db, "", theirs+":80", outside))
	limit(t, "outside", sends(theirs+":80", outside))
	c := s.db.tcp("0.0.0.0:0", priority)
	limit(t, "outside, TCP", c.connect(theirs+":80") == 0 && l.accept() != nil)
	for name, a := range map[string]*agent{"a workload": s.web, "unlabelled": s.free} {
		u, l := a.udp("0.0.0.0:5353"), a.listen("0.0.0.0:5353")
		a.ok(call{Op: "join", FD: u.fd, To: "224.0.0.251", Device: "lo"})
		a.ok(call{Op: "join", FD: u.fd, To: "224.0.0.252", Device: "veth0"})
		for _, to := range []string{"127.0.0.1:5353", ours + ":5353", "224.0.0.251:5353", "224.0.0.252:5353",
			"10.0.0.255:5353"} {
			denied(t, name+" at "+to, sends(to, u))
		}
		allowed(t, name+" on lo, from unlabelled", reachesUDP(s.free, "", "224.0.0.251:5353", u))
		allowed(t, name+" on the link, from unlabelled", reachesUDP(s.free, "", "224.0.0.252:5353", u))
		c := s.db.tcp("0.0.0.0:0", priority)
		denied(t, name+", TCP", c.connect(ours+":5353") == 0)
		u.close()
		l.close()
	}
}

// Another program that writes conntrack's mark behind OUTPUT costs workloads the answers of UDP; one that writes a
// number of ours before it gives what has that number.
func TestLimitConntrackMark(t *testing.T) {
	s := newScene(t, closedDB)
	server, client := s.web.udp("127.0.0.1:5353"), s.db.udp("127.0.0.1:6000")
	own, world := s.db.udp("127.0.0.1:5354"), s.stranger().udp(theirs+":80")
	client.sendTo("127.0.0.1:5353", "question")
	denied(t, "a question", server.got() != "")
	client.sendTo("127.0.0.1:5354", "question")
	allowed(t, "to itself", own.got() == "question")
	flows := s.Shell("conntrack -L -p udp --dport 5354 2>/dev/null")
	found := regexp.MustCompile(`mark=(\d+)`).FindStringSubmatch(flows)
	if found == nil {
		t.Fatalf("no mark: %s", flows)
	}
	denied(t, "outside", reachesUDP(s.db, "", theirs+":80", world))
	must(t, s.Nft("table inet other { chain o { type filter hook output priority 0; udp dport 80 ct mark set "+found[1]+
		"; }; }"))
	limit(t, "outside, with a mark of ours", reachesUDP(s.db, "", theirs+":80", world))

	s = newScene(t, sameLabels)
	question := func() bool {
		server, client := s.web.udp("127.0.0.1:5353"), s.web2.udp("127.0.0.1:6000")
		defer func() { server.close(); client.close() }()
		client.sendTo("127.0.0.1:5353", "question")
		allowed(t, "the question", server.got() == "question")
		server.sendTo("127.0.0.1:6000", "answer")
		return client.got() == "answer"
	}
	allowed(t, "the answer", question())
	must(t, s.Nft("table inet other { chain o { type filter hook output priority 20; ct mark set 0x12345; }; }"))
	denied(t, "the answer, with another program's mark", question())
}

// With net.ipv4.tcp_fwmark_accept an accepted socket has a number of ours as its mark.
func TestLimitMarkOfAcceptedSockets(t *testing.T) {
	for _, on := range []int{0, 1} {
		s := newScene(t, sameLabels)
		s.Shell(fmt.Sprintf("sysctl -qw net.ipv4.tcp_fwmark_accept=%d", on))
		l, c := s.web.listen("127.0.0.1:80"), s.web2.tcp("0.0.0.0:0")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			t.Fatal(errno)
		}
		if m := l.accept().get(unix.SOL_SOCKET, unix.SO_MARK); (m != 0) != (on == 1) {
			t.Errorf("tcp_fwmark_accept=%d: the accepted socket has the mark %#x", on, m)
		}
	}
}

// The first packet of a workload's flow that leaves loses its priority, those behind it keep theirs; where another
// packet may be put around them, it becomes a tunnel's. All keep their mark. What is unlabelled keeps both.
func TestLimitPriorityOfWhatLeaves(t *testing.T) {
	s := newScene(t, openDB)
	must(t, s.Nft(fmt.Sprintf(`table inet other {
		counter p0 { }; counter p5 { }; counter wrapped { }; counter marked { }
		chain p { type filter hook postrouting priority 300; meta l4proto != udp accept; udp dport != 80 accept
			meta mark 7 counter name marked
			meta priority 0 counter name p0; meta priority 5 counter name p5; meta priority %#x counter name wrapped; }
	}`, mark.WrappedPriority)))
	s.Shell("ip link set lo multicast on; ip route add 224.0.0.251/32 dev lo")
	count := func(want map[string]int) {
		t.Helper()
		s.Barrier()
		for name, n := range want {
			if out := s.Shell("nft list counter inet other " + name); !strings.Contains(out,
				fmt.Sprintf("packets %d ", n)) {
				t.Errorf("%s: want %d: %s", name, n, out)
			}
		}
	}
	send := func(u *sock, to string) {
		t.Helper()
		for range 3 {
			u.sendTo(to, "x")
		}
	}
	five := [3]int{unix.SOL_SOCKET, unix.SO_PRIORITY, 5}
	u := s.db.udp("0.0.0.0:0", five)
	send(u, "224.0.0.251:80") // lo is the one device here that no software made
	count(map[string]int{"p0": 1, "p5": 2, "wrapped": 0, "marked": 0})
	u.set([3]int{unix.SOL_SOCKET, unix.SO_MARK, 7})
	send(u, "224.0.0.251:80")
	count(map[string]int{"p0": 1, "p5": 2, "wrapped": 3, "marked": 3})
	send(s.db.udp("0.0.0.0:0", five), theirs+":80")
	count(map[string]int{"p0": 1, "p5": 2, "wrapped": 6, "marked": 3})
	send(s.free.udp("0.0.0.0:0", five), theirs+":80")
	count(map[string]int{"p0": 1, "p5": 5, "wrapped": 6, "marked": 3})
}

// What conntrack does not track is closed for workloads, though their labels allow it.
func TestLimitUntracked(t *testing.T) {
	s := newScene(t, sameLabels)
	l, u := s.web.listen("127.0.0.1:80"), s.web.udp("127.0.0.1:80")
	allowed(t, "tracked", reaches(s.web2, "", "127.0.0.1:80", l))
	allowed(t, "tracked, UDP", reachesUDP(s.web2, "", "127.0.0.1:80", u))
	must(t, s.Nft("table inet other { chain o { type filter hook output priority raw; meta l4proto { tcp, udp } "+
		"notrack; }; }"))
	limitDrops(t, "untracked", reaches(s.web2, "", "127.0.0.1:80", l))
	limitDrops(t, "untracked, UDP", reachesUDP(s.web2, "", "127.0.0.1:80", u))
}

// limitDrops fails where something arrives that the page says is lost.
func limitDrops(t testing.TB, what string, arrived bool) {
	t.Helper()
	if arrived {
		t.Errorf("%s: it arrived: docs/SECURITY.md says that it is lost", what)
	}
}

// A change divides the class of a UDP client: what its server pushes is lost until the client sends again.
func TestLimitPushWhereAClassIsDivided(t *testing.T) {
	s := newScene(t, sameLabels)
	one := newAgent(t, s.Host, s.label("thole.slice/one", policy.Labels{"app": "one"}))
	two := newAgent(t, s.Host, s.label("thole.slice/two", policy.Labels{"app": "one", "role": "two"}))
	const both = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, ingress: [{from: [{workloads: {matchLabels: {app: one}}}]}]}
`
	const divided = both + `---
apiVersion: thole/v1
kind: Policy
metadata: {name: role}
spec: {selector: {matchLabels: {role: two}}, ingress: []}
`
	s.enforce(both)
	server := s.web.udp("127.0.0.1:5353")
	clients := map[string]*sock{":6001": one.udp("127.0.0.1:6001"), ":6002": two.udp("127.0.0.1:6002")}
	ask := func() {
		t.Helper()
		for _, c := range clients {
			c.sendTo("127.0.0.1:5353", "question")
			allowed(t, "the question", strings.Contains(server.got(), "question"))
		}
	}
	push := func() (arrived int) {
		t.Helper()
		for at, c := range clients {
			server.sendTo("127.0.0.1"+at, "pushed")
			if c.got() == "pushed" {
				arrived++
			}
		}
		return arrived
	}
	ask()
	if n := push(); n != 2 {
		t.Errorf("before: %d of 2 were pushed", n)
	}
	s.load(divided)
	if n := push(); n != 1 {
		t.Errorf("behind the change: %d of 2 were pushed, want that of one class to wait", n)
	}
	ask()
	if n := push(); n != 2 {
		t.Errorf("when the clients had sent: %d of 2 were pushed", n)
	}
}
