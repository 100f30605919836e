package attack

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
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
			t.Errorf("finding %s: the defence holds now: take knownBroken out of this test, and the test out of "+
				"broken_test.go", finding)
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

// A socket bound to a device (SO_BINDTODEVICE, or any link-local address) is
// reached over lo, where nftables looks for sockets of lo and finds none.
func TestSocketBoundToDeviceUDP(t *testing.T) {
	b := knownBroken(t, "1")
	s := newScene(t, sameLabels)
	u := s.db.socket("0.0.0.0:80", unix.SOCK_DGRAM)
	u.device("veth0")
	u.bind("0.0.0.0:80")
	denied(b, "unlabelled, UDP, to a socket bound to a device", reachesUDP(s.free, "", ours+":80", u))
}

// The address of a link binds its socket to the link's device.
func TestSocketOnLinkLocalAddressUDP(t *testing.T) {
	b := knownBroken(t, "1")
	s := newScene(t, sameLabels)
	s.linkLocal()
	u := s.db.udp("[fe80::1%veth0]:80")
	denied(b, "unlabelled, UDP, to a link-local socket", reachesUDP(s.free, "", "[fe80::1%veth0]:80", u))
}

// A decoy that is bound to lo is what nftables finds for a datagram. The request arrives; the answer does not.
// TestLocalRoutes has the option that closes it.
func TestDecoyUDP(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			b := knownBroken(t, "1")
			s := newScene(t, sameLabels)
			victim, decoy := s.db.udp(f.all+":53"), s.web.socket(f.all+":53", unix.SOCK_DGRAM)
			decoy.device("lo")
			decoy.bind(f.all + ":53")
			client := s.web.udp(f.node + ":6000")
			client.sendTo(f.node+":53", "question")
			denied(b, "a question past a decoy", victim.got() == "question")
			victim.sendTo(f.node+":6000", "answer")
			denied(t, "its answer", client.got() != "")
		})
	}
}
