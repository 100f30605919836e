package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
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
			n.until("the daemon to follow Docker", func(s api.Status) bool {
				return s.Docker != nil && s.Docker.Connected
			})
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
	e       *engine.Docker
	proxied bool // there is docker-proxy
	image   string
	live    []liveConn

	probes    map[string]*probe.Process
	udp       map[string]*probe.UDPSocket // of each that listens
	addresses map[string][]string         // of the two containers that listen: IPv4, IPv6
}

// A liveConn is a connection from before Thole.
type liveConn struct {
	name, server string
	*probe.Conn
}

func newNetworking(t *testing.T, proxied bool) *networking {
	n := &networking{machine: bareMachine(t), proxied: proxied, probes: map[string]*probe.Process{},
		udp: map[string]*probe.UDPSocket{}, addresses: map[string][]string{}}
	outside := everywhereElse(t, n.Host)
	n.e = engine.StartDocker(t, n.Host, append([]string{fmt.Sprintf("--userland-proxy=%t", proxied)}, bridge6...)...)
	n.image = n.e.Image("box", nil)
	n.e.Docker("network", "create", "--ipv6", "--subnet=172.18.0.0/16", "--subnet=fd00:18::/64", "shop")
	outside.In("world").Start("dnsmasq", dnsmasq("--address=/example.test/192.0.2.80")...)
	n.probes["world"] = probe.Start(outside.In("world"), "world")
	n.probes["process"] = probe.Start(n.In("shell"), "process")
	for name, args := range map[string][]string{
		"hosted":      {"--net=host"},
		"server":      {"-p", "8080:80", "-p", "5353:53/udp"},
		"client":      {"--dns=192.0.2.53"},
		"shop-server": {"-p", "8081:80", "--net=shop"},
		"shop-client": {"--net=shop", "--dns=192.0.2.53"},
	} {
		n.probes[name] = n.e.Probe(name, append(args, n.image)...)
	}
	for _, name := range []string{"server", "shop-server"} {
		both := n.e.Docker("inspect", "--format={{range .NetworkSettings.Networks}}{{.IPAddress}} "+
			"{{.GlobalIPv6Address}}{{end}}", name)
		n.addresses[name] = strings.Fields(both)
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

// ways are all that is tried, but for names: from, to, and who is expected there.
func (n *networking) ways() [][4]string {
	server4, server6 := n.addresses["server"][0], n.addresses["server"][1]
	shop4, shop6 := n.addresses["shop-server"][0], n.addresses["shop-server"][1]
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
	if !n.proxied {
		return ways // all else is the same
	}
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
	for client, script := range map[string]string{
		"client":      "nslookup -type=a example.test",
		"shop-client": "nslookup -type=a example.test; nslookup -type=a shop-server; echo who | nc shop-server 80",
	} {
		out, err := n.e.TryDocker("exec", client, "sh", "-c", script)
		got[client+" by name"] = fmt.Sprint(strings.Join(strings.Fields(out), " "), err)
	}
	for _, c := range n.live {
		outcome := c.Send("who?\n")
		answer, _ := c.Receive(patience)
		got["live: "+c.name] = fmt.Sprint(outcome, " ", strings.TrimSpace(answer))
	}
	return got
}

// patience is for what goes through docker-proxy; nothing that is expected takes it.
const patience = 2 * time.Second

func (n *networking) try(protocol string, from *probe.Process, to string, server *probe.UDPSocket) string {
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
func (n *networking) tryProxied(from *probe.Process, to string, server *probe.UDPSocket) string {
	n.t.Helper()
	c := from.OpenUDP("udp", "0.0.0.0:0")
	defer c.Close()
	before := len(server.Received())
	c.Send(to, "question")
	nstest.WaitFor(n.t, patience, from.Name+"'s datagram to "+to, func() bool {
		return len(server.Received()) > before
	})
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
		"live: world → 10.0.0.1:8080":                                       "connected server",
		"icmp client → " + n.addresses["shop-server"][0] + " (shop-server)": "silent",
	} {
		if got, tried := without[way]; got != want && (tried || n.proxied) {
			n.t.Errorf("without Thole: %s: %q, want %q", way, got, want)
		}
	}
	for name, answers := range map[string][]string{
		"client by name": {"Name: example.test Address: 192.0.2.80<nil>"},
		"shop-client by name": {"Name: example.test Address: 192.0.2.80 ", "Name: shop-server Address: " +
			n.addresses["shop-server"][0] + " shop-server<nil>"},
	} {
		for _, answer := range answers {
			if !strings.Contains(without[name], answer) {
				n.t.Errorf("without Thole: %s: %q, want %q in it", name, without[name], answer)
			}
		}
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
		{"process", join(n.addresses["server"][1], 80), "server"},
		{"hosted", "192.0.2.80:80", "world"},
		{"client", "172.17.0.1:9000", "process"},
		{"client", "192.0.2.80:80", "world"},
		{"client", join(n.addresses["server"][0], 80), "server"},
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
	n.until("the workloads", func(api.Status) bool {
		known := n.workloads("container")
		return len(known) == 2 && len(known["db"].Networks) == 1
	})
	if v := n.probes["client"].TCP("172.17.0.1:7000"); v.Allowed() {
		n.t.Errorf("client → run: %v: nothing is enforced", v)
	}
}
