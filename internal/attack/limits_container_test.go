package attack

import (
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
)

// What docs/SECURITY.md says that containers can do. TestContainersRoot has the engine.

// In the node's cgroup namespace, with CAP_SYS_ADMIN, a container's root mounts the whole tree and moves. (Without the
// capability: movesOut.)
func (s *ship) wholeTreeOfTheNode(t *testing.T) {
	a := s.captive("node-tree", "--cgroupns=host", "--cap-add=SYS_ADMIN")
	s.holds(t, "at first", a, local)
	must(t, s.inside("node-tree", "mkdir /tmp/cg && mount -t cgroup2 none /tmp/cg && echo 1 "+
		">/tmp/cg/elsewhere/cgroup.procs"))
	limit(t, "moved to what is unlabelled", reaches(a, "", local+":7002", s.freeTCP))
}

// A workload that may talk to Docker starts a container: this has labels of its own, here none.
func (s *ship) helperOutside(t *testing.T) {
	denied(t, "the workload to unlabelled", reaches(s.web, "", local+":7002", s.freeTCP))
	helper := asAgent(t, s.Host, s.engine.ProbeBy(s.In("thole.slice/web.scope"), "helper", "--net=host", s.image))
	limit(t, "its container to unlabelled", reaches(helper, "", local+":7002", s.freeTCP))
}

// A packet socket on a bridge sends into containers there, in the name of the node. A container there sends with
// another's hardware address and its own IP address: it is itself, and the bridge takes it for the other.
func (s *ship) onBridge(t *testing.T) {
	web := s.container("bridged-victim", "-l", "app=web")
	to, _ := s.addresses("bridged-victim")
	u := web.udp("0.0.0.0:7005")
	nstest.WaitFor(t, 10*time.Second, "the container to be known on its bridge", func() bool {
		return reachesUDP(s.web, "", to+":7005", u)
	})
	a := s.captive("injector")
	denied(t, "by UDP", reachesUDP(a, "", to+":7005", u))
	mac := strings.TrimSpace(s.engine.Docker("exec", "bridged-victim", "cat", "/sys/class/net/eth0/address"))
	a.injectTo("docker0", mac, udpPacket(gateway+":5000", to+":7005", "injected"))
	limit(t, "by a packet socket", u.got() == "injected")

	a = s.bridged("same-hardware")
	own, _ := s.addresses("same-hardware")
	bridge, port := s.Shell("cat /sys/class/net/docker0/address"), "bridge fdb show br docker0 | grep "+mac
	before := s.Shell(port)
	for _, to := range []string{gateway + ":7003", gateway + ":7001"} {
		a.ok(call{Op: "frame", Device: "eth0", Data: frame(bridge, mac, udpPacket(own+":5000", to, "forged"))})
	}
	limit(t, "with another's hardware address", s.dbUDP.got() == "forged")
	denied(t, "as the other", s.webUDP.got() != "")
	limit(t, "the bridge finds another port for it", s.Shell(port) != before)
}
