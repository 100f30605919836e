package attack

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/wire"
)

// The attacks of this file are those of a container's root, by a real engine, under
// the default policy: to become another class, or none.

// followDocker is how the daemon finds the engine of a host.
const followDocker = "--docker=unix:///run/docker.sock"

// A ship is a machine with an engine, and those that a captive, a container with the
// labels app=db, must not reach, and may.
type ship struct {
	*machine
	engine *engine.Docker
	image  string

	web, free, db          *agent // processes: other labels, none, the captive's
	webTCP, freeTCP, dbTCP *sock
	webUDP, freeUDP, dbUDP *sock
}

func newShip(t testing.TB) *ship {
	s := &ship{machine: newMachine(t, followDocker)}
	s.engine = engine.StartDocker(t, s.Host, "--ipv6", "--fixed-cidr-v6="+gateway6+"/64")
	s.follows()
	s.image = s.engine.Image("box", nil)
	s.web = s.run(0, "web", policy.Labels{"app": "web"})
	s.db = s.run(0, "db", policy.Labels{"app": "db"})
	s.free = newAgent(t, s.Host, s.In("elsewhere"))
	s.webTCP, s.webUDP = s.web.listen("[::]:7001"), s.web.udp("[::]:7001")
	s.freeTCP, s.freeUDP = s.free.listen("[::]:7002"), s.free.udp("[::]:7002")
	s.dbTCP, s.dbUDP = s.db.listen("[::]:7003"), s.db.udp("[::]:7003")
	return s
}

// follows waits until the daemon knows the engine's containers.
func (s *ship) follows() {
	s.t.Helper()
	nstest.WaitFor(s.t, 20*time.Second, "the daemon to follow Docker", func() bool {
		status := s.status()
		return status.Docker != nil && status.Docker.Connected
	})
}

// container starts an agent as the first process of a container.
func (s *ship) container(name string, args ...string) *agent {
	s.t.Helper()
	return asAgent(s.t, s.Host, s.engine.Probe(name, append(args, s.image)...))
}

// captive is a container on the host's network with the labels app=db.
func (s *ship) captive(name string, args ...string) *agent {
	s.t.Helper()
	return s.container(name, append([]string{"--net=host", "-l", "app=db"}, args...)...)
}

// inside runs a script in a container, as root of it.
func (s *ship) inside(container, script string) error {
	s.t.Helper()
	_, err := s.engine.TryDocker("exec", container, "sh", "-ec", script)
	return err
}

// holds checks that new sockets of the agent are still those of app=db.
func (s *ship) holds(t testing.TB, what string, a *agent, here string) {
	t.Helper()
	denied(t, what+": to other labels", reaches(a, "", here+":7001", s.webTCP))
	denied(t, what+": to other labels, UDP", reachesUDP(a, "", here+":7001", s.webUDP))
	allowed(t, what+": to its own", reaches(a, "", here+":7003", s.dbTCP))
	allowed(t, what+": to its own, UDP", reachesUDP(a, "", here+":7003", s.dbUDP))
	if here != local {
		return // it has its own network; what it reaches that is unlabelled is not decided by a class
	}
	denied(t, what+": to unlabelled", reaches(a, "", here+":7002", s.freeTCP))
	denied(t, what+": to unlabelled, UDP", reachesUDP(a, "", here+":7002", s.freeUDP))
	l, u := a.listen("0.0.0.0:7004"), a.udp("0.0.0.0:7004")
	for who, other := range map[string]*agent{"unlabelled": s.free, "other labels": s.web} {
		denied(t, what+": from "+who, reaches(other, "", here+":7004", l))
		denied(t, what+": from "+who+", UDP", reachesUDP(other, "", here+":7004", u))
	}
	allowed(t, what+": from its own", reaches(s.db, "", here+":7004", l))
	l.close()
	u.close()
}

const local, gateway, gateway6 = "127.0.0.1", "172.17.0.1", "fd00:17::1"

func TestContainersRoot(t *testing.T) {
	s := newShip(t)
	t.Run("in its own cgroups", s.ownCgroups)
	t.Run("below thole.slice", s.belowTholeSlice)
	t.Run("moves out", s.movesOut)
	t.Run("with the whole tree", s.wholeTree)
	t.Run("with marks", s.marks)
	t.Run("with raw sockets", s.rawSockets)
	t.Run("with nobody's address", s.nobodysAddress)
	t.Run("with another's address", s.anothersAddress)
	t.Run("with another's address behind two tags", s.behindTwoTags)
	t.Run("outlived by its sockets", s.outlived)
	t.Run("limit: in the node's cgroup namespace", s.wholeTreeOfTheNode)
	t.Run("limit: starts a container", s.helperOutside)
	t.Run("limit: on a bridge", s.onBridge)
}

// With CAP_SYS_ADMIN a container's root mounts its own part of the cgroup tree, makes
// cgroups in it with the names of others, writes the attribute of thole run on them,
// made up and copied, and moves into them. The daemon is started again on top of it.
func (s *ship) ownCgroups(t *testing.T) {
	victim := s.engine.Docker("run", "-d", "--init", "--name=victim", "-l", "app=web", "--net=host", s.image, "sleep",
		"1000")
	a := s.captive("forger", "--cap-add=SYS_ADMIN")
	s.holds(t, "at first", a, local)
	must(t, s.inside("forger",
		"mkdir /tmp/cg && mount -t cgroup2 none /tmp/cg && cat /proc/self/cgroup | grep -qx 0::/"))
	move := func(path, file string) {
		a.ok(call{Op: "mkdir", To: "/tmp/cg" + path})
		a.ok(call{Op: "write", To: "/tmp/cg" + path + "/" + file, Data: []byte("0")})
	}
	forgeries := [][]byte{s.attribute("thole.slice/web.scope"),
		[]byte(`{"mac":"","run":{"version":1,"name":"web","labels":{"app":"web"},"uid":0}}`)}
	for i, path := range []string{
		"", "/thole.slice/web.scope", "/docker/" + victim, "/" + victim, "/system.slice/docker-" + victim + ".scope",
		"/system.slice/docker.service", "/docker/buildkit", "/buildkit",
	} {
		move(path, "cgroup.procs")
		for _, forged := range forgeries {
			a.ok(call{Op: "xattr", To: "/tmp/cg" + path, Device: attribute, Data: forged})
		}
		s.holds(t, "in "+path, a, local)
		if i == 1 {
			a.ok(call{Op: "unshare", A: unix.CLONE_NEWCGROUP})
			s.holds(t, "in "+path+" as the root of a cgroup namespace", a, local)
		}
	}
	move("", "cgroup.procs")
	a.ok(call{Op: "mkdir", To: "/tmp/cg/threaded"})
	a.ok(call{Op: "write", To: "/tmp/cg/threaded/cgroup.type", Data: []byte("threaded")})
	move("/threaded", "cgroup.threads")
	s.holds(t, "in a threaded cgroup", a, local)

	before := s.status().Workloads
	must(t, s.process.Signal(syscall.SIGTERM))
	must(t, s.process.Wait())
	s.start(followDocker)
	s.follows()
	s.holds(t, "after a restart of the daemon", a, local)
	if after := s.status().Workloads; after != before {
		t.Errorf("%d workloads after a restart of the daemon, want %d", after, before)
	}
}

const attribute = "trusted.thole.labels"

// Whoever starts a container below thole.slice puts it where attributes are looked
// for. Theirs are not believed: what is not ours there reaches nobody.
func (s *ship) belowTholeSlice(t *testing.T) {
	genuine := s.attribute("thole.slice/web.scope")
	a := s.captive("below-slice", "--cap-add=SYS_ADMIN", "--cgroup-parent=/thole.slice")
	s.reachesNobody(t, "below thole.slice", a)
	must(t, s.inside("below-slice", "mkdir /tmp/cg && mount -t cgroup2 none /tmp/cg && mkdir /tmp/cg/web.scope"))
	a.ok(call{Op: "xattr", To: "/tmp/cg", Device: attribute, Data: genuine})
	a.ok(call{Op: "xattr", To: "/tmp/cg/web.scope", Device: attribute, Data: genuine})
	must(t, s.inside("below-slice", "echo 1 >/tmp/cg/web.scope/cgroup.procs"))
	s.reachesNobody(t, "below thole.slice with an attribute", a)

	// In a scope of other labels it is a container all the same.
	a = s.captive("below-scope", "--cgroup-parent=/thole.slice/web.scope")
	nstest.WaitFor(t, 10*time.Second, "the container's own labels", func() bool {
		return reaches(a, "", local+":7003", s.dbTCP)
	})
	s.holds(t, "below a scope", a, local)
}

func (s *ship) reachesNobody(t testing.TB, what string, a *agent) {
	t.Helper()
	for port, l := range map[string]*sock{":7001": s.webTCP, ":7002": s.freeTCP, ":7003": s.dbTCP} {
		denied(t, what+": to "+port, reaches(a, "", local+port, l))
	}
	for port, u := range map[string]*sock{":7001": s.webUDP, ":7002": s.freeUDP, ":7003": s.dbUDP} {
		denied(t, what+": to "+port+", UDP", reachesUDP(a, "", local+port, u))
	}
}

// attribute is what thole run has written on a cgroup.
func (s *ship) attribute(cgroup string) []byte {
	s.t.Helper()
	value := make([]byte, 4096)
	n, err := unix.Getxattr(s.CgroupDir(cgroup), attribute, value)
	must(s.t, err)
	return value[:n]
}

// A container's root writes its first process into every cgroup that it can see: it
// sees those of others for reading only, or its own alone, whatever else it may do.
func (s *ship) movesOut(t *testing.T) {
	for name, args := range map[string][]string{
		"default": nil,
		// but one, which not every root has
		"strong":    {"--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined"},
		"host-ns":   {"--cgroupns=host"},
		"read-only": {"-v", "/sys/fs/cgroup:/tmp/all:ro"},
	} {
		a := s.captive(name, args...)
		_ = s.inside(name, "mount -o remount,rw /sys/fs/cgroup")               // it may, or not
		_ = s.inside(name, "mkdir /tmp/own && mount -t cgroup2 none /tmp/own") // likewise
		moved, err := s.engine.TryDocker("exec", name, "sh", "-c",
			"for f in $(find /sys/fs/cgroup /tmp -name cgroup.procs); do (echo 1 >$f) 2>/dev/null && echo $f; "+
				"done; true")
		must(t, err)
		if path := s.engine.Cgroup(name).Path(); !strings.Contains(path, s.engine.ID(name)) {
			t.Errorf("%s is in %s: it moved by %s", name, path, moved)
		}
		s.holds(t, name, a, local)
	}
}

// The whole tree is mounted into a container for writing, as some do for systemd in
// containers. In a cgroup namespace of its own it cannot leave its cgroup where the
// tree is mounted with nsdelegate, as systemd does; else it can, as SECURITY.md says.
func (s *ship) wholeTree(t *testing.T) {
	a := s.captive("whole-tree", "-v", "/sys/fs/cgroup:/tmp/all:rw")
	s.holds(t, "at first", a, local)
	before := a.tcp("0.0.0.0:0")
	err := s.inside("whole-tree", "echo 1 >/tmp/all/elsewhere/cgroup.procs")
	if mounts := s.Shell("grep ' - cgroup2 ' /proc/self/mountinfo"); strings.Contains(mounts, "nsdelegate") {
		if err == nil {
			t.Error("it left its cgroup in spite of nsdelegate")
		}
		s.holds(t, "with nsdelegate", a, local)
		return
	}
	must(t, err)
	allowed(t, "moved to what is unlabelled", reaches(a, "", local+":7002", s.freeTCP))
	denied(t, "by a socket from before", before.connect(local+":7002") == 0 && s.freeTCP.accept() != nil)
	if out, _ := s.Command(s.thole, "doctor").CombinedOutput(); !strings.Contains(string(out), "nsdelegate") {
		t.Errorf("doctor does not say so:\n%s", out)
	}
}

// SO_MARK needs CAP_NET_RAW alone, which Docker gives: no value of it makes a socket
// another's, on the host's network or on a bridge.
func (s *ship) marks(t *testing.T) {
	var marks []int
	for _, bits := range []uint32{0, mark.OpenBit, mark.DeadBit, mark.OutBit, mark.OutBit | mark.OpenBit} {
		for epoch := range uint16(3) {
			for class := range uint32(5) {
				marks = append(marks, int(int32(bits|mark.OfEpoch(epoch)|class)))
			}
		}
	}
	for name, here := range map[string]string{"hosted": local, "bridged": gateway} {
		hosted := func(name string) *agent { return s.captive(name) }
		start := map[string]func(string) *agent{"hosted": hosted, "bridged": s.bridged}[name]
		a := start(name)
		s.holds(t, name, a, here)
		ports := []string{":7001", ":7002"}
		if name == "bridged" {
			ports = ports[:1] // as in holds
		}
		for _, m := range marks {
			option := [3]int{unix.SOL_SOCKET, unix.SO_MARK, m}
			for _, port := range ports {
				c, u := a.tcp("0.0.0.0:0", option), a.udp("0.0.0.0:0", option)
				denied(t, fmt.Sprintf("%s with the mark %#x to %s", name, uint32(m), port), c.connect(here+port) == 0)
				u.sendTo(here+port, "marked")
				c.abort()
				u.close()
			}
		}
		denied(t, name+" with marks, UDP", s.webUDP.got() != "" || s.freeUDP.got() != "")
	}
}

// bridged is a container on Docker's bridge with the labels app=db.
func (s *ship) bridged(name string) *agent {
	s.t.Helper()
	a := s.container(name, "-l", "app=db")
	nstest.WaitFor(s.t, 10*time.Second, "the container to be known on its bridge", func() bool {
		return reaches(a, "", gateway+":7003", s.dbTCP)
	})
	return a
}

// CAP_NET_RAW on the host's network: what goes through a raw socket is the container's,
// whatever source it names; what a packet socket injects on lo opens no connection.
func (s *ship) rawSockets(t *testing.T) {
	s.engine.Docker("run", "-d", "--init", "-l", "app=web", "--name=bridged-web", s.image, "sleep", "1000")
	web, _ := s.addresses("bridged-web") // could reach 7001
	a := s.captive("raw")
	raw := a.raw(unix.AF_INET)
	for _, from := range []string{local, gateway, web, "192.0.2.7"} {
		for _, to := range []string{local, gateway} {
			for _, port := range []string{":7001", ":7002"} {
				raw.sendTo(to+port, string(udpPacket(from+":5000", to+port, "raw")))
			}
			for _, device := range []string{"lo", "docker0"} {
				a.inject(device, udpPacket(from+":5001", to+":7001", "injected"))
				a.inject(device, tcpPacket(from+":5001", to+":7001", wire.SYN, 1000, 0, ""))
			}
		}
	}
	denied(t, "raw or injected, to other labels", s.webUDP.got() != "" || s.webTCP.accept() != nil)
	denied(t, "raw, to unlabelled", s.freeUDP.got() != "")
	// An address that is not the node's own, for a socket: IP_FREEBIND needs no capability.
	for _, from := range []string{web, "192.0.2.7"} {
		c := a.tcp(from+":0", [3]int{unix.SOL_IP, unix.IP_FREEBIND, 1})
		denied(t, "from "+from, c.connect(local+":7001") == 0)
		u := a.udp(from+":0", [3]int{unix.SOL_IP, unix.IP_FREEBIND, 1})
		u.sendTo(local+":7001", "freebind")
		u.sendTo(local+":7002", "freebind")
	}
	denied(t, "from another's address", s.webUDP.got() != "" || s.freeUDP.got() != "")
	s.holds(t, "at last", a, local)
}

// A container on a bridge that may change its network sends from addresses there that
// are nobody's: what is labelled stays closed.
func (s *ship) nobodysAddress(t *testing.T) {
	for name, args := range map[string][]string{"labelled": {"-l", "app=db"}, "unlabelled": nil} {
		a := s.container(name, append(args, "--cap-add=NET_ADMIN")...)
		must(t, s.inside(name, "ip addr add 172.17.99.9/16 dev eth0; ip addr add 10.99.9.9/32 dev eth0"))
		for _, from := range []string{"172.17.99.9:0", "10.99.9.9:0", "169.254.1.1:0"} {
			option := [3]int{unix.SOL_IP, unix.IP_FREEBIND, 1}
			for _, port := range []string{":7001", ":7003"} {
				c, u := a.tcp(from, option), a.udp(from, option)
				denied(t, name+" from "+from+" to "+port, c.connect(gateway+port) == 0)
				u.sendTo(gateway+port, "nobody")
			}
		}
	}
	denied(t, "from nobody's address, UDP", s.webUDP.got() != "" || s.dbUDP.got() != "")
}

// A container on a bridge sends frames with the address of one that has other labels,
// bare and behind a tag of VLAN 0, which the kernel takes off.
func (s *ship) anothersAddress(t *testing.T) {
	s.forge(t, "bare", nil, []uint16{unix.ETH_P_8021Q}, []uint16{unix.ETH_P_8021AD})
}

// behindTwoTags: at a bridge's prerouting the kernel has taken off one tag of VLAN 0 (a
// priority alone), so that "meta protocol" is the other's and no rule for IP matches; on
// the way up it takes off all.
func (s *ship) behindTwoTags(t *testing.T) {
	const q, ad = unix.ETH_P_8021Q, unix.ETH_P_8021AD
	s.forge(t, "tagged", []uint16{q, q}, []uint16{ad, q}, []uint16{q, ad}, []uint16{q, q, q})
}

// forge has a new container send its own frame and forged ones, behind these tags.
func (s *ship) forge(t testing.TB, name string, behind ...[]uint16) {
	t.Helper()
	other := s.engine.Docker("run", "-d", "--init", "-l", "app=web", s.image, "sleep", "1000")
	a := s.bridged(name)
	mac := s.engine.Docker("exec", name, "cat", "/sys/class/net/eth0/address")
	bridge := s.Shell("cat /sys/class/net/docker0/address")
	from4, from6 := s.addresses(other)
	own, _ := s.addresses(name)
	for _, tags := range behind {
		send := func(packet []byte) {
			a.ok(call{Op: "frame", Device: "eth0", Data: frame(bridge, mac, packet, tags...)})
		}
		what := fmt.Sprintf("behind tags %x", tags)
		if len(tags) < 2 {
			send(udpPacket(own+":5000", gateway+":7003", "mine"))
			allowed(t, "its own, "+what, s.dbUDP.got() != "")
		}
		send(udpPacket(from4+":5000", gateway+":7001", "forged"))
		denied(t, "IPv4 of another, "+what, s.webUDP.got() != "")
		send(udpPacket("["+from6+"]:5000", "["+gateway6+"]:7001", "forged"))
		denied(t, "IPv6 of another, "+what, s.webUDP.got() != "")
	}
}

// addresses are a container's on Docker's bridge.
func (s *ship) addresses(container string) (v4, v6 string) {
	s.t.Helper()
	both := strings.Fields(s.engine.Docker("inspect",
		"--format={{.NetworkSettings.IPAddress}} {{.NetworkSettings.GlobalIPv6Address}}", container))
	return both[0], both[1]
}

// A captive hands its sockets to an unlabelled container, by an abstract Unix socket
// of the network that they share, and is removed: nothing lists the cgroup any more.
func (s *ship) outlived(t *testing.T) {
	before := s.status().Workloads
	friend := s.container("friend", "--net=host")
	allowed(t, "the friend to unlabelled", reaches(friend, "", local+":7002", s.freeTCP))
	for _, parent := range []string{"", "/system.slice", "/apps.slice"} {
		name := "outlived" + strings.ReplaceAll(parent, "/", "-")
		a := s.captive(name, "--cgroup-parent="+parent)
		s.holds(t, "below "+parent, a, local)
		udp := a.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(friend)
		tcp := a.socket("0.0.0.0:0", unix.SOCK_STREAM).pass(friend)
		listener := a.listen("0.0.0.0:7005").pass(friend)
		s.engine.Docker("rm", "-f", name)
		for range 2 { // at once, and when the daemon has seen it
			udp.sendTo(local+":7001", "late")
			udp.sendTo(local+":7002", "late")
			denied(t, "below "+parent+": by a socket of a container that is gone, UDP",
				s.webUDP.got() != "" || s.freeUDP.got() != "")
			denied(t, "below "+parent+": TCP", tcp.connect(local+":7002") == 0)
			denied(t, "below "+parent+": from unlabelled", reaches(s.free, "", local+":7005", listener))
			nstest.WaitFor(t, 10*time.Second, "the workloads that are left",
				func() bool { return s.status().Workloads == before })
		}
		listener.close()
	}
}
