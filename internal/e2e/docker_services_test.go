package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

// The two services for which people share the host's network, a name server and a
// proxy before web servers, as containers under the policies that we give as
// examples:
//
//	the world ──► haproxy :80 :443 ──► nginx :8080 (tier=web)      nginx :5432 (tier=database)
//	    ▲             └─ names ─► an unlabelled resolver, 127.0.0.53:53
//	    └──53── dnsmasq :53 ◄── private networks, containers, processes
func TestServicesOfTheHostNetwork(t *testing.T) {
	s := newServices(t)
	t.Run("dns-local", s.nameServer)
	t.Run("ingress-proxy", s.proxy)
}

// services is a machine with these containers, and a world around it.
type services struct {
	*machine
	engine   *engine.Docker
	world    *nstest.Host
	stranger *probe.Process            // has every address outside
	clients  map[string]*probe.Process // on this machine
}

func newServices(t *testing.T) *services {
	s := &services{machine: newMachine(t, followDocker), clients: map[string]*probe.Process{}}
	s.world = everywhereElse(t, s.Host)
	s.engine = engine.StartDocker(t, s.Host, bridge6...)
	image := s.engine.Image("services", nil, "nginx", "haproxy", "dnsmasq", "curl")
	var all []string
	for _, name := range []string{"dns-local.yaml", "ingress-proxy.yaml", "web-and-database.yaml"} {
		all = append(all, string(example(t, name)))
	}
	must(t, s.apply(strings.Join(all, "---\n")))

	world := s.world.In("world")
	s.stranger = probe.Start(world, "stranger")
	world.Start("dnsmasq", dnsmasq("--address=/example.test/192.0.2.80", "--address=/example.test/2001:db8::80")...)
	for _, port := range []int{80, 853} {
		world.Start("nginx", "-e", "stderr", "-c", nginxConf(t, port, "world"))
	}
	s.In("resolver").Start("dnsmasq", dnsmasq("--bind-interfaces", "--listen-address=127.0.0.53",
		"--address=/web.test/127.0.0.1")...)
	s.In("shell").Start("nginx", "-e", "stderr", "-c", nginxConf(t, 9000, "unlabelled"))

	start := func(name, label, file string, command ...string) {
		volume := []string{}
		if file != "" {
			volume = []string{"-v", file + ":/conf"}
		}
		args := append([]string{"run", "-d", "--init", "--name", name, "--net=host", "-l", label}, volume...)
		s.engine.Docker(append(append(args, image), command...)...)
	}
	start("dns", "app=dns", "", append([]string{"dnsmasq"}, dnsmasq("--bind-interfaces",
		"--listen-address=127.0.0.1,::1,10.0.0.1,172.17.0.1,fd00:10::1,fd00:17::1", "--server=192.0.2.53",
		"--txt-record=here.test,hello")...)...)
	start("web", "tier=web", nginxConf(t, 8080, "web"), "nginx", "-e", "stderr", "-c", "/conf")
	start("database", "tier=database", nginxConf(t, 5432, "database"), "nginx", "-e", "stderr", "-c", "/conf")
	start("proxy", "tier=proxy", haproxyConf(t), "haproxy", "-db", "-f", "/conf")
	s.untilListening(53, 80, 443, 5432, 8080, 8404, 9000)

	s.clients["process"] = probe.Start(s.In("shell"), "process")
	s.clients["run"] = s.labelledProbe("run", "app=shop")
	s.clients["run-web"] = s.labelledProbe("run-web", "tier=web")
	s.clients["host"] = s.engine.Probe("host", "--net=host", image)
	s.clients["bridge"] = s.engine.Probe("bridge", "--dns=172.17.0.1", image)
	s.clients["bridge-shop"] = s.engine.Probe("bridge-shop", "-l", "app=shop", image)
	s.clients["bridge-web"] = s.engine.Probe("bridge-web", "-l", "tier=web", image)
	s.until("all containers to be known", func(api.Status) bool {
		known := s.workloads("container")
		return len(known) == 6 && len(known["bridge-shop"].Networks) == 1 && len(known["bridge-web"].Networks) == 1
	})
	return s
}

// dnsmasq's arguments: nothing of the machine's is read.
func dnsmasq(more ...string) []string {
	return append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root",
		"--pid-file="}, more...)
}

// haproxyConf has a backend for each path: what the policy allows, and what not.
func haproxyConf(t *testing.T) string {
	conf := `
defaults
	mode http
	retries 0
	timeout connect 1s
	timeout client 5s
	timeout server 5s
resolvers here
	nameserver resolver 127.0.0.53:53
	hold nx 100ms
	timeout resolve 100ms
frontend public
	bind :::80 v4v6
	bind :::443 v4v6
	bind :::8404 v4v6
	use_backend %[path,field(2,/)]
backend web
	server web web.test:8080 resolvers here init-addr none resolve-prefer ipv4
`
	for name, address := range map[string]string{
		"ssh": "127.0.0.1:22", "database": "127.0.0.1:5432", "unlabelled": "127.0.0.1:9000", "world": "192.0.2.80:80",
	} {
		conf += fmt.Sprintf("backend %s\n\tserver %[1]s %s\n", name, address)
	}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	must(t, os.WriteFile(path, []byte(conf), 0o644))
	return path
}

// nameServer: dns-local.yaml, line by line.
func (s *services) nameServer(t *testing.T) {
	here4, here6 := "10.0.0.1", "fd00:10::1"
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"10.1.1.1", here4, true}, {"172.16.5.5", here4, true}, {"192.168.9.9", here4, true}, {"fc00::9", here6, true},
		{"192.0.2.7", here4, false}, {"2001:db8::7", here6, false},
		{"process", "127.0.0.1", true}, {"process", "::1", true}, {"process", here4, true},
		{"run", "127.0.0.1", true}, {"run", "::1", true},
		{"host", "127.0.0.1", true},
		{"bridge", "172.17.0.1", true}, {"bridge", "fd00:17::1", true}, {"bridge", here4, true},
		{"bridge-shop", "172.17.0.1", true}, {"bridge-shop", "fd00:17::1", true},
		// The name server lets them; their own policy lets them ask what is unlabelled, and this one is not.
		{"run-web", "127.0.0.1", false}, {"bridge-web", "172.17.0.1", false}, {"bridge-web", "fd00:17::1", false},
	} {
		if got := s.resolves(t, tt.from, tt.to); got != tt.want {
			t.Errorf("udp: %s asks %s: answered %t, want %t", tt.from, tt.to, got, tt.want)
		}
		if v := s.connect(tt.from, join(tt.to, 53)); v.Allowed() != tt.want {
			t.Errorf("tcp: %s → %s: %v, want connected %t", tt.from, tt.to, v, tt.want)
		}
	}
	// Names only, from whoever: the name server's container has another listener.
	s.engine.Docker("exec", "-d", "dns", "nc", "-l", "-p", "2222")
	s.untilListening(2222)
	for from, to := range map[string]string{"10.1.1.1": here4, "process": "127.0.0.1", "run": "127.0.0.1",
		"bridge": "172.17.0.1"} {
		if v := s.connect(from, join(to, 2222)); v.Allowed() {
			t.Errorf("tcp: %s → port 2222 of the name server: %v, want it denied", from, v)
		}
	}
	// It asks the world, on the ports of name servers and on no other.
	wantPage(t, "world", s.engine.Command(append([]string{"exec", "bridge"}, curl("http://example.test")...)...))
	wantPage(t, "world", s.engine.Command(append([]string{"exec", "dns"}, curl("http://192.0.2.53:853")...)...))
	wantPage(t, "", s.engine.Command(append([]string{"exec", "dns"}, curl("http://192.0.2.80")...)...))
	wantPage(t, "", s.engine.Command(append([]string{"exec", "dns"}, curl("http://127.0.0.1:9000")...)...))
}

// proxy: ingress-proxy.yaml, line by line, and the web tier behind it.
func (s *services) proxy(t *testing.T) {
	here4, here6 := "10.0.0.1", "fd00:10::1"
	fromWorld := func(source string, urls ...string) *exec.Cmd {
		args := curl(urls...)
		return s.world.In("world").Command(args[0], append([]string{"--interface", source}, args[1:]...)...)
	}
	wantPage(t, "webweb", fromWorld("192.0.2.7", "http://"+here4+"/web", "http://"+here4+":443/web"))
	wantPage(t, "webweb", fromWorld("2001:db8::7", "http://["+here6+"]/web", "http://["+here6+"]:443/web"))
	for _, path := range []string{"database", "unlabelled", "world", "ssh"} {
		status := fromWorld("192.0.2.7", "-o", "/dev/null", "-w", "%{http_code}", "http://"+here4+"/"+path)
		wantPage(t, "503", status) // the proxy does not reach it
	}
	for _, tt := range []struct{ from, to string }{
		{"192.0.2.7", join(here4, 8404)}, {"2001:db8::7", join(here6, 8404)},
		{"192.0.2.7", join(here4, 8080)}, {"192.0.2.7", join(here4, 5432)}, {"10.1.1.1", join(here4, 8080)},
	} {
		if v := s.connect(tt.from, tt.to); v.Outcome != probe.Silent {
			t.Errorf("%s → %s: %v, want silence", tt.from, tt.to, v)
		}
	}
	// "The world" is not this machine, whatever the address; nor does anybody here reach what is behind the proxy.
	for _, port := range []int{80, 443, 8080, 5432} {
		for from, addrs := range map[string][]string{
			"process": {"127.0.0.1", "::1", here4, here6}, "run": {"127.0.0.1", "::1", here4},
			"host":   {"127.0.0.1", here6},
			"bridge": {"172.17.0.1", "fd00:17::1", here4}, "bridge-shop": {"172.17.0.1", "fd00:17::1", here4},
		} {
			for _, to := range addrs {
				if v := s.connect(from, join(to, port)); v.Outcome != probe.Refused {
					t.Errorf("%s → %s: %v, want it refused", from, join(to, port), v)
				}
			}
		}
	}
	// And the web tier reaches the database, as a process, in a container and from a bridge.
	for from, to := range map[string]string{"run-web": "127.0.0.1", "bridge-web": "172.17.0.1"} {
		if v := s.connect(from, join(to, 5432)); !v.Allowed() {
			t.Errorf("%s → database: %v, want it connected", from, v)
		}
	}
	wantPage(t, "database", s.engine.Command(append([]string{"exec", "web"}, curl("http://127.0.0.1:5432")...)...))
}

// connect opens a connection from a client, or from an address outside.
func (s *services) connect(from, to string) probe.Verdict {
	s.t.Helper()
	client, source := s.client(from)
	conn, v := client.DialTo(probe.Target{To: to, From: source})
	if conn != nil {
		conn.Close()
	}
	return v
}

// client is the one of that name, or the stranger and his address.
func (s *services) client(name string) (client *probe.Process, source string) {
	if c := s.clients[name]; c != nil {
		return c, ""
	}
	return s.stranger, join(name, 0)
}

// resolves has a client ask the name server by UDP, which answers in order: once it has
// answered a later question, there is no other answer to wait for.
func (s *services) resolves(t *testing.T, from, server string) bool {
	t.Helper()
	ask := func(client *probe.Process, source string) *probe.UDPSocket {
		if source == "" {
			source = map[bool]string{false: "0.0.0.0:0", true: "[::]:0"}[strings.Contains(server, ":")]
		}
		u := client.OpenUDP("udp", source)
		u.Send(join(server, 53), query("here.test"))
		s.Barrier()
		return u
	}
	answered := func(u *probe.UDPSocket) bool {
		received := u.Received()
		return len(received) > 0 && strings.Contains(received[0].Data, "hello")
	}
	first, later := ask(s.client(from)), ask(s.client("process"))
	defer first.Close()
	defer later.Close()
	nstest.WaitFor(t, 5*time.Second, "an answer", func() bool { return answered(later) })
	return answered(first)
}

// query is a DNS message that asks for the text of a name (RFC 1035, 4.1). All its
// bytes are ASCII.
func query(name string) string {
	var b strings.Builder
	b.WriteString("id\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00") // id, recursion desired, one question
	for label := range strings.SplitSeq(name, ".") {
		b.WriteByte(byte(len(label)))
		b.WriteString(label)
	}
	b.WriteString("\x00\x00\x10\x00\x01") // TXT, IN
	return b.String()
}
