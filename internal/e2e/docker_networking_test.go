package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/internal/daemon"
	"thole/internal/nstest"
)

// What has no labels is free, and Docker's own networking is Docker's: whatever
// unlabelled containers, processes and the world do with each other, they do the same
// without Thole, with its default policies, and where all workloads are closed and its
// table is alone. Connections live through all of it.
func TestDockersNetworkingIsLeftAlone(t *testing.T) {
	for name, proxied := range map[string]bool{"docker-proxy": true, "no docker-proxy": false} {
		t.Run(name, func(t *testing.T) {
			n := newNetworking(t, proxied)
			n.open()
			without := n.all()
			n.plausible(without)

			n.machine.start(followDocker)
			n.until("the daemon to follow Docker", func(s daemon.Status) bool { return s.Docker != nil && s.Docker.Connected })
			n.same("as soon as Thole runs", without)
			n.addWorkloads()
			n.same("with workloads under the default policy", without)
			must(t, n.apply(string(example(t, "deny-all.yaml"))))
			must(t, n.daemon.Kill())
			_ = n.daemon.Wait() // it was killed
			n.same("with closed workloads, and Thole's table alone", without)
		})
	}
}

// networking is a machine with an engine, unlabelled containers and processes on it,
// and a world around it.
//
//	world (192.0.2.7, …)
//	  │ 10.0.0.0/24, fd00:10::/64
//	node: process :9000, hosted :9100 (--net=host)
//	  ├── docker0 172.17.0.0/16, fd00:17::/64: server -p 8080:80 -p 5353:53/udp, client
//	  └── shop    172.18.0.0/16, fd00:18::/64: shop-server -p 8081:80, shop-client
type networking struct {
	*machine
	e       *nstest.Engine
	proxied bool // there is docker-proxy
	image   string
	probes  map[string]*nstest.Probe
	udp     map[string]*nstest.UDPSocket // of each that listens
	live    []liveConn
}

// A liveConn is a connection from before Thole.
type liveConn struct {
	name, server string
	*nstest.Conn
}

func newNetworking(t *testing.T, proxied bool) *networking {
	n := &networking{machine: bareMachine(t), proxied: proxied, probes: map[string]*nstest.Probe{}, udp: map[string]*nstest.UDPSocket{}}
	outside := everywhereElse(t, n.Host)
	n.e = nstest.StartEngine(t, n.Host, append([]string{fmt.Sprintf("--userland-proxy=%t", proxied)}, bridge6...)...)
	n.image = n.e.Image("box", nil)
	n.e.Docker("network", "create", "--ipv6", "--subnet=172.18.0.0/16", "--subnet=fd00:18::/64", "shop")
	outside.In("world").Start("dnsmasq", dnsmasq("--address=/example.test/192.0.2.80")...)
	n.probes["world"] = outside.In("world").Probe("world")
	n.probes["process"] = n.In("shell").Probe("process")
	for name, args := range map[string][]string{
		"hosted":      {"--net=host"},
		"server":      {"-p", "8080:80", "-p", "5353:53/udp"},
		"client":      {"--dns=192.0.2.53"},
		"shop-server": {"-p", "8081:80", "--net=shop"},
		"shop-client": {"--net=shop", "--dns=192.0.2.53"},
	} {
		n.probes[name] = n.e.Probe(name, append(args, n.image)...)
	}
	n.listen("world", 80, 4000)
	n.listen("process", 9000, 9000)
	n.listen("hosted", 9100, 9100)
	n.listen("server", 80, 53)
	n.listen("shop-server", 80, 53)
	return n
}

func (n *networking) listen(name string, tcp, udp int) {
	address := "::"
	if name == "world" {
		address = "192.0.2.80"
	}
	n.probes[name].Listen("tcp", join(address, tcp))
	n.udp[name] = n.probes[name].OpenUDP("udp", join(address, udp))
}

// address asks Docker for a container's address.
func (n *networking) address(container, family string) string {
	n.t.Helper()
	field := map[string]string{"4": "IPAddress", "6": "GlobalIPv6Address"}[family]
	return n.e.Docker("inspect", "--format={{range .NetworkSettings.Networks}}{{."+field+"}}{{end}}", container)
}

// ways are all that is tried, but for names: from, to, and who is expected there.
func (n *networking) ways() [][4]string {
	server4, server6 := n.address("server", "4"), n.address("server", "6")
	shop4, shop6 := n.address("shop-server", "4"), n.address("shop-server", "6")
	var ways [][4]string
	add := func(protocols, from, server string, port int, addresses ...string) {
		for _, protocol := range strings.Fields(protocols) {
			for _, a := range addresses {
				if protocol == "icmp" {
					ways = append(ways, [4]string{protocol, from, a, server})
				} else {
					ways = append(ways, [4]string{protocol, from, join(a, port), server})
				}
			}
		}
	}
	const here4, here6 = "10.0.0.1", "fd00:10::1"
	// Published ports: through docker-proxy (of IPv6 always), and through DNAT.
	for _, from := range []string{"process", "hosted"} {
		add("tcp", from, "server", 8080, "127.0.0.1", here4, "172.17.0.1")
		if n.proxied {
			add("tcp", from, "server", 8080, "::1", here6, "fd00:17::1")
		}
		add("udp", from, "server", 5353, "127.0.0.1", here4, "172.17.0.1")
		add("tcp", from, "shop-server", 8081, "127.0.0.1", here4)
	}
	add("tcp", "world", "server", 8080, here4)
	if n.proxied {
		add("tcp", "world", "server", 8080, here6)
		add("udp", "shop-client", "server", 5353, here4)
	}
	add("udp", "world", "server", 5353, here4)
	add("tcp", "world", "shop-server", 8081, here4)
	for _, from := range []string{"server", "client"} { // the first to itself
		add("tcp", from, "server", 8080, here4, "172.17.0.1")
		add("udp", from, "server", 5353, here4)
	}
	add("tcp", "shop-client", "server", 8080, here4, "172.17.0.1")
	// Containers with each other; two networks are apart.
	add("tcp icmp", "client", "server", 80, server4, server6)
	add("udp", "client", "server", 53, server4, server6)
	add("tcp icmp", "shop-client", "shop-server", 80, shop4, shop6)
	add("udp", "shop-client", "shop-server", 53, shop4, shop6)
	add("tcp icmp", "client", "shop-server", 80, shop4)
	add("udp", "shop-client", "server", 53, server4)
	// The host and its containers.
	for _, from := range []string{"process", "hosted"} {
		add("tcp icmp", from, "server", 80, server4, server6)
		add("udp", from, "server", 53, server4, server6)
	}
	for _, from := range []string{"client", "shop-client"} {
		for server, port := range map[string]int{"process": 9000, "hosted": 9100, "nobody": 9999} {
			add("tcp udp", from, server, port, here4, "172.17.0.1", "172.18.0.1", "fd00:17::1", "fd00:18::1")
		}
		add("icmp", from, "process", 0, here4, "172.17.0.1", "fd00:17::1")
	}
	for _, from := range []string{"process", "hosted", "world"} {
		for server, port := range map[string]int{"process": 9000, "hosted": 9100, "nobody": 9999} {
			add("tcp udp", from, server, port, here4, here6)
			if from != "world" {
				add("tcp udp icmp", from, server, port, "127.0.0.1", "::1", "172.17.0.1")
			}
		}
	}
	// The world.
	for _, from := range []string{"client", "shop-client", "process", "hosted"} {
		add("tcp icmp", from, "world", 80, "192.0.2.80")
		add("udp", from, "world", 4000, "192.0.2.80")
	}
	return ways
}

// all tries all ways and names, and says what came of each.
func (n *networking) all() map[string]string {
	n.t.Helper()
	got := map[string]string{}
	for _, w := range n.ways() {
		got[fmt.Sprintf("%s %s → %s (%s)", w[0], w[1], w[2], w[3])] = n.try(w[0], n.probes[w[1]], w[2], n.udp[w[3]])
	}
	for client, names := range map[string][]string{"shop-client": {"shop-server", "example.test"}, "client": {"example.test"}} {
		for _, name := range names {
			out, err := n.e.TryDocker("exec", client, "nslookup", "-type=a", name)
			got[client+" looks up "+name] = fmt.Sprint(strings.Join(strings.Fields(out), " "), err)
		}
	}
	out, err := n.e.TryDocker("exec", "shop-client", "sh", "-c", "echo who | nc shop-server 80")
	got["shop-client connects by name"] = fmt.Sprint(out, err)
	for _, c := range n.live {
		outcome := c.Send("who?\n")
		answer, _ := c.Receive(patience)
		got["live: "+c.name] = fmt.Sprint(outcome, " ", strings.TrimSpace(answer))
	}
	return got
}

// patience is for what goes through docker-proxy; nothing that is expected takes it.
const patience = 2 * time.Second

func (n *networking) try(protocol string, from *nstest.Probe, to string, server *nstest.UDPSocket) string {
	n.t.Helper()
	switch {
	case protocol == "icmp":
		return from.Ping(to).String()
	case protocol == "tcp":
		return from.TCP(to).String()
	case server == nil:
		return from.UDP(to).String()
	case strings.HasSuffix(to, ":5353"): // there may be docker-proxy in between
		return n.tryProxied(from, to, server)
	}
	return dialogue(from, to, server)
}

// tryProxied waits as long as a program takes to pass a datagram on.
func (n *networking) tryProxied(from *nstest.Probe, to string, server *nstest.UDPSocket) string {
	n.t.Helper()
	c := from.OpenUDP("udp", "0.0.0.0:0")
	defer c.Close()
	before := len(server.Received())
	c.Send(to, "question")
	nstest.WaitFor(n.t, patience, from.Name+"'s datagram to "+to, func() bool { return len(server.Received()) > before })
	server.Send(server.Received()[before].From, "answer")
	nstest.WaitFor(n.t, patience, from.Name+"'s answer from "+to, func() bool { return c.Got("answer") })
	return "arrived, answered"
}

// plausible checks that the table without Thole says what it is about.
func (n *networking) plausible(without map[string]string) {
	n.t.Helper()
	for way, want := range map[string]string{
		"tcp world → 10.0.0.1:8080 (server)":                                "connected (server)",
		"tcp process → 127.0.0.1:8080 (server)":                             "connected (server)",
		"tcp client → 172.17.0.1:9000 (process)":                            "connected (process)",
		"tcp client → 172.17.0.1:9999 (nobody)":                             "refused",
		"udp client → 172.17.0.1:9999 (nobody)":                             "refused",
		"udp client → 192.0.2.80:4000 (world)":                              "arrived, answered",
		"udp shop-client → [fd00:18::1]:9100 (hosted)":                      "arrived, answered",
		"shop-client connects by name":                                      "shop-server<nil>",
		"live: world → 10.0.0.1:8080":                                       "connected server",
		"icmp client → " + n.address("shop-server", "4") + " (shop-server)": "silent",
	} {
		if got := without[way]; got != want {
			n.t.Errorf("without Thole: %s: %q, want %q", way, got, want)
		}
	}
	if looked := without["shop-client looks up shop-server"]; !strings.Contains(looked, n.address("shop-server", "4")) {
		n.t.Errorf("without Thole: shop-server is at %q", looked)
	}
	if looked := without["client looks up example.test"]; !strings.Contains(looked, "192.0.2.80") {
		n.t.Errorf("without Thole: example.test is at %q", looked)
	}
}

// same tries everything again.
func (n *networking) same(when string, without map[string]string) {
	n.t.Helper()
	if diff := cmp.Diff(without, n.all()); diff != "" {
		n.t.Errorf("%s (-without Thole +now):\n%s", when, diff)
	}
}

// open opens the connections that live on.
func (n *networking) open() {
	n.t.Helper()
	for _, c := range []struct{ from, to, server string }{
		{"world", "10.0.0.1:8080", "server"},
		{"world", "10.0.0.1:9000", "process"},
		{"process", "127.0.0.1:8080", "server"},
		{"process", "127.0.0.1:9100", "hosted"},
		{"process", join(n.address("server", "6"), 80), "server"},
		{"hosted", "192.0.2.80:80", "world"},
		{"client", "172.17.0.1:9000", "process"},
		{"client", "192.0.2.80:80", "world"},
		{"client", join(n.address("server", "4"), 80), "server"},
		{"shop-client", "[fd00:18::1]:9100", "hosted"},
	} {
		conn, v := n.probes[c.from].Dial(c.to)
		if conn == nil {
			n.t.Fatalf("%s → %s: %v", c.from, c.to, v)
		}
		n.live = append(n.live, liveConn{c.from + " → " + c.to, c.server, conn})
	}
}

// addWorkloads adds one of each kind, so that the table has all its maps.
func (n *networking) addWorkloads() {
	n.t.Helper()
	n.labelledProbe("run", "app=web").Listen("tcp", "[::]:7000")
	n.e.Docker("run", "-d", "--init", "--net=host", "-l", "app=web", "--name=web", n.image, "sleep", "1000")
	n.e.Docker("run", "-d", "--init", "-l", "app=db", "--name=db", n.image, "sleep", "1000")
	n.e.Docker("run", "-d", "--init", "--net=shop", "-l", "app=shop", "--name=shop", n.image, "sleep", "1000")
	n.until("the workloads", func(daemon.Status) bool {
		known := n.workloads("container")
		return len(known) == 3 && len(known["db"].Networks) == 1 && len(known["shop"].Networks) == 1
	})
	if v := n.probes["client"].TCP("172.17.0.1:7000"); v.Allowed() {
		n.t.Errorf("client → run: %v: nothing is enforced", v)
	}
}
