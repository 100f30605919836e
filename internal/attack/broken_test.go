package attack

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler"
)

// The attacks of this file succeed today; the numbers are those of the findings. A
// test passes while its attack does, and says what went through with -v. When the
// defence holds it fails, so that the mark is taken away and the test moves to
// found_test.go. THOLE_ATTACK=strict takes all marks away.
func knownBroken(t *testing.T, finding string) testing.TB {
	t.Helper()
	if os.Getenv("THOLE_ATTACK") == "strict" {
		return t
	}
	b := &broken{TB: t, finding: finding}
	t.Cleanup(func() {
		if !t.Failed() && !b.succeeded {
			t.Errorf("finding %s: the defence holds now: take knownBroken out of this test, and the test out of broken_test.go", finding)
		}
	})
	return b
}

// broken takes failures as what is known.
type broken struct {
	testing.TB
	finding   string
	succeeded bool
}

func (b *broken) Errorf(format string, args ...any) {
	b.Helper()
	b.succeeded = true
	b.Logf("KNOWN BROKEN, finding "+b.finding+": "+format, args...)
}

// A jailed process has a child take other, equal labels; the child makes a socket,
// hands it over and ends. The socket's cgroup is gone, nothing lists it, and it is
// unlabelled.
func TestUnboundSocketOutlivesItsScope(t *testing.T) {
	b := knownBroken(t, "0a")
	m := newMachine(t)
	m.apply(jailPolicy)
	free := newAgent(t, m.Host, m.In("elsewhere"))
	u := free.udp("127.0.0.1:6000")
	l := free.listen("127.0.0.1:6000")
	jail := m.run(1234, "jail", compiler.Labels{"app": "jail"})
	denied(t, "the jail's own socket", reachesUDP(jail, "", "127.0.0.1:6000", u))

	child := m.run(1234, "child", compiler.Labels{"app": "jail"})
	udp := child.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(jail)
	tcp := child.socket("0.0.0.0:0", unix.SOCK_STREAM).pass(jail)
	denied(t, "the child's own socket", reachesUDP(child, "", "127.0.0.1:6000", u))
	child.end()
	m.gone("child")

	udp.sendTo("127.0.0.1:6000", "secret")
	denied(b, "UDP from a socket whose cgroup is gone", u.got() != "")
	errno := tcp.connect("127.0.0.1:6000")
	denied(b, "TCP from a socket whose cgroup is gone", errno == 0 && l.accept() != nil)
}

// A UDP server that only pushes goes on after the allowance is taken away.
func TestUDPPushAfterRevocation(t *testing.T) {
	b := knownBroken(t, "0c")
	m := newMachine(t)
	m.apply(openDB)
	server := m.run(0, "web", compiler.Labels{"app": "web"}).udp("127.0.0.1:5000")
	client := m.run(0, "db", compiler.Labels{"app": "db"}).udp("127.0.0.1:5001")
	client.sendTo("127.0.0.1:5000", "subscribe")
	allowed(t, "the request", server.got() == "subscribe")
	server.sendTo("127.0.0.1:5001", "one")
	allowed(t, "the answer", client.got() == "one")
	m.apply(closedDB)
	server.sendTo("127.0.0.1:5001", "two")
	denied(b, "pushed after the revocation", client.got() == "two")
}

// Changes take allowances away 4095 times; the epoch comes round, and with it the
// connection that was allowed in the first and idle since. Nothing sweeps conntrack.
func TestEpochComesRound(t *testing.T) {
	b := knownBroken(t, "0d")
	s := newScene(t, openDB)
	l := s.web.listen("127.0.0.1:80")
	c := s.db.tcp("0.0.0.0:0")
	if errno := c.connect("127.0.0.1:80"); errno != 0 {
		t.Fatal(errno)
	}
	conn := l.accept()
	s.enforce(closedDB)
	s.epoch = 1 // as the daemon's nextEpoch does after compiler.MaxEpoch
	s.load(closedDB)
	c.send("secret")
	denied(b, "on a connection of 4095 epochs ago", conn.got() != "")
}

// A listener bound to a device (SO_BINDTODEVICE, or any link-local address) is
// reached over lo, where nftables looks for listeners of lo and finds none.
func TestListenerBoundToDevice(t *testing.T) {
	b := knownBroken(t, "1")
	s := newScene(t, sameLabels)
	l := s.db.socket("0.0.0.0:80", unix.SOCK_STREAM)
	l.device("veth0")
	l.bind("0.0.0.0:80")
	l.listen()
	denied(b, "unlabelled to a listener bound to a device", reaches(s.free, "", ours+":80", l))
	u := s.db.socket("0.0.0.0:80", unix.SOCK_DGRAM)
	u.device("veth0")
	u.bind("0.0.0.0:80")
	denied(b, "unlabelled, UDP, to a socket bound to a device", reachesUDP(s.free, "", ours+":80", u))
}

// The address of a link binds its listener to the link's device.
func TestListenerOnLinkLocalAddress(t *testing.T) {
	b := knownBroken(t, "1")
	s := newScene(t, sameLabels)
	s.Shell("ip addr add fe80::1/64 dev veth0 nodad")
	l := s.db.listen("[fe80::1%veth0]:80")
	denied(b, "unlabelled to a link-local listener", reaches(s.free, "", "[fe80::1%veth0]:80", l))
	u := s.db.udp("[fe80::1%veth0]:80")
	denied(b, "unlabelled, UDP, to a link-local socket", reachesUDP(s.free, "", "[fe80::1%veth0]:80", u))
}

// Sockets of two workloads share a port by SO_REUSEPORT with a selector that chooses
// by chance: the one that nftables asks about is not the one that gets the SYN.
func TestReusePortSelectorByChanceTCP(t *testing.T) {
	b := knownBroken(t, "7")
	s := newScene(t, sameLabels)
	reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	mine := s.web.listen("127.0.0.1:80", reuse)
	victim := s.db.listen("127.0.0.1:80", reuse)
	s.web.ok(call{Op: "cbpf", FD: mine.fd})
	for i := range 60 {
		if reaches(s.web2, "", "127.0.0.1:80", victim) {
			b.Errorf("attempt %d reached other labels", i)
			break
		}
		for c := mine.accept(); c != nil; c = mine.accept() {
			c.abort()
		}
	}
}

// A machine outside sends with this node's own IPv6 address, as the answer to a
// flow between two workloads. (IPv4 has its check for martians.)
func TestAnswerFromOutsideWithOwnAddress(t *testing.T) {
	b := knownBroken(t, "10")
	s := newScene(t, sameLabels)
	server, client := s.web.udp("["+ours6+"]:5000"), s.web2.udp("["+ours6+"]:5001")
	client.sendTo("["+ours6+"]:5000", "question")
	allowed(t, "the question", server.got() == "question")
	stranger := s.stranger()
	// A frame to the node's own hardware address.
	stranger.injectTo("veth0", s.Shell("cat /sys/class/net/veth0/address"), udp6("["+ours6+"]:5000", "["+ours6+"]:5001", "forged"))
	denied(b, "an answer that came from outside", client.got() == "forged")
}

// A client whose kernel gives it a source port that is in TIME_WAIT at the server
// is not refused: the labels allow it.
func TestAllowedSYNIntoTimeWait(t *testing.T) {
	b := knownBroken(t, "12")
	s := newScene(t, sameLabels)
	l := s.web.listen("127.0.0.1:80")
	for range 2 {
		c := s.web2.tcp("127.0.0.1:5000")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			b.Errorf("the second connect: %v", errno)
			break
		}
		c.send("hello")
		conn := l.accept()
		allowed(t, "data", conn != nil && conn.got() == "hello")
		conn.close() // first: its side waits
		s.Barrier()
		c.close()
		s.Barrier()
	}
}

// The same with a server that speaks first.
func TestAllowedSYNIntoTimeWaitGreeting(t *testing.T) {
	b := knownBroken(t, "12")
	s := newScene(t, sameLabels)
	l := s.web.listen("127.0.0.1:80")
	for range 2 {
		c := s.web2.tcp("127.0.0.1:5000")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			b.Errorf("the second connect: %v", errno)
			break
		}
		conn := l.accept()
		conn.send("welcome")
		allowed(t, "greeting", c.got() == "welcome")
		conn.close()
		s.Barrier()
		c.close()
		s.Barrier()
	}
}

const portOnly = `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: ["80/tcp"]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  egress: [{to: [{workloads: {matchLabels: {app: db}}}], ports: ["80/tcp"]}]
`

// The same where only one port is allowed, whoever speaks first.
func TestAllowedSYNIntoTimeWaitByPort(t *testing.T) {
	b := knownBroken(t, "12")
	for _, greet := range []bool{false, true} {
		s := newScene(t, portOnly)
		l := s.db.listen("127.0.0.1:80")
		for i := range 2 {
			c := s.web2.tcp("127.0.0.1:5000")
			if errno := c.connect("127.0.0.1:80"); errno != 0 {
				b.Errorf("connect %d, greeting %v: %v", i, greet, errno)
				break
			}
			if !greet {
				c.send("hello")
			}
			conn := l.accept()
			if greet {
				conn.send("welcome")
				allowed(t, "greeting", c.got() == "welcome")
			} else {
				allowed(t, "data", conn != nil && conn.got() == "hello")
			}
			conn.close()
			s.Barrier()
			c.close()
			s.Barrier()
		}
	}
}

// Another network whose address is on lo has a broadcast address, too: what is sent
// there is decided by the attacker's own decoy, and delivered to all.
func TestBroadcastOfAddressOnLoopback(t *testing.T) {
	b := knownBroken(t, "13")
	s := newScene(t, sameLabels)
	s.Shell("ip addr add 10.8.8.8/24 dev lo")
	u := s.web.udp("0.0.0.0:5353")
	s.db.udp("10.8.8.255:5353")
	denied(b, "broadcast of a network on lo", reachesUDP(s.db, "", "10.8.8.255:5353", u))
}

// The same for one that leaves this node: the server outside names the port.
func TestExpectedConnectionLeaves(t *testing.T) {
	b := knownBroken(t, "14")
	s := newScene(t, `apiVersion: thole/v1
kind: Policy
metadata: {name: ftp}
spec:
  selector: {matchLabels: {app: web}}
  egress: [{to: [{cidr: 10.0.0.0/24}], ports: ["21/tcp"]}]
`)
	must(t, s.Nft(`table inet other {
		ct helper ftp { type "ftp" protocol tcp; }
		chain o { type filter hook output priority -150; tcp dport 21 ct helper set "ftp"; }
	}`))
	x := s.stranger()
	control, l := x.listen(theirs+":21"), x.listen(theirs+":5432")
	c := s.web2.tcp("0.0.0.0:0")
	if errno := c.connect(theirs + ":21"); errno != 0 {
		t.Fatal(errno)
	}
	server := control.accept()
	denied(t, "before", reaches(s.web2, "", theirs+":5432", l))
	server.send("220 ready\r\n")
	c.send("PASV\r\n")
	server.got()
	server.send("227 Entering Passive Mode (10,0,0,2,21,56)\r\n")
	c.got()
	denied(b, "as the data connection of FTP", reaches(s.web2, "", theirs+":5432", l))
}
