package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

// programsPolicy: web by label alone, db also to the machine without Thole, by address.
const programsPolicy = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {matchLabels: {app: db}}}]
  egress:
  - to: [{workloads: {matchLabels: {app: db}}}, {cidr: 10.0.2.2/32}, {cidr: "fd00:12::2/128"}]
`

// Two nodes, and a machine in the fleet's networks without Thole, at a router which hides
// the first node behind its own address, and has an address for the second one's nginx:
//
//	a 10.0.0.1 ── .254 router .254 ── 10.0.1.1 b     10.0.1.254 stands for a,
//	                     └─ 10.0.2.254 ── 10.0.2.2   10.0.0.254:80 for b
func routedFleet(t *testing.T) (a, b *machine, router, third *nstest.Host) {
	t.Helper()
	a, b = bareMachine(t), bareMachine(t)
	router, third = nstest.New(t), nstest.New(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", router, "10.0.0.254/24", "fd00:10::254/64")
	right, _ := nstest.Link(router, "10.0.1.254/24", "fd00:11::254/64", b.Host, "10.0.1.1/24", "fd00:11::1/64")
	nstest.Link(router, "10.0.2.254/24", "fd00:12::254/64", third, "10.0.2.2/24", "fd00:12::2/64")
	router.Shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i, h := range []*nstest.Host{a.Host, b.Host, third} {
		h.Shell(fmt.Sprintf("ip route add default via 10.0.%d.254; ip -6 route add default via fd00:1%[1]d::254", i))
	}
	must(t, router.Nft(fmt.Sprintf(`
		table inet nat {
			chain from_a { type nat hook postrouting priority srcnat; oifname %q masquerade; }
			chain to_b {
				type nat hook prerouting priority dstnat
				ip daddr 10.0.0.254 tcp dport 80 dnat ip to 10.0.1.1:80
				ip6 daddr fd00:10::254 tcp dport 80 dnat ip6 to [fd00:11::1]:80
			}
		}`, right)))
	startMembers(t, newFleetCA(t), []fleetMember{
		{a, "node-a", []string{"10.0.0.1", "fd00:10::1", "10.0.1.254", "fd00:11::254"}},
		{b, "node-b", []string{"10.0.1.1", "fd00:11::1", "10.0.0.254", "fd00:10::254"}},
	}, "10.0.0.0/22,fd00::/16")
	tell(t, a, b)
	for _, m := range []*machine{a, b} {
		must(t, m.apply(programsPolicy))
	}
	return a, b, router, third
}

// Programs that know nothing of Thole reach each other by labels, through a router that
// translates both ends' addresses, with what devices do for them; and in packets of at
// most 1,280 bytes.
func TestFleetPrograms(t *testing.T) {
	nstest.Need(t, "nginx", "curl", "haproxy", "iperf3", "conntrack")
	a, b, router, third := routedFleet(t)
	webA, webB := a.labelled("web", "app=web"), b.labelled("web", "app=web")
	dbA, dbB := a.labelled("db", "app=db"), b.labelled("db", "app=db")
	webB.Start("nginx", "-e", "stderr", "-c", nginxConf(t, 80, "web"))
	webB.Start("iperf3", "-s", "-p", "5201")
	third.In("free").Start("nginx", "-e", "stderr", "-c", nginxConf(t, 80, "third"))
	proxy := filepath.Join(t.TempDir(), "haproxy.cfg")
	must(t, os.WriteFile(proxy, fmt.Appendf(nil, `
defaults
	mode http
	retries 0
	timeout connect %[1]ds
	timeout client %[2]ds
	timeout server %[2]ds
frontend all
	bind :::8080 v4v6
	default_backend web
backend web
	server web 10.0.0.254:80
`, int(nstest.Patience(3*time.Second).Seconds()), int(nstest.Patience(5*time.Second).Seconds())), 0o644))
	webA.Start("haproxy", "-db", "-f", proxy)
	b.untilListening(80, 5201)
	a.untilListening(8080)
	nstest.WaitFor(t, 10*time.Second, "the third machine's nginx", func() bool {
		return third.Shell("ss -Hltn 'sport = :80'") != ""
	})

	type reach struct {
		name string
		from *nstest.Cgroup
		url  string
		want string // the page; "": not reached
	}
	reaches := []reach{
		{"behind masquerading", webA, "10.0.1.1", "web"},
		{"behind masquerading, IPv6", webA, "[fd00:11::1]", "web"},
		{"by the address of the router", webA, "10.0.0.254", "web"},
		{"by the address of the router, IPv6", webA, "[fd00:10::254]", "web"},
		{"once more", webA, "10.0.0.254", "web"},
		{"other labels, behind masquerading", dbA, "10.0.1.1", ""},
		{"other labels, by the address of the router, IPv6", dbA, "[fd00:10::254]", ""},
		{"no labels", a.In("free"), "10.0.1.1", ""},
		{"HAProxy before nginx, the other way", webB, "10.0.0.1:8080", "web"},
		{"HAProxy before nginx, IPv6", webB, "[fd00:10::1]:8080", "web"},
		{"HAProxy, other labels", dbB, "10.0.0.1:8080", ""},
		{"without Thole, by its address", dbA, "10.0.2.2", "third"},
		{"without Thole, by its address, IPv6", dbA, "[fd00:12::2]", "third"},
		{"from it", third.In("free"), "10.0.1.1", ""},
		{"from it, IPv6", third.In("free"), "[fd00:11::1]", ""},
	}
	check := func(t *testing.T, reaches ...reach) {
		t.Helper()
		for _, r := range reaches {
			patience := 5 * time.Second
			if r.want == "" {
				patience = 500 * time.Millisecond
			}
			limit := fmt.Sprint(nstest.Patience(patience).Seconds())
			out, err := r.from.Command("curl", "-s", "-m", limit, "http://"+r.url).Output()
			if got := strings.TrimSpace(string(out)); got != r.want {
				t.Errorf("%s: %q, %v, want %q", r.name, got, err, r.want)
			}
		}
	}
	watched := map[string]*machine{"a": a, "b": b, "the router": {Host: router, t: t}}
	for _, m := range watched {
		m.watchInvalid()
	}
	t.Run("offloads on", func(t *testing.T) {
		check(t, reaches...)
		moveBulk(t, webA, "10.0.0.1", "10.0.1.1")
		moveBulk(t, webA, "fd00:10::1", "fd00:11::1")
	})
	t.Run("1,280 bytes", func(t *testing.T) {
		for _, h := range []*nstest.Host{a.Host, b.Host, router, third} {
			h.Shell("for d in /sys/class/net/veth*; do ip link set ${d##*/} mtu 1280; done")
		}
		for i, h := range []*nstest.Host{a.Host, b.Host, third} { // IPv6's are gone with 1,280 set, on some kernels
			h.Shell(fmt.Sprintf("ip -6 route replace default via fd00:1%d::254", i))
		}
		check(t, reaches...)
		moveBulk(t, webA, "fd00:10::1", "fd00:11::1")
	})
	for name, m := range watched {
		if n := conntrackStats(t, m.Host, "invalid"); n != 0 {
			t.Errorf("conntrack of %s called %d packets invalid: %s", name, n, m.invalid())
		}
	}
	// At last: its SYN-ACK is never acknowledged, and comes again when conntrack knows nothing of it any more.
	check(t, reach{"without Thole, never by labels", webA, "10.0.2.2", ""})
}

// Containers of the host's network have their labels on other nodes too, and what they
// are not allowed there.
func TestFleetContainers(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	var engines []*engine.Docker
	var images []string
	for _, m := range []*machine{a, b} {
		must(t, m.daemon.Signal(syscall.SIGTERM))
		must(t, m.daemon.Wait())
		m.args = append(m.args, followDocker)
		m.start(m.args...)
		e := engine.StartDocker(t, m.Host)
		engines, images = append(engines, e), append(images, e.Image("box", nil))
	}
	for i, m := range []*machine{a, b} {
		m.until("the daemon to follow Docker", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })
		engines[i].Probe("web", "--net=host", "-l", "app=web", images[i]).Listen("tcp", "[::]:80")
	}
	var same, other, process []*probe.Process
	for i, m := range []*machine{a, b} {
		same = append(same, engines[i].Probe("same", "--net=host", "-l", "app=web", images[i]))
		other = append(other, engines[i].Probe("other", "--net=host", "-l", "app=db", images[i]))
		process = append(process, m.labelledProbe("process", "app=web"))
		m.untilWorkloads("web", "same", "other")
	}
	for i, ends := range fleetEnds {
		from := 1 - i
		for _, end := range ends {
			to := netip.AddrPortFrom(end, 80).String()
			for _, p := range []*probe.Process{same[from], process[from]} {
				if v := p.TCPTo(probe.Target{To: to, Patience: handshakes}); v.Server != "web" {
					t.Errorf("%s, to %s: %v, want an answer of web", p.Name, to, v)
				}
			}
			if reached(other[from], to, 300*time.Millisecond) {
				t.Errorf("a container with other labels reached %s", to)
			}
		}
	}
}

// moveBulk moves data with iperf3, one way and then the other.
func moveBulk(t *testing.T, from *nstest.Cgroup, local, to string) {
	t.Helper()
	for _, reverse := range []bool{false, true} {
		args := []string{"-c", to, "-B", local, "-p", "5201", "-n", "40M", "-J", "--connect-timeout",
			fmt.Sprint(nstest.Patience(5 * time.Second).Milliseconds())}
		if reverse {
			args = append(args, "-R")
		}
		out, err := from.Command("iperf3", args...).Output()
		var report struct {
			End struct {
				SumReceived struct {
					Bytes         float64
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
			Error string
		}
		if jsonErr := json.Unmarshal(out, &report); jsonErr != nil || err != nil || report.Error != "" {
			t.Errorf("iperf3 %v: %v, %v, %s", args, err, jsonErr, report.Error)
			continue
		}
		if report.End.SumReceived.Bytes < 20<<20 { // the receiver stops counting when all is sent
			t.Errorf("iperf3 %v: %.0f bytes arrived", args, report.End.SumReceived.Bytes)
		}
		t.Logf("iperf3 to %s, back %t: %.1f Gbit/s", to, reverse, report.End.SumReceived.BitsPerSecond/1e9)
	}
}
