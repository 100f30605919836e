package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/doctor"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
)

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

// Podman answers at Docker's socket, and a labelled container of the host's network runs before the daemon starts. The
// program that did not tell, and the one that does.
func TestPodmanContainersAreNotJudged(t *testing.T) {
	const name = "billing"
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		p := engine.StartPodman(t, m.Host)
		p.Podman("run", "-d", "--name="+name, "--net=host", "-l", "app=web", p.Image("box", nil), "sleep", "1000")
		m.start(followDocker)
		m.until("the container to be known", func(s api.Status) bool {
			return s.Docker != nil && s.Docker.Connected && s.Docker.Containers == 1
		})
		if old {
			if ok, out := m.healthy(); !ok || strings.Contains(out, name) {
				t.Errorf("status: exit 0 %t, want that, and no word about the container\n%s", ok, out)
			}
			return
		}
		began := time.Now()
		m.until("the problem", func(s api.Status) bool { return len(notJudged(s)) == 1 })
		took := time.Since(began)
		t.Logf("the problem is there %v after the container is known", took)
		if most := nstest.Patience(2 * time.Second); took > most {
			t.Errorf("the problem is there after %v, want at most %v", took, most)
		}
		ok, out := m.healthy()
		if want := "container " + name + ": it runs, and its cgroup was not found"; ok || !strings.Contains(out, want) {
			t.Errorf("status: exit 0 %t, want 1, and %q\n%s", ok, want, out)
		}
	})
}

// A Podman container is a problem from its start to its end. So is one whose network mode is unknown.
func TestPodmanContainersComeAndGo(t *testing.T) {
	m := newMachine(t, followDocker)
	p := engine.StartPodman(t, m.Host)
	image := p.Image("box", nil)
	p.Podman("create", "--name=made", "--net=host", image, "sleep", "1000")
	p.Podman("run", "-d", "--name=web", "--net=host", "-l", "app=web", image, "sleep", "1000")
	m.Shell("ip netns add apart")
	p.Podman("run", "-d", "--name=apart", "--net=ns:/run/netns/apart", image, "sleep", "1000")
	problems := func(want ...string) {
		t.Helper()
		m.until(fmt.Sprintf("the problems %q", want), func(s api.Status) bool {
			var got []string
			for _, c := range notJudged(s) {
				got = append(got, c.String())
			}
			return s.Docker.Connected && slices.EqualFunc(got, want, strings.HasPrefix)
		})
	}
	const missing = ": it runs, and its cgroup was not found: no policy protects or restricts it"
	const mode = `container apart: its network mode "ns:/run/netns/apart" is unknown: no policy protects or`
	problems("container apart"+missing, mode, "container web"+missing)
	p.Podman("pause", "web")
	p.Podman("rm", "-f", "-t=0", "apart")
	problems("container web" + missing)
	p.Podman("unpause", "web")
	p.Podman("stop", "-t=0", "web")
	problems()
	if ok, out := m.healthy(); !ok {
		t.Errorf("no container runs, and status exits 1:\n%s", out)
	}
	p.Podman("start", "made")
	problems("container made" + missing)
	p.Podman("rm", "-f", "-t=0", "made", "web")
	problems()
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
			doctor.Finding{Status: doctor.Warning, Found: "Podman 4"}, 0},
		{"Podman at the usual place", func(t *testing.T, h *nstest.Host) { engine.StartPodman(t, h) }, "",
			doctor.Finding{Status: doctor.Warning, Found: "Podman 4"}, 0},
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
