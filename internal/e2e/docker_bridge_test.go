package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// addressesOf returns the addresses by which the named containers are known, IPv4
// first, when all have both.
func (m *machine) addressesOf(names ...string) map[string][2]netip.Addr {
	m.t.Helper()
	found := map[string][2]netip.Addr{}
	nstest.WaitFor(m.t, 20*time.Second, fmt.Sprintf("the addresses of %q", names), func() bool {
		known := m.workloads("container")
		for _, name := range names {
			var both [2]netip.Addr
			for _, network := range known[name].Networks {
				for _, word := range strings.Fields(network) {
					if a, err := netip.ParseAddr(word); err == nil && a.Is4() {
						both[0] = a
					} else if err == nil {
						both[1] = a
					}
				}
			}
			found[name] = both
			if !both[0].IsValid() || !both[1].IsValid() {
				return false
			}
		}
		return true
	})
	return found
}

// A container that sends with another's address is heard by nobody, and answers to
// ARP for it in vain; others of its kind are not touched.
func TestForgedAddressOfAContainer(t *testing.T) {
	m, e := newDockerMachine(t)
	server := m.labelledProbe("server", "app=web")
	server.Listen("tcp", "[::]:80")
	datagrams := server.OpenUDP("udp", "[::]:80") // a forged one needs no answer
	image := e.Image("box", nil)
	e.Docker("network", "create", "--ipv6", "--subnet=172.30.0.0/24", "--gateway=172.30.0.1", "--subnet=fd00:18::/64",
		"--gateway=fd00:18::1", "shop")
	web := e.Probe("web", "-l", "app=web", "--network=shop", image)
	db := e.Probe("db", "-l", "app=db", "--network=shop", image)
	at := m.addressesOf("web", "db")
	gateways := [2]string{"172.30.0.1:80", "[fd00:18::1]:80"}

	for v, gateway := range gateways {
		allowed(t, "the container", web.TCP(gateway))
		denied(t, "another", db.TCP(gateway))
		own := at["web"][v]
		m.Shell(fmt.Sprintf("nsenter --net=/proc/%d/ns/net ip addr add %s dev eth0 nodad", db.PID(), own))
		from := netip.AddrPortFrom(own, 4000).String()
		allowed(t, "a datagram of the container", web.OpenUDP("udp", from).Try(gateway, datagrams))
		if v := db.OpenUDP("udp", from).Try(gateway, datagrams); v.Allowed() {
			t.Errorf("a datagram with the address of web: %v, want silence", v)
		}
		allowed(t, "the container, while another forges its address", web.TCP(gateway))
	}
	var s api.Status
	m.ask(&s, "status")
	if s.Counters["forged"].Packets == 0 {
		t.Errorf("counters %v, want the forged packets among them", s.Counters)
	}
}

// What this node's workloads send to containers with a network of their own is decided
// by the labels of both, also behind a published port, and never by cidr.
func TestToContainersOnBridges(t *testing.T) {
	m, e := newDockerMachine(t)
	must(t, m.apply(`
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  egress:
  - to: [{workloads: {matchLabels: {app: api}}}]
    ports: ["80/tcp", "53/udp"]
  - to: [{cidr: 0.0.0.0/0}, {cidr: "::/0"}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: api}
spec:
  selector: {matchLabels: {app: api}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
`))
	image := e.Image("box", nil)
	e.Docker("network", "create", "--ipv6", "--subnet=172.30.0.0/24", "--subnet=fd00:18::/64", "shop")
	api := e.Probe("api", "-l", "app=api", "--network=shop", "--publish=8080:80", image)
	db := e.Probe("db", "-l", "app=db", "--network=shop", "--publish=8081:80", image)
	plain := e.Probe("plain", "--network=shop", "--publish=8082:80", "--ip=172.30.0.99", image)
	at := m.addressesOf("api", "db")
	for _, p := range []*probe.Process{api, db, plain} {
		p.Listen("tcp", "[::]:80")
		p.Listen("tcp", "[::]:81")
	}
	to := func(name string, port uint16) string { return netip.AddrPortFrom(at[name][0], port).String() }
	to6 := func(name string, port uint16) string { return netip.AddrPortFrom(at[name][1], port).String() }
	web := m.labelledProbe("web", "app=web")
	other := m.labelledProbe("other", "app=other")
	for _, tt := range []struct {
		what string
		from *probe.Process
		to   string
		want bool
	}{
		{"both sides allow it", web, to("api", 80), true},
		{"both sides allow it, IPv6", web, to6("api", 80), true},
		{"another port", web, to("api", 81), false},
		{"another port, IPv6", web, to6("api", 81), false},
		{"a published port, by its own", web, "172.30.0.1:8080", true},
		{"other labels", web, to("db", 80), false},
		{"other labels, published", web, "172.30.0.1:8081", false},
		{"unlabelled: cidr is for what is outside", web, "172.30.0.99:80", false},
		{"unlabelled, published", web, "172.30.0.1:8082", false},
		{"not isolated, to who is", other, to("api", 80), false},
		{"not isolated, to who is neither", other, to("db", 80), true},
		{"not isolated, to unlabelled", other, "172.30.0.99:80", true},
	} {
		v := tt.from.TCP(tt.to)
		if tt.want {
			allowed(t, tt.what, v)
		} else {
			denied(t, tt.what, v)
		}
	}

	out, _ := m.Command(m.thole, "status").CombinedOutput() // it fails where there is something to tell
	if !strings.Contains(string(out),
		"policy api is enforced only in part for containers with a network of their own") {
		t.Errorf("status does not say what is not enforced:\n%s", out)
	}

	// A datagram's flow ends with the container: its address may be another's.
	socket := web.OpenUDP("udp", "0.0.0.0:5353")
	dns := api.OpenUDP("udp", "0.0.0.0:53")
	allowed(t, "UDP", socket.Try(to("api", 53), dns))
	e.Docker("rm", "-f", "api")
	thief := e.Probe("thief", "-l", "app=db", "--network=shop", "--ip="+at["api"][0].String(), image)
	heard := thief.OpenUDP("udp", "0.0.0.0:53")
	m.untilWorkloads("db", "thief")
	nstest.WaitFor(t, 20*time.Second, "the address of thief", func() bool {
		return len(m.workloads("container")["thief"].Networks) > 0
	})
	if v := socket.Try(to("api", 53), heard); v.Allowed() {
		t.Errorf("UDP, to who has the address now: %v, want it denied", v)
	}
}
