package attack

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
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
	ready := s.free.listen("[fe80::1%veth0]:81")
	nstest.WaitFor(t, 5*time.Second, "the address to be usable", func() bool { return reaches(s.free, "", "[fe80::1%veth0]:81", ready) })
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
				allowed(b, "greeting", c.got() == "welcome")
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
