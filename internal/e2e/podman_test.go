package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/doctor"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

var podmanStarts = flag.Int("podman-starts", 4, "containers of Podman that are started, on each kind of network")

// notJudged returns a status's problems of code container-not-judged.
func notJudged(s api.Status) []condition.Condition {
	other := func(c condition.Condition) bool { return c.Code != condition.ContainerNotJudged }
	return slices.DeleteFunc(slices.Clone(s.Problems), other)
}

// healthy reports whether thole status exits 0, and returns what it writes.
func (m *machine) healthy() (bool, string) {
	m.t.Helper()
	out, err := m.Command(m.thole, "status").CombinedOutput()
	return err == nil, string(out)
}

// newPodmanMachine is a machine with a Podman that the daemon follows.
func newPodmanMachine(t *testing.T) (*machine, *engine.Podman) {
	t.Helper()
	m := newMachine(t, followDocker)
	p := engine.StartPodman(t, m.Host)
	m.untilFollowed()
	return m, p
}

// untilFollowed waits until the engine answers the daemon.
func (m *machine) untilFollowed() {
	m.t.Helper()
	m.until("the daemon to follow the engine", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })
}

// A labelled container of Podman runs before the daemon starts. The program of before leaves it open, although a policy
// selects it; this one does not.
func TestPodmanContainersAreJudged(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		p := engine.StartPodman(t, m.Host)
		p.Probe("billing", "--net=host", "-l", "app=web", p.Image("box", nil)).Listen("tcp", "127.0.0.1:80")
		m.start(followDocker)
		m.until("the container to be known", func(s api.Status) bool {
			return s.Docker != nil && s.Docker.Connected && s.Docker.Containers == 1 && (old || s.Workloads == 1)
		})
		must(t, m.apply(isolating("web", "{matchLabels: {app: web}}")))
		if v := probe.Start(m.In("elsewhere"), "free").TCP("127.0.0.1:80"); v.Allowed() != old {
			t.Errorf("an unlabelled program: %v, want it connected: %t", v, old)
		}
		if ok, out := m.healthy(); !ok && !old {
			t.Errorf("status exits 1:\n%s", out)
		}
	})
}

// Podman's containers on the host network, on the default bridge and on a network of their own are workloads with the
// labels that a person gave, and stay so when the container, the daemon or Podman's service starts again.
func TestPodmanStory(t *testing.T) {
	m, p := newPodmanMachine(t)
	image := p.Image("story", map[string]string{"maintainer": "somebody", "app": "image"})
	p.Podman("network", "create", "--subnet=10.90.0.0/24", "shop")
	arguments := map[string][]string{
		"web": {"--net=host", "-l", "app=web"}, "host-web": {"--net=host", "-l", "app=web"},
		"host-db": {"--net=host", "-l", "app=db"}, "host-none": {"--net=host"},
		"bridge-web": {"-l", "app=web"}, "bridge-db": {"-l", "app=db"},
		"shop-web": {"--net=shop", "-l", "app=web"}, "shop-db": {"--net=shop", "-l", "app=db"},
		"shop-none": {"--net=shop"},
	}
	gateways := map[string]string{"host": "127.0.0.1:80", "bridge": "10.88.0.1:80", "shop": "10.90.0.1:80"}
	clients := map[string]*probe.Process{}
	for name, args := range arguments {
		clients[name] = p.Probe(name, append(args, image)...)
	}
	check := func(when string) {
		t.Helper()
		m.until(when+", the containers to be known", func(s api.Status) bool {
			known := m.workloads("container")
			connected := func(name string) bool { return len(known[name].Networks) == 1 }
			return s.Workloads == 7 && connected("bridge-web") && connected("bridge-db") && connected("shop-web") &&
				connected("shop-db")
		})
		for name, client := range clients {
			network, label, _ := strings.Cut(name, "-")
			if v := client.TCP(gateways[network]); v.Allowed() != (label == "web") {
				t.Errorf("%s, %s → web: %v, want it connected: %t", when, name, v, label == "web")
			}
		}
		if ok, out := m.healthy(); !ok {
			t.Errorf("%s, status exits 1:\n%s", when, out)
		}
	}
	listening := func() {
		web := p.ProbeAgain("web")
		web.Listen("tcp", "[::]:80")
	}
	clients["web"].Listen("tcp", "[::]:80")
	delete(clients, "web")
	check("first")
	for name, facts := range map[string][2]string{
		"web": {"host", "libpod_parent/libpod-"}, "bridge-web": {"bridge", "libpod_parent/libpod-"},
		"shop-web": {"shop", "libpod_parent/libpod-"},
	} {
		w := m.workloads("container")[name]
		if !maps.Equal(w.Labels, map[string]string{"app": "web"}) ||
			!maps.Equal(w.Doubtful, map[string]string{"maintainer": "somebody"}) {
			t.Errorf("%s: labels %v, doubtful %v", name, w.Labels, w.Doubtful)
		}
		if w.Facts["thole/network"] != facts[0] || w.Facts["thole/image"] != image+":latest" ||
			w.Facts["thole/uid"] != "0" || !strings.HasPrefix(w.Cgroup, facts[1]) {
			t.Errorf("%s: facts %v, cgroup %s", name, w.Facts, w.Cgroup)
		}
	}

	p.Podman("restart", "-t=0", "web")
	listening()
	check("after a restart of the container")
	m.daemon.Kill()
	_ = m.daemon.Wait() // it was killed
	m.start(followDocker)
	check("after a restart of the daemon")
	p.Restart()
	m.untilFollowed()
	p.Podman("restart", "-t=0", "web")
	listening()
	check("after a restart of Podman's service")
	p.Podman("rm", "-f", "-t=0", "host-web", "shop-web")
	m.until("the end of two containers", func(s api.Status) bool { return s.Workloads == 5 })
}

// Containers of a pod have labels of their own. The pod's infra container has none.
func TestPodmanPod(t *testing.T) {
	m, p := newPodmanMachine(t)
	image := p.Image("box", nil)
	p.Podman("pod", "create", "--name=shop", "--network=host", "--share-parent=false", "--infra-image="+image,
		"--infra-command=/bin/sleep 1000")
	web := p.Probe("web", "--pod=shop", "-l", "app=web", image)
	same := p.Probe("same", "--pod=shop", "-l", "app=web", image)
	db := p.Probe("db", "--pod=shop", "-l", "app=db", image)
	free := probe.Start(m.In("elsewhere"), "free")
	check := func(when string) {
		t.Helper()
		m.untilWorkloads("web", "same", "db")
		web.Listen("tcp", "127.0.0.1:80")
		allowed(t, when+": a container with the same label", same.TCP("127.0.0.1:80"))
		denied(t, when+": a container with another label", db.TCP("127.0.0.1:80"))
		denied(t, when+": an unlabelled program", free.TCP("127.0.0.1:80"))
		if ok, out := m.healthy(); !ok {
			t.Errorf("%s: status exits 1:\n%s", when, out)
		}
	}
	check("first")
	p.Podman("pod", "restart", "shop")
	web, same, db = p.ProbeAgain("web"), p.ProbeAgain("same"), p.ProbeAgain("db")
	check("after a restart")
}

// Containers of a pod on a bridge share the network namespace of the pod's infra container. That one has no labels, and
// does not count: with equal labels, they have what their labels have. With different ones, they have what all have.
func TestPodmanPodOnABridge(t *testing.T) {
	m, p := newPodmanMachine(t)
	image := p.Image("box", nil)
	p.Probe("server", "--net=host", "-l", "app=web", image).Listen("tcp", "[::]:80")
	p.Podman("pod", "create", "--name=shop", "--share-parent=false", "--infra-image="+image,
		"--infra-command=/bin/sleep 1000")
	web := p.Probe("web", "--pod=shop", "-l", "app=web", image)
	same := p.Probe("same", "--pod=shop", "-l", "app=web", image)
	m.untilWorkloads("server", "web", "same")
	m.until("nothing to be said", func(s api.Status) bool { return len(s.Notices)+len(s.Problems) == 0 })
	allowed(t, "a container of the pod", web.TCP("10.88.0.1:80"))
	allowed(t, "another one with the same label", same.TCP("10.88.0.1:80"))
	p.Probe("db", "--pod=shop", "-l", "app=db", image)
	m.until("the notice", func(s api.Status) bool {
		return len(s.Notices) == 1 && s.Notices[0].Code == condition.NetworkShared
	})
	denied(t, "beside a container with another label", web.TCP("10.88.0.1:80"))
}

// Containers of Podman whose first instructions send, started while both cores are busy: what is forbidden never
// arrives, and what is allowed arrives when they are known.
func TestPodmanContainersAreKnownBeforeTheySend(t *testing.T) {
	for _, tt := range []struct {
		name, hook string
		to         [4]byte
	}{{"host", "output", localhost}, {"bridge", "prerouting", [4]byte{10, 88, 0, 1}}} {
		t.Run(tt.name, func(t *testing.T) {
			m, p := newPodmanMachine(t)
			next := probe.AfterSend{Linger: 500 * time.Millisecond, Again: true}
			s := newSceneOn(t, m, tt.hook, probe.SenderProgram(tt.to, next, 4001, 4002), p.Image)
			began := time.Now()
			each(*podmanStarts, func(name string) {
				p.Podman("run", "-d", "--name="+name, "--net="+tt.name, "-l", "app=web", s.image, "sender")
			})
			t.Logf("%d starts took %v", *podmanStarts, time.Since(began))
			nstest.WaitFor(t, time.Minute, "what is allowed to arrive from all containers", func() bool {
				return senders(s.allowed.Received()) == *podmanStarts
			})
			sent := s.sent("forbidden")
			if got := len(s.forbidden.Received()); got != 0 || sent < *podmanStarts {
				t.Errorf("%d forbidden packets arrived of %d that were sent", got, sent)
			}
		})
	}
}

// A host has both engines. The containers of the one that the daemon does not follow are a problem, while they run.
func TestContainersOfTheOtherEngine(t *testing.T) {
	m := bareMachine(t)
	e := engine.StartDocker(t, m.Host)
	p := engine.StartPodmanAt(t, m.Host, "/run/podman.sock")
	p.Podman("run", "-d", "--name=web", "--net=host", "-l", "app=web", p.Image("box", nil), "sleep", "1000")
	e.Docker("run", "-d", "--name=db", "--net=host", "-l", "app=db", e.Image("box", nil), "sleep", "1000")
	for _, tt := range []struct{ docker, workload, other, problem string }{
		{followDocker, "db", "podman", "libpod_parent/libpod-"},
		{"--docker=unix:///run/podman.sock", "web", "docker", "docker/"},
	} {
		m.start(tt.docker)
		m.untilWorkloads(tt.workload)
		m.until("the problem of the other", func(s api.Status) bool {
			found := notJudged(s)
			return len(found) == 1 && strings.HasPrefix(found[0].Where, tt.problem)
		})
		if ok, out := m.healthy(); ok {
			t.Errorf("%s: status exits 0, want 1:\n%s", tt.docker, out)
		}
		if tt.other == "podman" {
			p.Podman("stop", "-t=0", "web")
			m.until("no problem", func(s api.Status) bool { return len(notJudged(s)) == 0 })
			p.Podman("start", "web")
		}
		m.daemon.Kill()
		_ = m.daemon.Wait() // it was killed
	}
}

// A Podman container whose network mode is unknown is a problem from its start to its end. Nobody names Podman's
// socket: then a running container is a problem, too.
func TestPodmanProblems(t *testing.T) {
	m := newMachine(t, followDocker)
	p := engine.StartPodman(t, m.Host)
	image := p.Image("box", nil)
	m.Shell("ip netns add apart")
	p.Podman("run", "-d", "--name=apart", "--net=ns:/run/netns/apart", image, "sleep", "1000")
	const mode = `container apart: its network mode "ns:/run/netns/apart" is unknown: no policy protects or`
	m.until("the problem", func(s api.Status) bool {
		found := notJudged(s)
		return len(found) == 1 && strings.HasPrefix(found[0].String(), mode)
	})
	p.Podman("rm", "-f", "-t=0", "apart")
	m.until("no problem", func(s api.Status) bool { return len(s.Problems) == 0 })
	m.daemon.Kill()
	_ = m.daemon.Wait() // it was killed
	p.Stop()
	m.start()
	if ok, out := m.healthy(); !ok {
		t.Errorf("no container runs, and status exits 1:\n%s", out)
	}
	p.Podman("run", "-d", "--name=web", "--net=host", "-l", "app=web", image, "sleep", "1000")
	m.until("the problem that no engine answers", func(s api.Status) bool {
		return len(s.Problems) == 1 && s.Problems[0].Code == condition.DockerAway
	})
}

// Containers of Docker are judged, however they start, restart and end meanwhile.
func TestDockerContainersAreNeverNotJudged(t *testing.T) {
	containers := max(4, *starts/2)
	m, e := newDockerMachine(t)
	image := e.Image("box", nil)
	e.Docker("network", "create", "shop")
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Docker("run", "-d", "--name=unstable", "--net=host", "--restart=always", "-l", "app=a", image, "sleep", "0.1")
		var names []string
		for i := range containers {
			names = append(names, fmt.Sprintf("sender-%d", i))
		}
		each(containers, func(name string) {
			network := []string{"host", "bridge", "none", "shop"}[name[len(name)-1]%4]
			e.Docker("run", "-d", "--init", "--name="+name, "--net="+network, "-l", "app=web", image, "sleep", "1000")
		})
		for _, command := range [][]string{{"restart", "-t=0"}, {"stop", "-t=0"}, {"start"}} {
			e.Docker(append(command, names...)...)
		}
		e.Docker("pause", "sender-0", "sender-1")
		e.Docker("network", "disconnect", "shop", "sender-3") // its network mode is shop all the same
		e.Docker(append([]string{"rm", "-f"}, names...)...)
	}()
	// The daemon's socket, past the namespaces: a process for each question would cost more than all else here.
	client := api.NewClient(fmt.Sprintf("/proc/%d/root/run/thole/thole.sock", m.daemon.Pid))
	polls := 0
	nstest.WaitFor(t, 5*time.Minute, "the containers to come and go", func() bool {
		s, err := client.Status(t.Context())
		must(t, err)
		polls++
		for _, c := range notJudged(s) {
			t.Errorf("poll %d: %s", polls, c)
		}
		select {
		case <-done:
			return s.Docker.Containers == 1
		default:
			return false
		}
	})
	t.Logf("%d polls", polls)
	if log := m.daemon.Output(); strings.Contains(log, string(condition.ContainerNotJudged)) {
		t.Errorf("the daemon had the problem between two polls")
	}
}

// thole doctor names the engine that it is told of.
func TestDoctorNamesTheEngine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		start  func(*testing.T, *nstest.Host)
		docker string // --docker; "": not given
		want   doctor.Finding
		exit   int
	}{
		{"Docker", func(t *testing.T, h *nstest.Host) { engine.StartDocker(t, h) }, "unix:///run/docker.sock",
			doctor.Finding{Status: doctor.OK, Found: "Docker 2"}, 0},
		{"Podman", func(t *testing.T, h *nstest.Host) { engine.StartPodman(t, h) }, "unix:///run/docker.sock",
			doctor.Finding{Status: doctor.OK, Found: "Podman 4"}, 0},
		{"Podman at the usual place", func(t *testing.T, h *nstest.Host) { engine.StartPodman(t, h) }, "",
			doctor.Finding{Status: doctor.OK, Found: "Podman 4"}, 0},
		{"none", func(*testing.T, *nstest.Host) {}, "", doctor.Finding{Status: doctor.OK, Found: "none at "}, 0},
		{"none where one should be", func(*testing.T, *nstest.Host) {}, "unix:///run/docker.sock",
			doctor.Finding{Status: doctor.Unknown, Found: "unix:///run/docker.sock: "}, 1},
		{"off", func(*testing.T, *nstest.Host) {}, "off",
			doctor.Finding{Status: doctor.OK, Found: "none is followed"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := bareMachine(t)
			tt.start(t, m.Host)
			args := []string{"doctor", "-o", "json"}
			if tt.docker != "" {
				args = append(args, "--docker", tt.docker)
			}
			var answer struct{ Findings []doctor.Finding }
			cmd := m.Command(m.thole, args...)
			decode(t, cmd, &answer)
			if got := cmd.ProcessState.ExitCode(); got != tt.exit {
				t.Errorf("exit status %d, want %d", got, tt.exit)
			}
			at := slices.IndexFunc(answer.Findings, func(f doctor.Finding) bool { return f.Check == "engine" })
			if at < 0 {
				t.Fatalf("no finding about the engine: %+v", answer.Findings)
			}
			got := answer.Findings[at]
			if got.Status != tt.want.Status || !strings.HasPrefix(got.Found, tt.want.Found) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// The commands of docs/CONTAINERS.md that start containers make the workloads that the page says, with either engine.
func TestContainersPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/CONTAINERS.md")
	must(t, err)
	commands := regexp.MustCompile(`(?m)^# (docker|podman) (run -d --name (\S+) .*-l app=(\S+)) my/\S+$`)
	shown := commands.FindAllStringSubmatch(string(page), -1)
	for engineName, want := range map[string]int{"docker": 2, "podman": 1} {
		t.Run(engineName, func(t *testing.T) {
			m := newMachine(t, followDocker)
			var run func(args ...string) string
			var image string
			if engineName == "docker" {
				e := engine.StartDocker(t, m.Host)
				run, image = e.Docker, e.Image("my", nil)
			} else {
				p := engine.StartPodman(t, m.Host)
				run, image = p.Podman, p.Image("my", nil)
			}
			labels := map[string]string{}
			for _, match := range shown {
				if match[1] == engineName {
					run(append(strings.Fields(match[2]), image, "sleep", "1000")...)
					labels[match[3]] = match[4]
				}
			}
			if len(labels) != want {
				t.Fatalf("the page shows %d containers of %s, want %d", len(labels), engineName, want)
			}
			for name, w := range m.untilWorkloads(slices.Collect(maps.Keys(labels))...) {
				if w.Labels["app"] != labels[name] {
					t.Errorf("%s: labels %v, want app=%s", name, w.Labels, labels[name])
				}
			}
		})
	}
}
