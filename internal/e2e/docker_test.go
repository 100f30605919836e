package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
	"thole/watch/cgroupfs"
)

// followDocker is how the daemon finds the engine of a host.
const followDocker = "--docker=unix:///run/docker.sock"

// newDockerMachine is a machine with an engine that the daemon follows.
func newDockerMachine(t *testing.T, flags ...string) (*machine, *engine.Docker) {
	t.Helper()
	m := newMachine(t, followDocker)
	e := engine.StartDocker(t, m.Host, flags...)
	m.until("the daemon to follow Docker", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })
	return m, e
}

// until waits until the daemon's status is as wanted.
func (m *machine) until(what string, ok func(api.Status) bool) {
	m.t.Helper()
	var s api.Status
	defer func() {
		if m.t.Failed() {
			m.t.Logf("the daemon's status: %+v", s)
		}
	}()
	nstest.WaitFor(m.t, 20*time.Second, what, func() bool {
		s = api.Status{}
		m.ask(&s, "status")
		return ok(s)
	})
}

// ask reads what a command answers in JSON. (status fails where there is a problem to tell of.)
func (m *machine) ask(answer any, command ...string) {
	m.t.Helper()
	decode(m.t, m.Command(m.thole, append(command, "-o", "json")...), answer)
}

// decode reads what a command writes in JSON, also where it fails in the end.
func decode(t testing.TB, cmd *exec.Cmd, answer any) {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, _ := cmd.Output() // what failed is in the answer
	if err := json.Unmarshal(out, answer); err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, errs.String())
	}
}

// workloads are those of a kind whose cgroup lives, by name.
func (m *machine) workloads(kind string) map[string]api.Workload {
	m.t.Helper()
	var list []api.Workload
	m.ask(&list, "get", "workloads")
	root, err := cgroupfs.RootAt(m.CgroupDir(""))
	must(m.t, err)
	found := map[string]api.Workload{}
	for _, w := range list {
		// The test's ends of a probe's connections hold the cgroup after its end.
		if lives, err := root.Lives(w.ID); err == nil && lives && w.Kind == kind {
			found[w.Name] = w
		}
	}
	return found
}

func (m *machine) untilWorkloads(names ...string) map[string]api.Workload {
	m.t.Helper()
	var found map[string]api.Workload
	nstest.WaitFor(m.t, 20*time.Second, fmt.Sprintf("the containers %q to be the workloads", names), func() bool {
		found = m.workloads("container")
		if len(found) != len(names) {
			return false
		}
		return !slices.ContainsFunc(names, func(n string) bool { _, ok := found[n]; return !ok })
	})
	return found
}

// Containers on the host's network are isolated by their labels, as in the README's story.
func TestContainersOfTheHostNetwork(t *testing.T) {
	m, e := newDockerMachine(t)
	image := e.Image("nginx", map[string]string{"maintainer": "somebody", "app": "image"})
	web := e.Probe("web", "--net=host", "-l", "app=nginx", image)
	web.Listen("tcp", "[::]:80")
	known := m.untilWorkloads("web")["web"]

	if got, want := known.Labels, map[string]string{"app": "nginx"}; !maps.Equal(got, want) {
		t.Errorf("user labels %v, want %v: the image's do not count", got, want)
	}
	if got, want := known.Doubtful, map[string]string{"maintainer": "somebody"}; !maps.Equal(got, want) {
		t.Errorf("doubtful labels %v, want %v", got, want)
	}
	for key, want := range map[string]string{
		"thole/kind": "container", "thole/container": "web",
		"thole/image": image, "thole/network": "host", "thole/uid": "0",
	} {
		if known.Facts[key] != want {
			t.Errorf("%s is %q, want %q", key, known.Facts[key], want)
		}
	}
	if want := e.Cgroup("web"); known.ID != want.ID() || "/"+known.Cgroup != want.Path() {
		t.Errorf("its cgroup is %s (%d), want %s (%d)", known.Cgroup, known.ID, want.Path(), want.ID())
	}

	host := probe.Start(m.In("shell"), "host")
	same := m.labelledProbe("curl", "app=nginx")
	other := m.labelledProbe("psql", "app=db")
	plain := e.Probe("plain", "--net=host", image)
	for _, addr := range []string{"127.0.0.1:80", "[::1]:80"} {
		for _, tt := range []struct {
			from *probe.Process
			want bool
		}{{host, false}, {same, true}, {other, false}, {plain, false}} {
			if v := tt.from.TCP(addr); v.Allowed() != tt.want {
				t.Errorf("%s → %s: %v, want connected %t", tt.from.Name, addr, v, tt.want)
			}
		}
	}
	host.Listen("tcp", "127.0.0.1:9090")
	if v := plain.TCP("127.0.0.1:9090"); v.Server != "host" {
		t.Errorf("an unlabelled container → an unlabelled process: %v, want it connected", v)
	}
}

// What Docker does to a container is followed.
func TestContainersComeAndGo(t *testing.T) {
	m, e := newDockerMachine(t)
	image := e.Image("box", nil)
	e.Docker("run", "-d", "--init", "--name=web", "--net=host", "-l", "app=web", image, "sleep", "1000")
	first := m.untilWorkloads("web")["web"]

	e.Docker("pause", "web")
	e.Docker("rename", "web", "shop")
	e.Docker("unpause", "shop")
	if again := m.untilWorkloads("shop")["shop"]; again.ID != first.ID {
		t.Errorf("renamed, its cgroup is %d, want %d", again.ID, first.ID)
	}
	e.Docker("restart", "-t=1", "shop")
	nstest.WaitFor(t, 10*time.Second, "the restarted container's new cgroup", func() bool {
		again := m.workloads("container")["shop"]
		return again.ID == e.Cgroup("shop").ID() && again.ID != first.ID
	})
	e.Docker("stop", "-t=1", "shop")
	m.untilWorkloads()
	e.Docker("start", "shop")
	m.untilWorkloads("shop")
	e.Docker("rm", "-f", "shop")
	m.untilWorkloads()
}

// While Docker is away, what is known stays; so it does where the daemon is started
// again meanwhile.
func TestDockerGoesAway(t *testing.T) {
	m, e := newDockerMachine(t, "--live-restore")
	image := e.Image("box", nil)
	web := e.Probe("web", "--net=host", "-l", "app=web", image)
	plain := e.Probe("plain", "--net=host", image)
	web.Listen("tcp", "127.0.0.1:80")
	plain.Listen("tcp", "127.0.0.1:81")
	m.untilWorkloads("web")
	same := m.labelledProbe("same", "app=web")
	stands := func(when string) {
		t.Helper()
		m.untilWorkloads("web")
		if v := same.TCP("127.0.0.1:80"); v.Server != "web" {
			t.Errorf("%s, same → web: %v, want it connected", when, v)
		}
		if v := plain.TCP("127.0.0.1:80"); v.Allowed() {
			t.Errorf("%s, plain → web: %v, want it denied", when, v)
		}
		if v := probe.Start(m.In("shell"), "shell").TCP("127.0.0.1:81"); v.Server != "plain" {
			t.Errorf("%s, shell → plain: %v, want it connected", when, v)
		}
	}
	stands("with Docker")

	e.Kill()
	m.until("the daemon to miss Docker", func(s api.Status) bool { return !s.Docker.Connected })
	stands("without Docker")
	must(t, m.daemon.Signal(syscall.SIGTERM))
	must(t, m.daemon.Wait())
	m.start(followDocker)
	stands("without Docker and after a restart")

	e.Start()
	m.until("the daemon to find Docker", func(s api.Status) bool { return s.Docker.Connected })
	stands("with Docker again")
	e.Docker("rm", "-f", "web")
	m.untilWorkloads()
}

// A container with a network of its own is known by its address on its bridge's port.
func TestContainersOnBridges(t *testing.T) {
	m, e := newDockerMachine(t)
	m.labelledProbe("server", "app=web").Listen("tcp", "[::]:80")
	image := e.Image("box", nil)
	e.Docker("network", "create", "--ipv6", "--subnet=fd00:18::/64", "shop")
	web := e.Probe("web", "-l", "app=web", image)
	db := e.Probe("db", "-l", "app=db", "--network=shop", image)
	plain := e.Probe("plain", image)
	e.Docker("network", "connect", "shop", "web")
	nstest.WaitFor(t, 20*time.Second, "both networks of web to be known", func() bool {
		return len(m.workloads("container")["web"].Networks) == 2 && len(m.workloads("container")["db"].Networks) == 1
	})
	for _, tt := range []struct {
		from *probe.Process
		addr string
		want bool
	}{
		{web, "172.17.0.1:80", true},
		{web, "172.18.0.1:80", true},
		{web, "[fd00:18::1]:80", true},
		{db, "172.18.0.1:80", false},
		{db, "[fd00:18::1]:80", false},
		{plain, "172.17.0.1:80", false},
	} {
		if v := tt.from.TCP(tt.addr); v.Allowed() != tt.want {
			t.Errorf("%s → %s: %v, want connected %t", tt.from.Name, tt.addr, v, tt.want)
		}
	}
	e.Docker("network", "disconnect", "shop", "web")
	nstest.WaitFor(t, 20*time.Second, "one network of web to be gone", func() bool {
		return len(m.workloads("container")["web"].Networks) == 1
	})
}

// Containers that start while the daemon is dead are closed where containers have a
// parent of their own, until it is back.
func TestContainersThatStartWithoutTheDaemon(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"Docker's own parent", nil},
		{"a slice", []string{"--cgroup-parent=/docker.slice"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, e := newDockerMachine(t, tt.flags...)
			image := e.Image("box", nil)
			e.Docker("run", "-d", "--name=first", "--net=host", "-l", "app=web", image, "sleep", "1000")
			m.untilWorkloads("first")
			server := m.labelledProbe("server", "app=web")
			server.Listen("tcp", "127.0.0.1:80")
			probe.Start(m.In("shell"), "shell").Listen("tcp", "127.0.0.1:81")

			m.daemon.Kill()
			_ = m.daemon.Wait() // it was killed
			web := e.Probe("web", "--net=host", "-l", "app=web", image)
			plain := e.Probe("plain", "--net=host", image)
			for _, p := range []*probe.Process{web, plain} {
				for _, addr := range []string{"127.0.0.1:80", "127.0.0.1:81"} {
					if v := p.TCP(addr); v.Outcome != probe.Silent {
						t.Errorf("without the daemon, %s → %s: %v, want silence", p.Name, addr, v)
					}
				}
			}
			m.start(followDocker)
			if v := web.TCP("127.0.0.1:80"); v.Server != "server" {
				t.Errorf("with the daemon, web → server: %v, want it connected", v)
			}
			if v := plain.TCP("127.0.0.1:81"); v.Server != "shell" {
				t.Errorf("with the daemon, plain → shell: %v, want it connected", v)
			}
			if v := plain.TCP("127.0.0.1:80"); v.Allowed() {
				t.Errorf("with the daemon, plain → server: %v, want it denied", v)
			}
		})
	}
}
