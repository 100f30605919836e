package attack

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/routes"
)

// A decoyed is a machine with a daemon, a link, and workloads that no user can start: db, the victim, db2, its equal,
// and web, which attacks.
type decoyed struct {
	*machine
	outside          *nstest.Host
	db, db2, web     *agent
	routesWithoutAny string // those before there was a daemon
}

func newDecoyed(t *testing.T, args ...string) *decoyed {
	t.Helper()
	thole, err := tholeBinary()
	must(t, err)
	d := &decoyed{machine: &machine{Host: nstest.New(t), t: t, thole: thole}, outside: nstest.New(t)}
	nstest.Link(d.Host, ours+"/24", ours6+"/64", d.outside, theirs+"/24", theirs6+"/64")
	d.Shell("ip addr add fe80::1/64 dev veth0 nodad")
	nstest.WaitFor(t, 10*time.Second, "addresses to be usable",
		func() bool { return !strings.Contains(d.Shell("ip -6 addr"), "tentative") })
	d.routesWithoutAny = d.routes()
	d.start(args...)
	d.db, d.db2 = newAgent(t, d.Host, d.In("svc/db")), newAgent(t, d.Host, d.In("svc/db2"))
	d.web = newAgent(t, d.Host, d.In("svc/web"))
	d.apply(sameLabels + services + `
---
apiVersion: thole/v1
kind: Workload
metadata: {name: db2, labels: {app: db}}
spec: {cgroup: svc/db2}
`)
	nstest.WaitFor(t, 10*time.Second, "the workloads", func() bool { return d.status().Workloads == 3 })
	return d
}

// routes are all routes, as ip prints them.
func (m *machine) routes() string {
	m.t.Helper()
	return m.Shell("ip -d route show table all; ip -6 -d route show table all")
}

// ways are how a datagram can be sent to an address of this node: as it is, past gateways, or by its device.
var ways = map[string]func(s *sock, to, data string, device int){
	"as it is": func(s *sock, to, data string, _ int) { s.sendTo(to, data) },
	"SO_DONTROUTE": func(s *sock, to, data string, _ int) {
		s.set([3]int{unix.SOL_SOCKET, unix.SO_DONTROUTE, 1})
		s.sendTo(to, data)
	},
	"SO_BINDTODEVICE": func(s *sock, to, data string, _ int) {
		s.device("veth0")
		s.sendTo(to, data)
	},
	"SO_BINDTODEVICE and SO_DONTROUTE": func(s *sock, to, data string, _ int) {
		s.device("veth0")
		s.set([3]int{unix.SOL_SOCKET, unix.SO_DONTROUTE, 1})
		s.sendTo(to, data)
	},
	"IP_UNICAST_IF": func(s *sock, to, data string, device int) {
		option := [3]int{unix.IPPROTO_IP, unix.IP_UNICAST_IF, device << 24} // big-endian
		if to[0] == '[' {
			option = [3]int{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF, device << 24}
		}
		s.set(option)
		s.sendTo(to, data)
	},
	"IP_PKTINFO": func(s *sock, to, data string, device int) {
		s.do(call{Op: "sendby", FD: s.fd, To: to, A: device, Data: []byte(data)}) // it may be refused
	},
}

// sendBy sends by the device whose index is A.
func sendBy(c call) error {
	to, err := probe.ParseSockaddr(c.To)
	if err != nil {
		return err
	}
	info := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(c.A)})
	if c.To[0] == '[' {
		info = unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(c.A)})
	}
	_, err = unix.SendmsgN(c.FD, c.Data, info, to, unix.MSG_NOSIGNAL)
	return err
}

// device returns the index of a device.
func (m *machine) device(name string) (index int) {
	m.t.Helper()
	must(m.t, m.Do(func() {
		if device, err := net.InterfaceByName(name); err == nil {
			index = device.Index
		}
	}))
	if index == 0 {
		m.t.Fatalf("no device %s", name)
	}
	return index
}

// Without --local-routes the request of a decoy's owner reaches the victim, and the answer does not. With it nothing
// arrives, however it is sent. Either way doctor names the sockets where they are exposed, and says which it is.
func TestLocalRoutes(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("--local-routes=%t", on), func(t *testing.T) {
			d := newDecoyed(t, fmt.Sprintf("--local-routes=%t", on))
			device := d.device("veth0")
			for _, f := range families {
				victim := d.db.udp(f.all + ":53")
				allowed(t, f.name+", an equal workload", reachesUDP(d.db2, f.all+":0", f.node+":53", victim))
				denied(t, f.name+", without a decoy", reachesUDP(d.web, f.all+":0", f.node+":53", victim))
				decoy := d.web.socket(f.all+":53", unix.SOCK_DGRAM)
				decoy.device("lo")
				decoy.bind(f.all + ":53")
				for name, send := range ways {
					client := d.web.udp(f.node + ":6000")
					send(client, f.node+":53", "question", device)
					if arrived := victim.got() == "question"; arrived == on {
						t.Errorf("%s, %s: the question past a decoy arrived: %t", f.name, name, arrived)
					}
					victim.sendTo(f.node+":6000", "answer")
					denied(t, f.name+", "+name+", the answer", client.got() != "")
					client.close()
				}
				findings := d.Shell(d.thole + " doctor || true")
				named := strings.Contains(findings, f.all+":53 of db; ") ||
					strings.Contains(findings, f.all+":53 of web, bound to lo; ")
				// An IPv6 socket on all addresses is also on the link-local ones, which the routes leave alone.
				if want := !on || f.name == "IPv6"; named != want {
					t.Errorf("%s: doctor names the sockets: %t, want %t:\n%s", f.name, named, want, findings)
				}
				if closed := strings.Contains(findings, "closed by --local-routes, for 2 addresses"); closed != on {
					t.Errorf("doctor says that decoys are closed: %t", closed)
				}
				decoy.close()
				allowed(t, f.name+", an equal workload, afterwards",
					reachesUDP(d.db2, f.all+":0", f.node+":53", victim))
				victim.close()
			}
		})
	}
}

// With --local-routes, a TCP listener with TCP_DEFER_ACCEPT gets nothing past a decoy, either.
func TestLocalRoutesTCP(t *testing.T) {
	for _, on := range []bool{false, true} {
		d := newDecoyed(t, fmt.Sprintf("--local-routes=%t", on))
		deferAccept := [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5}
		victim := d.db.listen("0.0.0.0:80", reusePort, deferAccept)
		allowed(t, "an equal workload", reaches(d.db2, "0.0.0.0:0", ours+":80", victim))
		decoy := d.web.socket("0.0.0.0:80", unix.SOCK_STREAM, reusePort)
		decoy.device("lo")
		decoy.bind("0.0.0.0:80")
		decoy.listen()
		if arrived := reaches(d.web, "0.0.0.0:0", ours+":80", victim); arrived == on {
			t.Errorf("--local-routes=%t: data past a decoy arrived: %t", on, arrived)
		}
	}
}

// The routes change nothing for the outside, or for what is bound to no device; and they go without a trace.
func TestLocalRoutesLeaveTheRestAlone(t *testing.T) {
	d := newDecoyed(t, "--local-routes")
	if d.routes() == d.routesWithoutAny {
		t.Fatal("there are no routes")
	}
	free, stranger := newAgent(t, d.Host, d.In("elsewhere")), newAgent(t, d.outside, d.outside.In(""))
	for _, f := range []struct{ all, at, from string }{
		{"0.0.0.0", ours, theirs}, {"[::]", "[" + ours6 + "]", "[" + theirs6 + "]"},
	} {
		server := free.socket(f.all+":7000", unix.SOCK_DGRAM)
		server.device("veth0")
		server.bind(f.all + ":7000")
		client := stranger.udp(f.from + ":6000")
		client.sendTo(f.at+":7000", "question")
		allowed(t, "from outside, to a socket that is bound to a device, at "+f.at, server.got() == "question")
		server.sendTo(f.from+":6000", "answer")
		allowed(t, "its answer", client.got() == "answer")
		denied(t, "from this node, to a socket that is bound to a device",
			reachesUDP(free, f.all+":0", f.at+":7000", server))
		listener := stranger.listen(f.from + ":80")
		conn := free.tcp(f.all + ":0")
		allowed(t, "to outside", conn.connect(f.from+":80") == 0)
		at := free.listen(f.at + ":81")
		allowed(t, "TCP to an own address", reaches(free, "", f.at+":81", at))
		for _, s := range []*sock{server, client, listener, conn, at} {
			s.close()
		}
	}
	u := free.udp("[fe80::1%veth0]:7001")
	allowed(t, "a link-local address", reachesUDP(free, "", "[fe80::1%veth0]:7001", u))

	d.Shell("ip addr add 10.0.0.77/24 dev veth0")
	nstest.WaitFor(t, 10*time.Second, "a new address", func() bool { return d.status().LocalRoutes.Addresses == 3 })
	d.Shell("ip addr del 10.0.0.77/24 dev veth0")
	nstest.WaitFor(t, 10*time.Second, "the end of an address",
		func() bool { return !strings.Contains(d.routes(), "10.0.0.77") })

	d.Shell(d.thole + " cleanup --state /run/state")
	if got := d.routes(); got != d.routesWithoutAny {
		t.Errorf("after cleanup:\n%s\nwant\n%s", got, d.routesWithoutAny)
	}
	d.Shell(d.thole + " arm --state /run/state")
	if got := d.Shell(fmt.Sprint("ip route show table local proto ", routes.Protocol)); got == "" {
		t.Error("no routes after arm")
	}
	must(t, d.process.Kill())
	_ = d.process.Wait() // it was killed
	if d.routes() == d.routesWithoutAny {
		t.Error("a killed daemon's routes did not stay")
	}
	d.start()
	if got := d.routes(); got != d.routesWithoutAny {
		t.Errorf("after a start without the option:\n%s\nwant\n%s", got, d.routesWithoutAny)
	}
	must(t, d.process.Kill())
	_ = d.process.Wait()
	d.start("--local-routes")
	must(t, d.process.Kill())
	_ = d.process.Wait()
	d.Shell(d.thole + " cleanup --state /run/state")
	if got := d.routes(); got != d.routesWithoutAny {
		t.Errorf("after cleanup without a daemon:\n%s\nwant\n%s", got, d.routesWithoutAny)
	}
}

// The owner of a decoy asks from a socket that is bound to a device, which is what the table does not find for the
// answer. The victim may send to what is unlabelled, and is only closed to who asks.
func TestDecoyAnswersToDeviceUDP(t *testing.T) {
	const ingressOnly = `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {selector: {matchLabels: {app: db}}, ingress: []}
`
	s := newScene(t, ingressOnly)
	victim, decoy := s.db.udp("0.0.0.0:53"), s.web.socket("0.0.0.0:53", unix.SOCK_DGRAM)
	decoy.device("lo")
	decoy.bind("0.0.0.0:53")
	client := s.web.udp(ours + ":6000")
	client.device("veth0")
	client.sendTo(ours+":53", "question")
	allowed(t, "a question past a decoy", victim.got() == "question")
	victim.sendTo(ours+":6000", "answer")
	denied(t, "its answer", client.got() == "answer")
}
