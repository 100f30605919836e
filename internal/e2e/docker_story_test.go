package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

// bridge6 gives Docker's default bridge IPv6 as well: 172.17.0.1 and fd00:17::1 are
// the node's own addresses there.
var bridge6 = []string{"--ipv6", "--fixed-cidr-v6=fd00:17::/64"}

// The story of those who share the host's network, as its users typed it: nginx and
// curl are Debian's, Docker is Docker, and both versions of IP are asked.
func TestStory(t *testing.T) {
	m := bareMachine(t)
	e := engine.StartDocker(t, m.Host, bridge6...)
	image := e.Image("story", map[string]string{"maintainer": "NGINX Docker Maintainers"}, "nginx", "curl")
	other := m.In("shell").Start("nginx", "-e", "stderr", "-c", nginxConf(t, 9000, "unlabelled"))
	m.untilListening(9000)
	free := probe.Start(m.In("shell"), "free")
	free.Listen("tcp", "127.0.0.1:9001")
	e.Docker("run", "-d", "--init", "--name=plain", image, "sleep", "1000") // the bridge is up from now on
	before := m.rulesOfOthers()
	live, v := free.Dial("127.0.0.1:9001")
	if live == nil {
		t.Fatalf("before Thole: %v", v)
	}

	// 1. Start the daemon: containers and processes.
	m.start(followDocker)
	m.until("the daemon to follow Docker", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })

	// 2. A container on the host's network, with a label.
	e.Docker("run", "-d", "--name=nginx", "--net=host", "-l", "app=nginx", "-v", nginxConf(t, 80, "nginx")+
		":/nginx.conf",
		image, "nginx", "-e", "stderr", "-c", "/nginx.conf")
	if mode := e.Docker("inspect", "--format={{.HostConfig.NetworkMode}}", "nginx"); mode != "host" {
		t.Errorf("NetworkMode is %q, want host", mode)
	}
	m.untilListening(80)

	onHost := func(args ...string) *exec.Cmd { return m.In("shell").Command(args[0], args[1:]...) }
	run := func(label string, args ...string) *exec.Cmd {
		return onHost(append([]string{m.thole, "run", "--label=" + label}, args...)...)
	}
	docker := func(args ...string) *exec.Cmd { return e.Command(append([]string{"run", "--rm"}, args...)...) }
	bridge := []string{"http://172.17.0.1", "http://[fd00:17::1]"}
	all := append([]string{"http://127.0.0.1", "http://[::1]"}, bridge...)

	t.Run("3 and 7: the host", func(t *testing.T) {
		for _, url := range all {
			wantPage(t, "", onHost(curl(url)...))
			wantPage(t, "unlabelled", onHost(curl(url+":9000")...))
		}
	})
	t.Run("4: a container on the default bridge", func(t *testing.T) {
		wantPage(t, "nginxnginx", docker(append([]string{"-l", "app=nginx", image}, curl(bridge...)...)...))
		wantPage(t, "", docker(append([]string{"-l", "app=web", image}, curl(bridge...)...)...))
		wantPage(t, "", e.Command(append([]string{"exec", "plain"}, curl(bridge...)...)...))
		wantPage(t, "unlabelled", e.Command(append([]string{"exec", "plain"}, curl("http://172.17.0.1:9000")...)...))
	})
	t.Run("4: and on the host's network", func(t *testing.T) {
		wantPage(t, "nginxnginxnginxnginx",
			docker(append([]string{"--net=host", "-l", "app=nginx", image}, curl(all...)...)...))
		wantPage(t, "", docker(append([]string{"--net=host", image}, curl(all...)...)...))
		wantPage(t, "nginx", e.Command(append([]string{"exec", "nginx"}, curl(all[0])...)...))
		// Or in the network of one that is there.
		wantPage(t, "nginx", docker(append([]string{"--net=container:nginx", "-l", "app=nginx", image},
			curl(all[0])...)...))
		wantPage(t, "", docker(append([]string{"--net=container:nginx", "-l", "app=web", image},
			curl(all[:2]...)...)...))
	})
	t.Run("5: a process with the labels", func(t *testing.T) {
		for _, url := range all {
			words := curl(url)
			wantPage(t, "nginx", run("app=nginx", append([]string{"curl", "--"}, words[1:]...)...))
			wantPage(t, "", run("app=web", append([]string{"--"}, words...)...))
		}
	})
	t.Run("6: a process is protected, and all that a shell starts carries its labels", func(t *testing.T) {
		m.In("shell").Start(m.thole, "run", "--label=app=web", "nginx", "--", "-e", "stderr", "-c",
			nginxConf(t, 8080, "web"))
		m.untilListening(8080)
		for _, url := range all {
			get := strings.Join(curl("'"+url+":8080'"), " ")
			shell := run("app=web", "/bin/bash")
			shell.Stdin = strings.NewReader(get + "; (" + get + "); sh -c \"setsid " + get + "\"\n")
			wantPage(t, "webwebweb", shell)
			wantPage(t, "", onHost(curl(url+":8080")...))
			wantPage(t, "", run("app=nginx", append([]string{"--"}, curl(url+":8080")...)...))
		}
	})
	t.Run("7: nothing else is affected", func(t *testing.T) {
		if outcome := live.Send("still there?\n"); outcome != probe.Connected {
			t.Errorf("a connection from before: %v", outcome)
		}
		if answer, _ := live.Receive(time.Second); answer != "free\n" {
			t.Errorf("a connection from before: it answers %q", answer)
		}
		var after []string
		defer func() {
			if t.Failed() {
				t.Logf("others' rules and settings (-before +after):\n%s", cmp.Diff(before, after))
			}
		}()
		nstest.WaitFor(t, 5*time.Second, "others' rules and settings to be what they were", func() bool {
			after = m.rulesOfOthers() // the last container's routes may be going still
			return slices.Equal(after, before)
		})
		select {
		case <-other.Done():
			t.Error("a server from before has ended")
		default:
		}
	})
	t.Run("both protocols", func(t *testing.T) { everyPair(t, m, e, image) })
}

// everyPair has all kinds of clients connect to both kinds of servers with the label
// app=nginx, by TCP and by UDP: only equal labels get through.
func everyPair(t *testing.T, m *machine, e *engine.Docker, image string) {
	servers := []*probe.Process{
		e.Probe("server", "--net=host", "-l", "app=nginx", image),
		m.labelledProbe("process", "app=nginx"),
	}
	clients := []struct {
		*probe.Process
		allowed, bridge bool
	}{
		{m.labelledProbe("same", "app=nginx"), true, false},
		{m.labelledProbe("other", "app=web"), false, false},
		{probe.Start(m.In("shell"), "host"), false, false},
		{e.Probe("host-same", "--net=host", "-l", "app=nginx", image), true, false},
		{e.Probe("host-more", "--net=host", "-l", "app=nginx", "-l", "env=dev", image), false, false},
		{e.Probe("host-none", "--net=host", image), false, false},
		{e.Probe("bridge-same", "-l", "app=nginx", image), true, true},
		{e.Probe("bridge-other", "-l", "app=web", image), false, true},
		{e.Probe("bridge-none", image), false, true},
	}
	m.until("the bridge's containers to be known", func(s api.Status) bool {
		known := m.workloads("container")
		return len(known["bridge-same"].Networks) == 1 && len(known["bridge-other"].Networks) == 1
	})
	for i, server := range servers {
		port := 5300 + i
		server.Listen("tcp", join("::", port))
		socket := server.OpenUDP("udp", join("::", port))
		for _, c := range clients {
			for _, ip := range []string{"172.17.0.1", "fd00:17::1", "127.0.0.1", "::1"} {
				if c.bridge && !slices.Contains([]string{"172.17.0.1", "fd00:17::1"}, ip) {
					continue // its own loopback
				}
				addr := join(ip, port)
				if v := c.TCP(addr); v.Allowed() != c.allowed {
					t.Errorf("tcp %s → %s at %s: %v, want connected %t", c.Name, server.Name, addr, v, c.allowed)
				}
				if got := dialogue(c.Process, addr, socket); (got == "arrived, answered") != c.allowed || !c.allowed &&
					got != string(probe.Prohibited) {
					t.Errorf("udp %s → %s at %s: %s, want it answered %t", c.Name, server.Name, addr, got, c.allowed)
				}
			}
		}
	}
}

// dialogue sends a datagram from a new socket, an answer if it arrives, and says what
// came of it.
func dialogue(c *probe.Process, to string, server *probe.UDPSocket) string {
	any := "0.0.0.0:0"
	if strings.HasPrefix(to, "[") {
		any = "[::]:0"
	}
	s := c.OpenUDP("udp", any)
	defer s.Close()
	v := s.Try(to, server)
	if !v.Allowed() {
		return v.String()
	}
	received := server.Received()
	server.Send(received[len(received)-1].From, "answer")
	if !s.Got("answer") {
		return "arrived, not answered"
	}
	return "arrived, answered"
}

// curl is a command line that asks for pages, one after the other, and does not wait
// for ever. Its status is that of the last.
func curl(urls ...string) []string {
	return append([]string{"curl", "-sS", "--max-time", "5"}, urls...)
}

// wantPage runs a command that ends with curl's status. Where the page is "", nothing
// must have come, and the connection must have been refused at once.
func wantPage(t *testing.T, page string, cmd *exec.Cmd) {
	t.Helper()
	const couldNotConnect = 7 // curl(1), EXIT CODES; 28 is a time-out
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case page == "" && errors.As(err, &exit) && exit.ExitCode() == couldNotConnect:
	case page == "" || err != nil || string(out) != page:
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Errorf("%q: %q, %v, want the page %q", cmd.Args, out, err, page)
	}
}

// nginxConf is the configuration of a server that says the same word to everybody,
// and keeps nothing where the machine's own nginx would.
func nginxConf(t *testing.T, port int, says string) string {
	t.Helper()
	conf := fmt.Sprintf("daemon off; pid /run/nginx-%d.pid; error_log stderr; events {}\n", port) +
		"http {\n\taccess_log off;\n"
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		conf += fmt.Sprintf("\t%s_temp_path /run/nginx-%d-%[1]s;\n", what, port)
	}
	conf += fmt.Sprintf("\tserver { listen [::]:%d ipv6only=off; return 200 %q; }\n}\n", port, says)
	path := filepath.Join(t.TempDir(), "nginx.conf")
	must(t, os.WriteFile(path, []byte(conf), 0o644))
	return path
}

// untilListening waits until somebody listens on a TCP port of the host's network.
func (m *machine) untilListening(ports ...int) {
	m.t.Helper()
	for _, port := range ports {
		nstest.WaitFor(m.t, 10*time.Second, fmt.Sprintf("a listener on port %d", port), func() bool {
			return m.Shell(fmt.Sprintf("ss -Hltn 'sport = :%d'", port)) != ""
		})
	}
}

// rulesOfOthers is all of the host's network that others have set, line by line.
func (m *machine) rulesOfOthers() []string {
	m.t.Helper()
	return strings.Split(m.Shell(`
		(iptables-save; ip6tables-save) | sed '/^#/d; s/ \[[0-9:]*\]$//'
		nft list tables | sed '/ thole$/d'
		ip rule; ip -6 rule; ip route show table all | sort
		sysctl -a --pattern '^net\.' 2>/dev/null | sed /nf_conntrack_count/d`), "\n")
}
