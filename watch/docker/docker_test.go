package docker

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/watch/workload"
)

// A container is a workload while Docker is still starting it, when Inspect waits.
func TestContainerIsKnownWhileItIsStarted(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.set(func() { docker.held = make(chan struct{}) })
	docker.put(containerWith("a", "app", "web"))
	docker.put(container{id: idOf("b"), name: "plain", network: "host"})
	tr.in("docker/" + idOf("b"))
	s := tr.until("the unlabelled container", nil, func(s workload.Snapshot) bool { return len(s.Unlabelled) == 1 })
	if len(s.Workloads) != 0 {
		t.Errorf("workloads %q before a cgroup is made", names(s))
	}
	id := tr.in("docker/" + idOf("a")).ID()
	s = tr.until("the workload", nil, has("name-a"))
	want := policy.Workload{
		Name: "name-a", Kind: policy.KindContainer, Labels: policy.Labels{"app": "web"},
		Facts: policy.Labels{
			workload.FactKind: "container", workload.FactContainer: "name-a", workload.FactImage: "",
			workload.FactNetwork: "host",
		},
		Cgroup: policy.Cgroup{Path: "docker/" + idOf("a"), ID: id},
	}
	if diff := cmp.Diff(want, s.Workloads[0], byValue); diff != "" {
		t.Errorf("the workload (-want +got):\n%s", diff)
	}
	if got := paths(s.Parents); !slices.Equal(got, []string{"docker"}) {
		t.Errorf("parents %q, want docker", got)
	}
	tr.remove("docker/" + idOf("a"))
	tr.until("the workload's end", nil, has())
}

func TestDockerAway(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	tr.in("docker/" + idOf("a"))
	tr.until("the workload", nil, has("name-a"))

	docker.disconnect()
	s := tr.until("a problem", nil, func(s workload.Snapshot) bool { return len(s.Conditions) > 0 })
	if !has("name-a")(s) || !strings.Contains(problemsOf(s), errAway.Error()) {
		t.Errorf("without Docker: workloads %q, problems %s", names(s), problemsOf(s))
	}
	if status := tr.docker.Status(); status.Connected || status.Containers != 1 {
		t.Errorf("status without Docker: %+v", status)
	}
	// What happens meanwhile is known afterwards, without an event.
	docker.set(func() { delete(docker.containers, idOf("a")) })
	tr.remove("docker/" + idOf("a"))
	docker.put(containerWith("b", "app", "db"))
	tr.in("docker/" + idOf("b"))
	tr.until("the container that ended", nil, has())

	docker.reconnect()
	tr.until("the container that began, and no problem", nil, func(s workload.Snapshot) bool {
		return has("name-b")(s) && len(s.Conditions) == 0
	})
	if status := tr.docker.Status(); !status.Connected || status.Containers != 1 {
		t.Errorf("status with Docker again: %+v", status)
	}
}

// An event about a container that runs has it inspected; many are one question.
func TestEventsAreCoalesced(t *testing.T) {
	tr, docker := newDockerTree(t)
	letters := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
	for _, l := range letters {
		docker.put(containerWith(l, "app", "web"))
		tr.in("docker/" + idOf(l))
	}
	tr.until("the containers", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == len(letters) })
	held := make(chan struct{})
	nstest.WaitFor(t, patience, "the first inspections", func() bool { return tr.inspectedAll() })
	var before int
	docker.set(func() { docker.held, before = held, docker.inspectCalls })
	for i := range 500 {
		l := letters[i%len(letters)]
		c := containerWith(l, "app", "web")
		c.name = "renamed-" + l
		docker.put(c)
		docker.emit(event{container: c.id})
	}
	close(held)
	tr.until("the new names", nil, func(s workload.Snapshot) bool {
		return !slices.ContainsFunc(s.Workloads, func(w policy.Workload) bool {
			return !strings.HasPrefix(w.Name, "renamed-")
		})
	})
	docker.set(func() {
		if n := docker.inspectCalls - before; n > 2*len(letters)+1 {
			t.Errorf("%d inspections for 500 events about %d containers", n, len(letters))
		}
	})
}

// inspectedAll reports whether every container's details are known.
func (tr *tree) inspectedAll() bool {
	tr.docker.containers.mu.Lock()
	defer tr.docker.containers.mu.Unlock()
	for id, cg := range tr.docker.containers.cgroups {
		if r := tr.docker.containers.records[id]; r == nil || !r.complete(cg) {
			return false
		}
	}
	return true
}

func TestDestroyedContainerIsForgotten(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	tr.in("docker/" + idOf("a"))
	tr.until("the workload", nil, has("name-a"))
	docker.set(func() { delete(docker.containers, idOf("a")) })
	docker.emit(event{container: idOf("a")})
	nstest.WaitFor(t, patience, "the container to be forgotten", func() bool {
		return tr.docker.Status().Containers == 0
	})
}

func TestPlacesOfContainers(t *testing.T) {
	const notice = `Give Docker a slice of its own`
	for _, tt := range []struct {
		name    string
		cgroup  string   // of the container, with ID for its id
		parent  string   // as Docker tells it
		others  []string // cgroups that are there, too
		parents []string
		problem string
	}{
		{name: "cgroupfs", cgroup: "docker/ID", parents: []string{"docker"}},
		{name: "systemd", cgroup: "system.slice/docker-ID.scope", others: []string{"system.slice/cron.service"},
			problem: notice},
		{name: "a slice", cgroup: "docker.slice/docker-ID.scope", parents: []string{"docker.slice"}},
		{name: "a slice in a slice", cgroup: "my.slice/my-app.slice/docker-ID.scope", parent: "my-app.slice",
			parents: []string{"my.slice/my-app.slice"}},
		{name: "a path", cgroup: "a/b/c/ID", parent: "/a/b/c", parents: []string{"a/b/c"}},
		{name: "the root", cgroup: "ID", parent: "/", problem: notice},
		{name: "with others", cgroup: "docker/ID", others: []string{"docker/other"}, problem: "with other: "},
		{name: "with a build", cgroup: "docker/ID", others: []string{"docker/buildkit/x"}, parents: []string{"docker"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, docker := newDockerTree(t)
			for _, path := range tt.others {
				tr.in(path)
			}
			c := containerWith("a", "app", "web")
			c.details = &details{parent: tt.parent}
			docker.put(c)
			docker.emit(event{container: c.id})
			tr.in(strings.ReplaceAll(tt.cgroup, "ID", c.id))
			s := tr.until("the workload", nil, has("name-a"))
			if got := paths(s.Parents); !slices.Equal(got, tt.parents) {
				t.Errorf("parents %q, want %q", got, tt.parents)
			}
			if got := problemsOf(s); !strings.Contains(got, tt.problem) || tt.problem == "" && got != "" {
				t.Errorf("problems %q, want %q", got, tt.problem)
			}
		})
	}
}

// Places that are gone, and that no container names, are not looked for any more.
func TestPlacesAreForgotten(t *testing.T) {
	tr, docker := newDockerTree(t)
	for _, l := range []string{"a", "b", "c"} {
		c := containerWith(l, "app", "web")
		c.details = &details{parent: "/jobs/" + l}
		docker.put(c)
		docker.emit(event{container: c.id})
	}
	tr.in("jobs/b")
	parentsAre := func(want ...string) func() bool {
		return func() bool {
			tr.docker.places.mu.Lock()
			defer tr.docker.places.mu.Unlock()
			return slices.Equal(slices.Sorted(maps.Keys(tr.docker.places.named)), want)
		}
	}
	nstest.WaitFor(t, patience, "the places", parentsAre("jobs/a", "jobs/b", "jobs/c"))
	docker.set(func() { delete(docker.containers, idOf("a")); delete(docker.containers, idOf("b")) })
	docker.disconnect()
	docker.reconnect() // it is listed anew
	nstest.WaitFor(t, patience, "the place that is gone to be forgotten", parentsAre("jobs/b", "jobs/c"))
}

// What an inspection could not tell is asked again.
func TestFailedInspection(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	tr.in("docker/" + idOf("a"))
	tr.until("the workload", nil, has("name-a"))
	nstest.WaitFor(t, patience, "the inspection", tr.inspectedAll)
	tr.docker.containers.markIncomplete(idOf("a"))
	tr.cgroups.Scan(nil)
	nstest.WaitFor(t, patience, "the next inspection", tr.inspectedAll)
}

// What only looks like a container is closed among containers, and left alone
// elsewhere.
func TestOthersAmongContainers(t *testing.T) {
	tr, docker := newDockerTree(t)
	tr.in("podman/" + idOf("c"))
	tr.in("docker/" + idOf("b"))
	docker.put(containerWith("a", "app", "web"))
	tr.in("docker/" + idOf("a"))
	s := tr.until("the workload and the problem", nil, withProblem)
	want := "docker/" + idOf("b") +
		": the engine at fake has no such container: while a policy is enforced, this cgroup is closed\n"
	if got := problemsOf(s); got != want {
		t.Errorf("problems %q, want %q", got, want)
	}
	if got := paths(s.Parents); !slices.Equal(got, []string{"docker"}) || len(s.Unlabelled) > 0 {
		t.Errorf("parents %q, unlabelled %v", got, s.Unlabelled)
	}
}

// A container whose labels cannot be taken is closed, wherever it is.
func TestRefusedContainerIsClosed(t *testing.T) {
	tr, docker := newDockerTree(t)
	refused := containerWith("a", "app", "web")
	refused.image = removedImage
	docker.put(refused)
	cgroup := "system.slice/docker-" + idOf("a") + ".scope"
	tr.in(cgroup)
	s := tr.until("the closed container", nil, func(s workload.Snapshot) bool { return len(s.Parents) == 1 })
	if got := paths(s.Parents); got[0] != cgroup || len(s.Workloads)+len(s.Unlabelled) > 0 {
		t.Errorf("closed are %q, want %s; workloads %q", got, cgroup, names(s))
	}
	if got := problemsOf(s); !strings.Contains(got, "container name-a: its image was removed") {
		t.Errorf("problems %q", got)
	}
}

func TestContainerBeforeOtherBindings(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	docker.put(container{id: idOf("b"), name: "plain", network: "host"})
	tr.in("docker/" + idOf("a"))
	tr.in("docker/" + idOf("b"))
	all := []policy.Binding{{Name: "all", Labels: policy.Labels{"app": "any"}, Cgroup: "docker/*"}}
	s := tr.until("both", all, has("name-a", "all:docker/"+idOf("b")))
	if len(s.Unlabelled) > 0 {
		t.Errorf("unlabelled: %v, want none", s.Unlabelled)
	}
	if got := problemsOf(s); !strings.Contains(got, `has the labels of "name-a" (container)`) {
		t.Errorf("problems %q", got)
	}
}

func TestContainersOnBridges(t *testing.T) {
	tr, docker := newDockerTree(t, func(d *Docker) {
		d.bridges.ports = fakePorts{
			ports:   map[string]string{"docker0": "veth0", "br0": "veth1"},
			foreign: map[string][]string{"br0": {"eth0"}},
		}
	})
	address := []netip.Addr{netip.MustParseAddr("172.17.0.2")}
	docker.set(func() {
		docker.held = make(chan struct{}) // it is just being started
		docker.networks = []bridgeNetwork{
			{id: "n0", bridge: "docker0", members: map[string][]netip.Addr{idOf("a"): address}},
			{id: "n1", bridge: "br0"},
		}
	})
	docker.emit(event{networks: true})
	c := containerWith("a", "app", "web")
	c.network = "bridge"
	p := tr.in("docker/"+c.id).Start("sleep", "infinity")
	c.details = &details{pid: p.Pid, addresses: map[string][]netip.Addr{"n0": address, "n2": address}}
	docker.put(c)
	want := []policy.Network{{Bridge: "docker0", Port: "veth0", Addresses: address}}
	s := tr.until("the network", nil, attached)
	if diff := cmp.Diff(want, s.Workloads[0].Own, byValue); diff != "" {
		t.Errorf("while it is started (-want +got):\n%s", diff)
	}
	docker.set(func() { close(docker.held); docker.held = nil })
	nstest.WaitFor(t, patience, "the inspection", tr.inspectedAll)
	s = tr.cgroups.Scan(nil)
	if diff := cmp.Diff(want, s.Workloads[0].Own, byValue); diff != "" {
		t.Errorf("started (-want +got):\n%s", diff)
	}
	const shared = "br0: this bridge connects not only containers, but also [eth0]"
	if len(s.Bridges) != 1 || s.Bridges[0].Name != "docker0" || !strings.Contains(problemsOf(s), shared) {
		t.Errorf("bridges %q, problems %q", s.Bridges, problemsOf(s))
	}
	p.Kill()
	c.details = &details{}
	docker.put(c)
	docker.emit(event{container: c.id})
	tr.until("the network's end", nil, func(s workload.Snapshot) bool { return s.Workloads[0].Own == nil })
}

// A container that is being started, which can take seconds, costs one question as
// soon as it is connected, and one snapshot.
func TestContainerThatIsStartedCostsLittle(t *testing.T) {
	tr, docker := newDockerTree(t)
	address := []netip.Addr{netip.MustParseAddr("172.17.0.2")}
	docker.set(func() {
		docker.held = make(chan struct{})
		members := map[string][]netip.Addr{idOf("a"): address}
		docker.networks = []bridgeNetwork{{id: "n0", bridge: "docker0", members: members}}
	})
	c := containerWith("a", "app", "web")
	c.network = "bridge"
	docker.put(c)
	docker.emit(event{networks: true})
	tr.in("docker/"+c.id).Start("sleep", "infinity")
	tr.until("the network", nil, attached)
	var before int
	docker.set(func() { before = docker.networksCalls })
	woken, over := 0, time.After(10*portInterval)
	for done := false; !done; {
		select {
		case <-tr.cgroups.Changed():
			woken++
			tr.cgroups.Scan(nil)
		case <-over:
			done = true
		}
	}
	docker.set(func() {
		if n := docker.networksCalls - before; n > 0 || woken > 1 {
			t.Errorf("while it is started Docker was asked %d times and %d snapshots were made, "+
				"want 0 and at most 1", n, woken)
		}
	})
}

// Addresses belong to one run of a container: the next one may have others, and they
// may be another container's by then.
func TestAddressesEndWithTheRun(t *testing.T) {
	tr, docker := newDockerTree(t)
	address := []netip.Addr{netip.MustParseAddr("172.17.0.2")}
	docker.set(func() { docker.networks = []bridgeNetwork{{id: "n0", bridge: "docker0"}} })
	c := containerWith("a", "app", "web")
	c.network = "bridge"
	p := tr.in("docker/"+c.id).Start("sleep", "infinity")
	c.details = &details{pid: p.Pid, addresses: map[string][]netip.Addr{"n0": address}}
	docker.put(c)
	tr.until("the network", nil, attached)
	nstest.WaitFor(t, patience, "the inspection", tr.inspectedAll)

	docker.set(func() { docker.held = make(chan struct{}) }) // it is being started again, and not connected yet
	p.Kill()
	nstest.WaitFor(t, patience, "the cgroup to be empty", func() bool { return len(tr.in("docker/"+c.id).Pids()) == 0 })
	old := tr.id("docker/" + c.id)
	tr.remove("docker/" + c.id)
	tr.in("docker/" + c.id)
	s := tr.until("the next run", nil, func(s workload.Snapshot) bool {
		return has("name-a")(s) && s.Workloads[0].Cgroup.ID != old
	})
	if own := s.Workloads[0].Own; own != nil {
		t.Errorf("the next run has the addresses of the one before: %v", own)
	}
}

// What Docker said of a container before it was started does not undo what is known
// of it since.
func TestLateInspection(t *testing.T) {
	tr, docker := newDockerTree(t)
	address := []netip.Addr{netip.MustParseAddr("172.17.0.2")}
	held := make(chan struct{})
	docker.set(func() {
		docker.held = held
		members := map[string][]netip.Addr{idOf("a"): address}
		docker.networks = []bridgeNetwork{{id: "n0", bridge: "docker0", members: members}}
	})
	c := containerWith("a", "app", "web")
	c.network = "bridge"
	docker.put(c)
	docker.emit(event{networks: true})
	docker.emit(event{container: c.id}) // it was made
	nstest.WaitFor(t, patience, "the inspection to be asked for", func() (asked bool) {
		docker.set(func() { asked = docker.inspectCalls > 0 })
		return asked
	})
	docker.set(func() { docker.held = make(chan struct{}) }) // the next one waits
	tr.in("docker/"+c.id).Start("sleep", "infinity")
	tr.until("the network", nil, attached)
	close(held)
	nstest.WaitFor(t, patience, "the late answer", func() bool {
		tr.docker.containers.mu.Lock()
		defer tr.docker.containers.mu.Unlock()
		return tr.docker.containers.records[c.id].inspected
	})
	if s := tr.cgroups.Scan(nil); !attached(s) {
		t.Errorf("after the late answer: %+v", s.Workloads)
	}
}

// What an earlier daemon knew holds until Docker answers.
func TestRecall(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	docker.put(container{id: idOf("b"), name: "plain", network: "host"})
	docker.put(containerWith("c", "app", "db"))
	for _, l := range []string{"a", "b", "c"} {
		tr.in("x/y/docker-" + idOf(l) + ".scope")
	}
	c := containerWith("d", "app", "web")
	c.details = &details{parent: "/x/y"}
	docker.put(c)
	docker.emit(event{container: c.id})
	known := func(s workload.Snapshot) bool { return has("name-a", "name-c")(s) && len(s.Unlabelled) == 1 }
	before := tr.until("the containers", nil, known)

	docker.disconnect()
	tr.docker = newFakeEngine(tr, docker)
	tr.docker.Recall(before)
	tr.start()
	tr.remove("x/y/docker-" + idOf("c") + ".scope")
	after := tr.until("the living containers", nil, withProblem)
	if diff := cmp.Diff(before.Unlabelled, after.Unlabelled, byValue); diff != "" {
		t.Errorf("unlabelled (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(before.Parents, after.Parents); diff != "" {
		t.Errorf("parents (-before +after):\n%s", diff)
	}
	docker.set(func() { docker.away = nil; delete(docker.containers, idOf("b")) })
	s := tr.until("Docker", nil, func(s workload.Snapshot) bool {
		return tr.docker.Status().Connected && len(s.Unlabelled) == 0
	})
	tr.docker.Recall(before)
	if s = tr.cgroups.Scan(nil); len(s.Unlabelled) > 0 {
		t.Errorf("what Docker denied is recalled: %v", s.Unlabelled)
	}
}

func TestLoad(t *testing.T) {
	tr := newTree(t)
	docker := &fakeEngine{containers: map[string]container{}}
	d := newFakeEngine(tr, docker)
	docker.set(func() { docker.away = errAway })
	if err := d.Load(context.Background()); err != nil {
		t.Errorf("nothing runs, and Docker is needed nevertheless: %v", err)
	}
	tr.in("docker/" + idOf("a"))
	if err := d.Load(context.Background()); err == nil {
		t.Error("Docker is away, and nothing is said")
	}
	docker.reconnect()
	docker.put(containerWith("a", "app", "web"))
	if err := d.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	if found, _ := d.Find(nil, func(string) {}); len(found.Workloads) != 1 || found.Workloads[0].Name != "name-a" {
		t.Errorf("loaded: %+v", found)
	}
}

// Before the engine answers, a container in nested slices is found by its name alone: nobody knows yet what runs.
func TestUnaskedInNestedSlices(t *testing.T) {
	tr, _ := newDockerTree(t)
	find := func() bool {
		found, _ := New(tr.root, Host{Address: "nobody"}).Find(nil, func(string) {})
		return found.Unasked
	}
	tr.in("a.slice/a-b.slice/app.service")
	if find() {
		t.Error("a service is taken for a container")
	}
	tr.in("a.slice/a-b.slice/docker-" + idOf("a") + ".scope")
	if !find() {
		t.Error("a container is not found")
	}
}
