package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
	"thole/policies"
)

// A harbour is a machine with containers on both kinds of networks, whose daemon
// reaches Docker through a proxy that fails.
type harbour struct {
	*machine
	engine *engine.Docker
	proxy  *proxy // that the daemon takes for Docker
	image  string
	probe  *probe.Process // of the labels of the container "web", which listens at port 80
	other  *probe.Process // of others
}

// newHarbour has n containers run, and two with probes in them.
func newHarbour(t testing.TB, n int) *harbour {
	t.Helper()
	return newHarbourOn(bareMachine(t), n)
}

func newHarbourOn(m *machine, n int) *harbour {
	t := m.t
	t.Helper()
	e := engine.StartDocker(t, m.Host, "--live-restore")
	h := &harbour{machine: m, engine: e, proxy: newProxy(t, e), image: e.Image("box", nil)}
	h.proxy.up()
	m.start(h.follow())
	e.Probe("web", "--net=host", "-l", "app=web", h.image).Listen("tcp", "127.0.0.1:80")
	h.probe, h.other = m.labelledProbe("same", "app=web"), m.labelledProbe("other", "app=db")
	each(n, h.run)
	h.untilFresh(20*time.Second, "the containers to be known")
	return h
}

// follow is how the daemon is told to follow Docker through the proxy.
func (h *harbour) follow() string { return "--docker=unix://" + h.proxy.path }

// run starts a container on one of both kinds of networks.
func (h *harbour) run(name string) {
	network := "host"
	if name[len(name)-1]%2 == 1 {
		network = "bridge"
	}
	h.engine.Docker("run", "-d", "--init", "--name", name, "--net", network, "-l", "app="+name, h.image, "sleep",
		"100000")
}

// stale is what differs between the loaded table and a fresh compile: that of another
// process, which asks Docker itself; "" if nothing.
func (h *harbour) stale() string {
	h.t.Helper()
	cmd := h.Command(h.thole, "apply", "-f", "-", "--dry-run", "-o", "json", "--state", "/run/state", "--socket",
		"/run/nobody.sock")
	cmd.Stdin = bytes.NewReader(policies.Default)
	var answer api.ApplyResponse
	decode(h.t, cmd, &answer)
	if !answer.Changed {
		return ""
	}
	return answer.Diff
}

// untilFresh waits until the loaded table is what a fresh compile makes, and what
// the daemon says of containers is what Docker says.
func (h *harbour) untilFresh(patience time.Duration, what string) {
	h.t.Helper()
	var diff string
	defer func() {
		if h.t.Failed() {
			h.t.Logf("not fresh: %s", diff)
		}
	}()
	nstest.WaitFor(h.t, patience, what, func() bool {
		if diff = h.unnamed(); diff == "" {
			diff = h.stale()
		}
		return diff == ""
	})
}

// unnamed is what Docker calls otherwise than the daemon does.
func (h *harbour) unnamed() string {
	known := h.workloads("container")
	for line := range strings.Lines(h.engine.Docker("ps", "--format={{.Names}} {{.ID}}", "--no-trunc")) {
		name, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		if w, ok := known[name]; !ok || w.Cgroup != "docker/"+id {
			return "no workload " + name
		}
	}
	return ""
}

// stands checks that what is loaded enforces.
func (h *harbour) stands(when string) {
	h.t.Helper()
	if v := h.probe.TCP("127.0.0.1:80"); v.Server != "web" {
		h.t.Errorf("%s, same → web: %v, want it connected", when, v)
	}
	if v := h.other.TCP("127.0.0.1:80"); v.Allowed() {
		h.t.Errorf("%s, other → web: %v, want it denied", when, v)
	}
}

// missed waits until the daemon says that Docker is away, with this in its reason,
// and checks that nothing of the table changed.
func (h *harbour) missed(reason, table string) {
	h.t.Helper()
	h.until("the daemon to miss Docker: "+reason, func(s api.Status) bool {
		return !s.Docker.Connected && strings.Contains(s.Docker.Error, reason)
	})
	if now := h.table(); now != table {
		h.t.Errorf("%s: the table changed:\n%s\nwas\n%s", reason, now, table)
	}
	h.stands(reason)
}

// shortly is how long a test waits for what takes well below a second on an idle
// machine (BenchmarkReconcile measures it).
const shortly = 10 * time.Second

// Docker is stopped, killed, upgraded, or gone for a while.
func TestDockerFails(t *testing.T) {
	h := newHarbour(t, 6)
	table := h.table()

	h.engine.Stop()
	h.missed("502", table)
	h.engine.Start()
	h.untilFresh(shortly, "the table to be fresh after Docker was stopped")

	h.engine.Kill()
	h.missed("502", table)
	h.engine.Start()
	h.untilFresh(shortly, "the table to be fresh after Docker was killed")

	for _, version := range []string{"1.43", "1.41", "1.60", "1.42"} {
		h.proxy.speak(version)
		h.engine.Docker("rename", "sender-1", "renamed")
		h.untilFresh(shortly, "the table to be fresh with API version "+version)
		h.engine.Docker("rename", "renamed", "sender-1")
		h.untilFresh(shortly, "an event with API version "+version)
	}
	table = h.table()
	h.proxy.speak("1.40")
	h.missed("Thole needs at least 1.41: upgrade Docker", table)
	h.proxy.speak("")
	h.untilFresh(shortly, "the table to be fresh with Docker's own version")

	table = h.table()
	h.proxy.down()
	h.missed("connect", table)
	h.engine.Docker("rename", "sender-1", "renamed")
	h.engine.Docker("network", "create", "shop")
	h.engine.Docker("network", "connect", "shop", "renamed")
	h.engine.Docker("rm", "-f", "sender-2")
	h.engine.Docker("restart", "-t=0", "sender-0", "sender-3")
	h.run("another")
	<-time.After(*away) // what is tested is how long it lasts
	h.stands("while the socket is gone")
	h.proxy.up()
	h.untilFresh(shortly, "the table to be fresh after the socket was gone")
}

// Events come by the hundred, are lost, or end in the middle of one.
func TestDockerEvents(t *testing.T) {
	h := newHarbour(t, 10)
	h.engine.Docker("network", "create", "shop")

	const events = 500 // they come all at once
	release := make(chan struct{})
	h.proxy.set(func() { h.proxy.held = release })
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			name := fmt.Sprintf("sender-%d", i)
			for n := range events / 10 {
				next := fmt.Sprintf("name-%d-%d", i, n)
				if err := h.proxy.post("/containers/" + name + "/rename?name=" + next); err != nil {
					t.Error(err)
				}
				name = next
			}
		})
	}
	all.Wait()
	h.proxy.set(func() { h.proxy.held = nil })
	close(release)
	began := time.Now()
	h.untilFresh(shortly, fmt.Sprintf("the table to be fresh after %d events", events))
	t.Logf("%d events at once were followed after %v", events, time.Since(began))
	h.stands("after a storm")

	h.proxy.set(func() { h.proxy.deaf = true })
	h.engine.Docker("rename", "name-0-49", "unheard")
	h.engine.Docker("network", "connect", "shop", "name-1-49")
	began = time.Now()
	h.untilFresh(20*time.Second, "the table to be fresh although events are lost")
	t.Logf("lost events were made up for after %v", time.Since(began))
	h.stands("while events are lost")
	h.proxy.set(func() { h.proxy.deaf = false })

	table := h.table()
	h.proxy.breakStreams()
	h.engine.Docker("rename", "unheard", "heard")
	h.untilFresh(shortly, "the table to be fresh after an event was cut")
	h.until("a new stream", func(s api.Status) bool { return s.Docker.Connected })
	if now := h.table(); now != table {
		t.Errorf("a name changed the table:\n%s\nwas\n%s", now, table)
	}
	h.engine.Docker("network", "disconnect", "shop", "name-1-49")
	h.untilFresh(shortly, "the next event")
}

// Documents name containers. While Docker is away, and the daemon is started again meanwhile, the containers have the
// labels of the documents as they are then, and their own: no label of a document that is gone.
func TestDocumentsOfContainersWhileDockerIsAway(t *testing.T) {
	m, e := newDockerMachine(t, "--live-restore")
	s := newSituations(m, "container")
	s.start, s.images = e.Probe, map[string]string{"": e.Image("plain", nil)}
	for _, c := range []server{
		{name: "plain"},
		{name: "own", labels: []string{"app=own"}, is: "app=own (person)"},
		{name: "service", labels: []string{"com.docker.compose.project=shop", "com.docker.compose.service=db"}},
	} {
		s.enter(c)
	}
	bound := situation{
		documents: []string{binding("plain", "{app: web}", "{container: plain}"),
			binding("own", "{app: web, tier: front}", "{container: own}"),
			binding("service", "{app: db}", "{compose: {project: shop, service: db}}"), databaseFor("allow",
				"{workloads: {matchLabels: {app: web}}}"), isolating("web", "{matchLabels: {app: web}}")},
		is: map[string]string{"plain": "app=web (document)", "own": "app=web (document), tier=front (document)",
			"service": "app=db (document)"},
		closed: []string{"own", "plain", "service"}, allowed: []string{"plain → service", "own → service"},
		refused: []string{"plain → own", "service → plain"},
	}
	later := situation{
		documents: []string{binding("service", "{tier: data}", "{compose: {project: shop, service: db}}"),
			isolating("data", "{matchLabels: {tier: data}}"), databaseFor("allow",
				"{workloads: {matchLabels: {app: web}}}"), isolating("web", "{matchLabels: {app: web}}"),
			isolating("own", "{matchLabels: {app: own}}")},
		is: map[string]string{"service": "tier=data (document)"}, closed: []string{"own", "service"},
		refused: []string{"plain → service", "own → service"}, allowed: []string{"own → plain"},
	}
	restart := func() {
		t.Helper()
		must(t, m.daemon.Signal(syscall.SIGTERM))
		must(t, m.daemon.Wait())
		m.start(followDocker)
	}
	s.try(t, bound)
	e.Kill()
	m.until("the daemon to miss Docker", func(s api.Status) bool { return !s.Docker.Connected })
	bound.status, bound.exit = []string{"docker-away docker"}, 1
	later.status, later.exit = bound.status, bound.exit
	for _, step := range []struct {
		name string
		do   func()
		then situation
	}{
		{"Docker is away", func() {}, bound},
		{"the daemon is started again", restart, bound},
		{"the documents are others", func() {}, later},
		{"the documents are the former ones", restart, bound},
		{"the documents are others again", restart, later},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			s.try(t, step.then)
		})
	}
	e.Start()
	m.until("the daemon to find Docker", func(s api.Status) bool { return s.Docker.Connected })
	later.status, later.exit = nil, 0
	s.try(t, later)
}
