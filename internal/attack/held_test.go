package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest/wire"
)

// The many names of one host: other loopback addresses, the unspecified address, own
// second addresses, IPv4 in IPv6.
func TestOtherNamesOfThisHost(t *testing.T) {
	s := newScene(t, sameLabels)
	s.Shell("ip addr add 10.9.9.9/32 dev veth0 && ip addr add 10.8.8.8/24 dev lo && ip addr add fd99::9/128 dev " +
		"veth0 nodad")
	l, u := s.db.listen("[::]:80"), s.db.udp("[::]:80")
	for _, to := range []string{
		"127.0.0.1:80", "127.1.2.3:80", "0.0.0.0:80", ours + ":80", "10.9.9.9:80", "10.8.8.8:80", "10.8.8.77:80",
		"[::1]:80", "[::]:80", "[" + ours6 + "]:80", "[fd99::9]:80", "[::ffff:127.0.0.1]:80", "[::ffff:" + ours +
			"]:80", "[::ffff:0.0.0.0]:80",
	} {
		for _, who := range []*agent{s.free, s.web} {
			denied(t, "tcp to "+to, reaches(who, "", to, l))
			denied(t, "udp to "+to, reachesUDP(who, "", to, u))
		}
		if to != "10.8.8.77:80" {
			allowed(t, "tcp to itself at "+to, reaches(s.db, "", to, l))
		}
	}
	// From a source that is another name, too.
	for _, from := range []string{"127.9.9.9:0", "10.9.9.9:0", ours + ":0"} {
		denied(t, "from "+from, reaches(s.free, from, "127.0.0.1:80", l))
		denied(t, "udp from "+from, reachesUDP(s.free, from, ours+":80", u))
	}
}

// A sender that is bound to a device takes another way to an own address.
func TestSenderBoundToDevice(t *testing.T) {
	s := newScene(t, sameLabels)
	l, u := s.db.listen("[::]:80"), s.db.udp("[::]:80")
	for _, device := range []string{"lo", "veth0"} {
		for _, to := range []string{"127.0.0.1:80", ours + ":80"} {
			for _, who := range []*agent{s.free, s.web} {
				c := who.socket("0.0.0.0:0", unix.SOCK_STREAM)
				c.device(device)
				denied(t, "tcp from "+device+" to "+to, c.connect(to) == 0 && l.accept() != nil)
				d := who.socket("0.0.0.0:0", unix.SOCK_DGRAM)
				d.device(device)
				d.sendTo(to, "hello")
				denied(t, "udp from "+device+" to "+to, u.got() != "")
			}
		}
	}
}

// Data in the SYN (TCP Fast Open, also where no cookie is asked for) is judged with it.
func TestFastOpen(t *testing.T) {
	s := newScene(t, sameLabels)
	s.Shell("sysctl -qw net.ipv4.tcp_fastopen=0x607") // client and server, without cookies
	l := s.db.listen("127.0.0.1:80", [3]int{unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16})
	for _, who := range []*agent{s.free, s.web, s.db} {
		c := who.socket("0.0.0.0:0", unix.SOCK_STREAM)
		who.do(call{Op: "fastopen", FD: c.fd, To: "127.0.0.1:80", Data: []byte("early")})
		conn := l.accept()
		if who == s.db {
			allowed(t, "to itself", conn != nil && conn.got() == "early")
		} else {
			denied(t, "data in a SYN", conn != nil)
		}
	}
}

// Both ends send a SYN: neither becomes the answer of the other.
func TestSimultaneousOpen(t *testing.T) {
	s := newScene(t, sameLabels)
	for i := range 20 {
		a, b := fmt.Sprintf("127.0.0.1:%d", 7000+2*i), fmt.Sprintf("127.0.0.1:%d", 7001+2*i)
		left, right := s.web.tcp(a), s.db.tcp(b)
		left.do(call{Op: "connect", FD: left.fd, To: b})
		right.do(call{Op: "connect", FD: right.fd, To: a})
		left.do(call{Op: "connect", FD: left.fd, To: b})
		s.Barrier()
		left.send("secret")
		right.send("secret")
		denied(t, "by a simultaneous open", left.got() != "" || right.got() != "")
		left.abort()
		right.abort()
	}
}

// A socket that was passed on keeps the labels it was born with, either way, and so
// do the connections that its listener accepts.
func TestPassedSockets(t *testing.T) {
	s := newScene(t, sameLabels)
	l := s.db.listen("127.0.0.1:80").pass(s.free)
	denied(t, "unlabelled to a listener that unlabelled holds", reaches(s.free, "", "127.0.0.1:80", l))
	u := s.free.udp("127.0.0.1:81")
	held := s.web.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(s.free)
	held.sendTo("127.0.0.1:81", "secret")
	denied(t, "from a labelled socket that unlabelled holds", u.got() != "")
}

// A process that was moved out keeps its labelled sockets; an inner cgroup that is
// bound anew counts before the outer one.
func TestNestedAndMoved(t *testing.T) {
	s := newScene(t, sameLabels)
	outer := s.label("outer", policy.Labels{"app": "web"})
	inner := newAgent(t, s.Host, s.label("outer/inner", policy.Labels{"app": "db"}))
	deeper := newAgent(t, s.Host, s.In("outer/inner/deeper/still"))
	s.enforce(sameLabels)
	l := deeper.listen("127.0.0.1:80")
	denied(t, "the outer labels to the inner", reaches(newAgent(t, s.Host, outer), "", "127.0.0.1:80", l))
	denied(t, "unlabelled to the inner", reaches(s.free, "", "127.0.0.1:80", l))
	allowed(t, "the inner to itself", reaches(inner, "", "127.0.0.1:80", l))
	old := s.web.socket("0.0.0.0:0", unix.SOCK_STREAM)
	s.In("elsewhere").Adopt(s.web.PID())
	free := s.free.listen("127.0.0.1:81")
	denied(t, "with a socket from before the move", old.connect("127.0.0.1:81") == 0 && free.accept() != nil)
}

// CAP_NET_RAW: spoofed sources, marks and fragments that conntrack does not put
// together do not make a labelled raw socket another's.
func TestRawSockets(t *testing.T) {
	s := newScene(t, sameLabels)
	victim, free, world := s.web.udp("0.0.0.0:80"), s.free.udp("0.0.0.0:81"), s.stranger().udp(theirs+":82")
	s.enforce(denyAll)
	s.db.only(unix.CAP_NET_RAW)
	raw := s.db.raw(unix.AF_INET)
	raw.set([3]int{unix.SOL_SOCKET, unix.SO_MARK, 0x10000})
	for _, from := range []string{"127.0.0.1:5000", ours + ":5000", "192.0.2.1:5000"} {
		for _, to := range []string{"127.0.0.1:80", "127.0.0.1:81", theirs + ":82"} {
			raw.sendTo(to, string(udpPacket(from, to, "spoofed")))
		}
	}
	datagram := wire.Datagram{From: netip.MustParseAddrPort(ours + ":5000"),
		To: netip.MustParseAddrPort(theirs + ":82"), Data: []byte(strings.Repeat("fragment", 4))}
	src, dst, d := datagram.From.Addr(), datagram.To.Addr(), datagram.UDP()
	raw.set([3]int{unix.SOL_IP, unix.IP_NODEFRAG, 1})
	const more = 1 << 13
	raw.sendTo(datagram.To.String(), string(wire.IPv4(src, dst, unix.IPPROTO_UDP, more, d[:16])))
	raw.sendTo(datagram.To.String(), string(wire.IPv4(src, dst, unix.IPPROTO_UDP, 2, d[16:])))
	for _, u := range []*sock{victim, free, world} {
		denied(t, "raw", u.got() != "")
	}
}

// A new connection that a packet socket injects on lo reaches no workload.
func TestInjectedOnLoopback(t *testing.T) {
	s := newScene(t, sameLabels)
	l, u := s.web.listen("0.0.0.0:80"), s.web.udp("0.0.0.0:80")
	s.web2.only(unix.CAP_NET_RAW)
	for _, from := range []string{"127.0.0.1:5000", ours + ":5000", theirs + ":5000", "192.0.2.7:5000"} {
		for _, to := range []string{"127.0.0.1:80", ours + ":80"} {
			s.web2.inject("lo", udpPacket(from, to, "injected"))
			s.web2.inject("lo", tcpPacket(from, to, wire.SYN, 1000, 0, ""))
		}
	}
	denied(t, "injected", u.got() != "" || l.accept() != nil)
	if out := s.Shell("conntrack -L 2>/dev/null | grep SYN_RECV || true"); out != "" {
		t.Errorf("half-open connections:\n%s", out)
	}
	if out := s.Shell("nft list counter inet thole injected"); strings.Contains(out, "packets 0") {
		t.Errorf("nothing was injected: %s", out)
	}
}

// What comes from outside with an address of this node is no process of this node.
func TestMartians(t *testing.T) {
	s := newScene(t, sameLabels)
	u4, u6 := s.web.udp("0.0.0.0:80"), s.web.udp("[::]:81")
	mac := s.Shell("cat /sys/class/net/veth0/address")
	stranger := s.stranger()
	for _, packet := range [][]byte{
		udpPacket("127.0.0.1:5000", "127.0.0.1:80", "martian"), udpPacket("127.0.0.1:5000", ours+":80", "martian"),
		udpPacket(ours+":5000", ours+":80", "martian"),
		udpPacket("0.0.0.0:5000", ours+":80", "martian"),
		udpPacket("[::1]:5000", "[::1]:81", "martian"), udpPacket("[::1]:5000", "["+ours6+"]:81", "martian"),
		udpPacket("["+ours6+"]:5000", "["+ours6+"]:81", "martian"),
		udpPacket("[::ffff:127.0.0.1]:5000", "["+ours6+"]:81", "martian"),
	} {
		stranger.injectTo("veth0", mac, packet)
	}
	denied(t, "from outside", u4.got() != "" || u6.got() != "")
}

// Another program's NAT changes where a connection goes, not who may make it.
func TestForeignNAT(t *testing.T) {
	s := newScene(t, sameLabels)
	must(t, s.Nft(`table ip other {
		chain o { type nat hook output priority -100;
			ip daddr 198.51.100.1 dnat to 127.0.0.1; tcp dport 8080 redirect to :80; udp dport 8080 redirect to :80; }
		chain i { type nat hook input priority 100; ip saddr 127.0.0.7 snat to 127.0.0.1; }
		chain p { type nat hook prerouting priority -100;
			tcp dport 8080 redirect to :80; udp dport 8080 redirect to :80; }
	}`))
	s.Shell("ip route add 198.51.100.0/24 via " + theirs)
	l, u := s.db.listen("0.0.0.0:80"), s.db.udp("0.0.0.0:80")
	outside := s.stranger()
	for _, to := range []string{"198.51.100.1:80", "127.0.0.1:8080", ours + ":8080"} {
		for _, who := range []*agent{s.free, s.web} {
			denied(t, "nat to "+to, reaches(who, "", to, l))
			denied(t, "nat, udp, to "+to, reachesUDP(who, "", to, u))
			denied(t, "nat of the source, to "+to, reaches(who, "127.0.0.7:0", to, l))
		}
	}
	denied(t, "redirected from outside", reaches(outside, "", ours+":8080", l))
	denied(t, "redirected from outside, udp", reachesUDP(outside, "", ours+":8080", u))
}

// Another program's notrack or conntrack zone takes away what the table knows of
// connections: workloads are closed then, not open.
func TestUntrackedAndZones(t *testing.T) {
	for name, rule := range map[string]string{
		"notrack": "meta l4proto { tcp, udp } notrack", "zone": "ct zone set 7",
		"half a zone": "ct original zone set 9",
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, sameLabels)
			must(t, s.Nft(fmt.Sprintf(`table inet other {
				chain o { type filter hook output priority raw; %[1]s; }
				chain p { type filter hook prerouting priority raw; %[1]s; }
			}`, rule)))
			l, u := s.db.listen("0.0.0.0:80"), s.db.udp("0.0.0.0:80")
			outside, fu := s.stranger(), s.free.udp("0.0.0.0:81")
			fl := s.free.listen("0.0.0.0:81")
			denied(t, "unlabelled", reaches(s.free, "", "127.0.0.1:80", l) || reachesUDP(s.free, "", "127.0.0.1:80", u))
			denied(t, "other labels", reaches(s.web, "", "127.0.0.1:80", l) || reachesUDP(s.web, "", "127.0.0.1:80", u))
			denied(t, "outside", reaches(outside, "", ours+":80", l) || reachesUDP(outside, "", ours+":80", u))
			denied(t, "to unlabelled", reaches(s.web, "", "127.0.0.1:81", fl) ||
				reachesUDP(s.web, "", "127.0.0.1:81", fu))
		})
	}
}

// A revocation meets half-closed connections, both ways.
func TestRevokedWhileHalfClosed(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		s := newScene(t, openDB)
		l := s.web.listen("127.0.0.1:80")
		c := s.db.tcp("0.0.0.0:0")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			t.Fatal(errno)
		}
		conn := l.accept()
		half, other := c, conn
		if who == "server" {
			half, other = conn, c
		}
		half.ok(call{Op: "shutdown", FD: half.fd, A: unix.SHUT_WR})
		s.enforce(closedDB)
		for range 5 { // the server's first window may arrive: its client's ACK is what is judged
			other.send("x")
			half.got()
		}
		other.send("secret")
		denied(t, "to the "+who+", which had closed its half", strings.Contains(half.got(), "secret"))
	}
}

// A server that defers accept has only a request for a connection until data comes.
// The client waits with it until the policy forbids the connection. (From
// unlabelled and from outside: TestDeferredAcceptOutlivesRevocation.)
func TestDeferredAcceptOfOtherLabels(t *testing.T) {
	s := newScene(t, openDB)
	l := s.db.listen("0.0.0.0:80", [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30})
	c := s.web.tcp("0.0.0.0:0")
	if errno := c.connect("127.0.0.1:80"); errno != 0 {
		t.Fatal(errno)
	}
	s.enforce(closedDB)
	c.send("one")
	if conn := l.accept(); conn != nil {
		c.send("two")
		denied(t, "after the revocation", strings.Contains(conn.got(), "two"))
	}
}
