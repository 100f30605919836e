package e2e

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"thole/compiler/chains"
	"thole/compiler/policy"
	"thole/internal/nstest/probe"
)

// What each file of policies/ promises in its first lines, on real sockets. Names
// are workloads, "free" is unlabelled on the node, addresses are outside.
var promises = map[string]string{
	"same-labels.yaml": `
		web-1     → web-1    80/tcp  yes
		web-1     → web-2    80/tcp  yes
		web-1     → web-2    80/udp  yes
		web-1     → database 80/tcp  no
		free      → web-1    80/tcp  no
		192.0.2.7 → web-1    80/tcp  no
		web-1     → 192.0.2.7 80/tcp yes
		web-1     → 2001:db8::7 443/udp yes
		web-1     → free     53/udp  yes
		web-1     → free     80/tcp  no
		free      → 192.0.2.7 80/tcp yes
		192.0.2.7 → free     80/tcp  yes`,
	"web-and-database.yaml": `
		proxy    → web-1     8080/tcp yes
		proxy    → web-1     8081/tcp no
		proxy    → database  5432/tcp no
		web-1    → database  5432/tcp yes
		web-1    → web-2     8080/tcp no
		web-1    → free      53/udp   yes
		web-1    → 192.0.2.7 80/tcp   no
		database → web-1     8080/tcp no
		database → 192.0.2.7 80/tcp   no
		free     → database  5432/tcp no
		10.1.1.1 → web-1     8080/tcp no`,
	"dns-local.yaml": `
		10.1.1.1    → dns 53/udp  yes
		192.168.9.9 → dns 53/tcp  yes
		fc00::9     → dns 53/udp  yes
		192.0.2.7   → dns 53/udp  no
		2001:db8::7 → dns 53/tcp  no
		10.1.1.1    → dns 22/tcp  no
		web-1       → dns 53/udp  yes
		free        → dns 53/tcp  yes
		free        → dns 22/tcp  no
		dns         → 192.0.2.7 853/tcp yes
		dns         → 192.0.2.7 80/tcp  no
		dns         → free      80/tcp  no`,
	"ingress-proxy.yaml": `
		192.0.2.7   → proxy 443/tcp yes
		2001:db8::7 → proxy 80/tcp  yes
		192.0.2.7   → proxy 22/tcp  no
		192.0.2.7   → proxy 443/udp no
		free        → proxy 80/tcp  no
		proxy       → web-1 8080/tcp yes
		proxy       → web-1 22/tcp   no
		proxy       → database 5432/tcp no
		proxy       → free  53/udp   yes
		proxy       → 192.0.2.7 80/tcp no`,
	"deny-all.yaml": `
		web-1     → web-1     80/tcp yes
		web-1     → web-2     80/tcp no
		web-1     → free      53/udp no
		web-1     → 192.0.2.7 80/tcp no
		192.0.2.7 → web-1     80/tcp no
		free      → web-1     80/udp no
		free      → free      80/tcp yes`,
	"allow-from-network.yaml": `
		10.20.1.1     → web-1 9100/tcp yes
		10.20.99.1    → web-1 9100/tcp no
		2001:db8:20::1 → web-1 9199/tcp yes
		10.20.1.1     → web-1 9200/tcp no
		192.0.2.7     → web-1 9100/tcp no
		free          → web-1 9100/tcp no
		web-1         → 192.0.2.7 80/tcp yes
		192.0.2.7     → database 80/tcp yes`,
	"audit-rollout.yaml": `
		web-1     → database  80/tcp yes
		free      → web-1     80/tcp recorded
		dns       → web-1     80/tcp recorded
		web-1     → free      80/udp recorded
		web-1     → 192.0.2.7 80/tcp yes
		192.0.2.7 → web-1     80/tcp recorded`,
}

func TestExamples(t *testing.T) {
	for name, ways := range promises {
		t.Run(name, func(t *testing.T) {
			e := newExample(t, name)
			for _, way := range strings.Split(strings.TrimSpace(ways), "\n") {
				f := strings.Fields(way)
				e.check(f[0], f[2], f[3], f[4])
			}
		})
	}
}

// An exampleNode is a node under one of the example policies.
type exampleNode struct {
	*node
	t      *testing.T
	policy string
	probes map[string]*probe.Process
	world  *probe.Process
}

func newExample(t *testing.T, file string) *exampleNode {
	e := &exampleNode{node: newNode(t), t: t, policy: strings.TrimSuffix(file, ".yaml"),
		probes: map[string]*probe.Process{}}
	for name, labels := range map[string]policy.Labels{
		"proxy":    {"tier": "proxy"},
		"web-1":    {"tier": "web", "app": "shop", "metrics": "on"},
		"web-2":    {"tier": "web", "app": "shop", "metrics": "on"},
		"database": {"tier": "database", "app": "shop"},
		"dns":      {"app": "dns"},
	} {
		e.probes[name] = probe.Start(e.label("thole.slice/"+name, labels), name)
	}
	e.probes["free"] = probe.Start(e.In("elsewhere"), "free")
	e.world = probe.Start(everywhereElse(t, e.Host).In("world"), "world")
	e.enforce(example(t, file))
	return e
}

// check makes one connection and holds it against what was promised: yes, no, or
// recorded (allowed, and counted as would be denied).
func (e *exampleNode) check(from, to, port, promise string) {
	e.t.Helper()
	before := e.recorded()
	v := e.connect(from, to, port)
	got := map[bool]string{true: "yes", false: "no"}[v.Allowed()]
	if e.recorded() > before {
		got = "recorded"
	}
	if got != promise {
		e.t.Errorf("%s → %s %s: %s (%s), want %s", from, to, port, got, v, promise)
	}
	if _, err := netip.ParseAddr(from); err != nil && !v.Allowed() && strings.HasSuffix(port, "tcp") &&
		v.Outcome != probe.Refused {
		e.t.Errorf("%s → %s %s: %s, want a reset at once", from, to, port, v)
	}
}

func (e *exampleNode) recorded() int {
	if e.policy != "audit-rollout" {
		return 0
	}
	return e.counter(chains.AuditCounter(e.policy))
}

func (e *exampleNode) connect(from, to, port string) probe.Verdict {
	number, proto, _ := strings.Cut(port, "/")
	n, err := strconv.Atoi(number)
	must(e.t, err)
	v6 := strings.Contains(from+to, ":")
	server, host := e.end(to)
	if host == "" {
		host = map[bool]string{false: "10.0.0.1", true: "fd00:10::1"}[v6]
	}
	address := join(host, n)
	client, source := e.end(from)
	if source != "" {
		source = join(source, 0)
	}
	if proto == "tcp" {
		l := server.Listen("tcp", address)
		defer l.Close()
		return client.TCPTo(probe.Target{To: address, From: source})
	}
	u := server.OpenUDP("udp", address)
	defer u.Close()
	if source == "" {
		return client.UDP(address, u)
	}
	c := client.OpenUDP("udp", source)
	defer c.Close()
	return c.Try(address, u)
}

// end returns the probe of a name or an address, and the address if it is one.
func (e *exampleNode) end(name string) (*probe.Process, string) {
	if _, err := netip.ParseAddr(name); err == nil {
		return e.world, name
	}
	p, ok := e.probes[name]
	if !ok {
		e.t.Fatalf("no workload %q", name)
	}
	return p, ""
}
