package attack

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
)

// isolates lets nobody connect to what it selects.
const isolates = `apiVersion: thole/v1
kind: Policy
metadata: {name: isolates}
spec: {selector: %s, ingress: []}
`

// A containerHost is a machine with Docker and no daemon of ours yet.
type containerHost struct {
	*machine
	*engine.Docker
	image string
	free  *agent // unlabelled
}

// withBothOnDocker runs a test with the program of baseline.Commit, which has the fault, and with the present one.
func withBothOnDocker(t *testing.T, test func(t *testing.T, h *containerHost, old bool)) {
	t.Helper()
	withEachProgram(t, func(t *testing.T, m *machine, old bool) {
		h := &containerHost{machine: m, Docker: engine.StartDocker(t, m.Host)}
		h.image = h.Image("box", nil)
		h.free = newAgent(t, m.Host, m.In("elsewhere"))
		test(t, h, old)
	})
}

// starts starts the daemon, and returns when it knows as many containers.
func (h *containerHost) starts(containers int) {
	h.machine.t.Helper()
	h.machine.start(followDocker)
	h.knows(containers)
}

func (h *containerHost) knows(containers int) {
	h.machine.t.Helper()
	what := fmt.Sprintf("the daemon to know %d containers", containers)
	nstest.WaitFor(h.machine.t, 20*time.Second, what, func() bool {
		d := h.status().Docker
		return d != nil && d.Connected && d.Containers == containers
	})
}

// serves starts a container on the host network, with labels, that listens.
func (h *containerHost) serves(name, at string, labels ...string) *sock {
	h.machine.t.Helper()
	args := []string{"--net=host"}
	for _, label := range labels {
		args = append(args, "-l", label)
	}
	return h.box(name, args...).listen(at)
}

func (h *containerHost) box(name string, args ...string) *agent {
	h.machine.t.Helper()
	return asAgent(h.machine.t, h.Host, h.Probe(name, append(args, h.image)...))
}

// A live host gets Thole, and containers with labels serve already: the built-in default, of which nobody asked
// anything, cut them from their clients.
func TestFirstStartCutsNothing(t *testing.T) {
	withBothOnDocker(t, func(t *testing.T, h *containerHost, old bool) {
		l := h.serves("shop", "127.0.0.1:80", "app=shop")
		allowed(t, "before Thole", reaches(h.free, "", "127.0.0.1:80", l))
		h.starts(1)
		nstest.WaitFor(t, 10*time.Second, "the container's labels", func() bool { return h.status().Workloads == 1 })
		if got := reaches(h.free, "", "127.0.0.1:80", l); got == old {
			t.Errorf("after the first start it is reached: %t", got)
		}
	})
}

// Labels that a tool reads cut the service from the tool's users, and a label that nothing can read closed it. A label
// that a tool gave, and a policy names, protected nothing.
func TestLabelsOfTools(t *testing.T) {
	withBothOnDocker(t, func(t *testing.T, h *containerHost, old bool) {
		listeners := map[string]*sock{
			"tool":    h.serves("site", "127.0.0.1:80", "traefik.enable=true", "traefik.http.routers.a.rule=Host(`a`)"),
			"lines":   h.serves("lines", "127.0.0.1:81", "note=two\nlines"),
			"control": h.serves("control", "127.0.0.1:82", "note=\x1b[2J"),
			"long":    h.serves("long", "127.0.0.1:83", "note="+strings.Repeat("x", 9000)),
			"compose": h.serves("shop-db-1", "127.0.0.1:84", "com.docker.compose.project=shop",
				"com.docker.compose.service=db"),
			"person": h.serves("db", "127.0.0.1:85", "app=db"),
		}
		ports := map[string]int{"tool": 80, "lines": 81, "control": 82, "long": 83, "compose": 84, "person": 85}
		reached := func() (open []string) {
			for name, l := range listeners {
				if reaches(h.free, "", fmt.Sprintf("127.0.0.1:%d", ports[name]), l) {
					open = append(open, name)
				}
			}
			slices.Sort(open)
			return open
		}
		h.starts(len(listeners))
		const service = "{matchLabels: {com.docker.compose.service: db}}"
		for _, tt := range []struct{ what, policy, old, now string }{
			{"the default", sameLabels, "[compose]", "[compose control lines long tool]"},
			{"a policy that names the service", fmt.Sprintf(isolates, service), "[compose person tool]",
				"[control lines long person tool]"},
		} {
			h.apply(tt.policy)
			want := tt.now
			if old {
				want = tt.old
			}
			if got := fmt.Sprint(reached()); got != want {
				t.Errorf("%s: an unlabelled program reaches %s, want %s", tt.what, got, want)
			}
		}
	})
}

// A container joins the network of another (network_mode: container:web), with labels of its own. Nothing tells their
// packets apart on the bridge: it reached what only web may reach, and was reached as web.
func TestSidecarOfOtherLabels(t *testing.T) {
	withBothOnDocker(t, func(t *testing.T, h *containerHost, old bool) {
		h.starts(0)
		h.apply(`apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: logs}
spec: {selector: {matchLabels: {app: logs}}, ingress: []}
`)
		l := h.serves("db", "0.0.0.0:5432", "app=db")
		web := h.box("web", "-l", "app=web")
		h.knows(2)
		nstest.WaitFor(t, 20*time.Second, "web's address", func() bool {
			return reaches(web, "", gateway+":5432", l)
		})
		sidecar := h.box("logs", "-l", "app=logs", "--network=container:web")
		h.knows(3)
		nstest.WaitFor(t, 20*time.Second, "its labels", func() bool { return h.status().Workloads == 3 })
		closed(t, old, "what only web may reach", reaches(sidecar, "", gateway+":5432", l))
		own := sidecar.listen("0.0.0.0:514")
		address := h.Docker.Docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
		closed(t, old, "what nobody may reach", reaches(l.agent, "", strings.TrimSpace(address)+":514", own))
		named := slices.ContainsFunc(h.status().Notices, func(c condition.Condition) bool {
			return c.Code == condition.NetworkShared && strings.Contains(c.Text, "logs")
		})
		if named == old {
			t.Errorf("the status names the containers: %t", named)
		}
	})
}

// A container of Podman carries labels, and Podman answers as Docker does. The daemon that followed it left the
// container open, and the status said nothing.
func TestPodmanContainer(t *testing.T) {
	withEachProgram(t, func(t *testing.T, m *machine, old bool) {
		p := engine.StartPodman(t, m.Host)
		box := asAgent(t, m.Host, p.Probe("billing", "--net=host", "-l", "app=db", p.Image("box", nil)))
		l := box.listen("127.0.0.1:80")
		m.start(followDocker)
		nstest.WaitFor(t, 20*time.Second, "the daemon to know the container", func() bool {
			s := m.status()
			return s.Docker != nil && s.Docker.Connected && s.Docker.Containers == 1 && (old || s.Workloads == 1)
		})
		m.apply(closedDB)
		free := newAgent(t, m.Host, m.In("elsewhere"))
		closed(t, old, "an unlabelled program", reaches(free, "", "127.0.0.1:80", l))
		if out, err := m.Command(m.thole, "status").CombinedOutput(); err != nil {
			t.Errorf("status exits 1: %s", out)
		}
	})
}
