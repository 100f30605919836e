package docker

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch/workload"
)

// Podman's containers are found where its cgroup managers put them. What is not known there is closed, unless the place
// is a unit's.
func TestPodmanPlaces(t *testing.T) {
	pod, id := strings.Repeat("b", 64), idOf("a")
	for _, tt := range []struct {
		name, place, cgroup string
		beside              []string // other cgroups
		closed, problem     bool
	}{
		{name: "cgroupfs", place: "libpod_parent", cgroup: "libpod-" + id, beside: []string{"libpod_parent/conmon"},
			closed: true},
		{name: "a pod, cgroupfs", place: "libpod_parent/" + pod, cgroup: "libpod-" + id, closed: true},
		{name: "systemd", place: "machine.slice", cgroup: "libpod-" + id + ".scope",
			beside: []string{"machine.slice/libpod-conmon-" + id + ".scope"}, closed: true},
		{name: "systemd, and another machine", place: "machine.slice", cgroup: "libpod-" + id + ".scope",
			beside: []string{"machine.slice/machine-qemu.scope"}, problem: true},
		{name: "a pod, systemd", place: "machine.slice/machine-libpod_pod_" + pod + ".slice",
			cgroup: "libpod-" + id + ".scope", closed: true},
		{name: "split", place: "system.slice/web.service", cgroup: "libpod-payload-" + id,
			beside: []string{"system.slice/web.service/supervisor"}, problem: true},
		{name: "split, in another slice", place: "shop.slice/web.service", cgroup: "libpod-payload-" + id,
			problem: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, podman := newPodmanTree(t)
			podman.put(containerWith("a", "app", "web"))
			for _, other := range tt.beside {
				tr.in(other)
			}
			tr.in(tt.place + "/" + tt.cgroup)
			s := tr.until("the workload, and what is closed", nil, func(s workload.Snapshot) bool {
				return has("name-a")(s) && slices.Contains(paths(s.Parents), tt.place) == tt.closed
			})
			if got := s.Workloads[0].Cgroup.Path; got != tt.place+"/"+tt.cgroup {
				t.Errorf("cgroup %s, want %s in %s", got, tt.cgroup, tt.place)
			}
			if got := problemsOf(s); (got != "") != tt.problem || tt.problem && !strings.Contains(got, tt.place) {
				t.Errorf("problems %q, want one of %s: %t", got, tt.place, tt.problem)
			}
		})
	}
}

// The units of other users are not searched: root's Podman runs in none of them, and their users make cgroups there.
func TestUnitsOfUsersAreNotSearched(t *testing.T) {
	tr, podman := newPodmanTree(t)
	podman.put(containerWith("a", "app", "web"))
	podman.put(containerWith("b", "app", "web"))
	tr.in("system.slice/users.service")
	if err := os.Chown(tr.root.Path("system.slice/users.service"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	for letter, unit := range map[string]string{"a": "system.slice/users.service", "b": "system.slice/web.service"} {
		tr.in(unit + "/libpod-payload-" + idOf(letter))
	}
	tr.until("the workload of root's unit", nil, has("name-b"))
}

// Podman tells nothing of a container until it runs. Until then its cgroup is closed, also in a place that is not.
func TestPodmanContainerIsClosedUntilItIsKnown(t *testing.T) {
	for _, place := range []string{"libpod_parent", "machine.slice", "system.slice/web.service", "shared.slice"} {
		t.Run(place, func(t *testing.T) {
			tr, podman := newPodmanTree(t)
			tr.in(place)
			nstest.WaitFor(t, patience, "Podman to be followed", tr.docker.places.ofPodman)
			tr.until("the first scan", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 0 })
			podman.set(func() { podman.heldLists = make(chan struct{}) })
			podman.put(containerWith("a", "app", "web"))
			cgroup := place + "/libpod-" + idOf("a")
			tr.in(cgroup)
			closed := func(s workload.Snapshot) bool {
				closed := paths(s.Parents)
				return slices.Contains(closed, cgroup) || slices.Contains(closed, place)
			}
			tr.until("the container to be closed", nil, func(s workload.Snapshot) bool {
				return closed(s) && !has("name-a")(s)
			})
			close(podman.heldLists)
			tr.until("the container to be known", nil, func(s workload.Snapshot) bool {
				return has("name-a")(s) && !slices.Contains(paths(s.Parents), cgroup)
			})
		})
	}
}

// Containers whose cgroup has a name of another engine are a problem, if processes live there.
func TestContainersOfAnotherEngine(t *testing.T) {
	for _, tt := range []struct {
		name, cgroup string
		start        func(*testing.T) (*tree, *fakeEngine)
		want         string
	}{
		{"Podman's, Docker is followed", "machine.slice/libpod-" + idOf("a") + ".scope",
			func(t *testing.T) (*tree, *fakeEngine) { return newDockerTree(t) }, EnginePodman},
		{"Docker's, Podman is followed", "docker/" + idOf("a"), newPodmanTree, EngineDocker},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, _ := tt.start(t)
			p := tr.in(tt.cgroup).Start("sleep", "infinity")
			s := tr.until("the problem", nil, judgedExcept(tt.cgroup+": this is a container of "+tt.want+
				", and the engine at fake has no such container"))
			if s.Conditions[0].Code != condition.ContainerNotJudged {
				t.Errorf("problem %v", s.Conditions[0])
			}
			p.Kill()
			_ = p.Wait() // it was killed
			if got := notJudgedIn(tr.cgroups.Scan(nil)); got != nil {
				t.Errorf("it has ended: problems %q", got)
			}
		})
	}
}

// What Podman's answers mean: networks by name, with the interface that only its own API tells, and no image.
func TestPodmanAnswers(t *testing.T) {
	const networks = `[{"name":"podman","id":"2f","driver":"bridge","network_interface":"podman0",
		"subnets":[{"subnet":"10.88.0.0/16","gateway":"10.88.0.1"}]},
		{"name":"lan","driver":"macvlan","network_interface":"eth0"}]`
	inspected := `{"Id":"` + idOf("a") + `","Name":"/a","Image":"sha256:","State":{"Running":true,"Pid":7},
		"HostConfig":{"NetworkMode":"bridge","UsernsMode":"private"},"Config":{},
		"NetworkSettings":{"Networks":{"shop":{"NetworkID":"shop","IPAddress":"10.89.0.2"}}}}`
	e, err := dial(context.Background(), Host{Given: true, Address: serveAPI(t, map[string]string{
		"info": "{}", "version": podmanVersion, "libpod/networks/json": networks,
		"containers/" + idOf("a") + "/json": inspected, "libpod/containers/" + idOf("a") + "/json": `{"IsInfra":true}`,
		"containers/json": `[{"Id":"a","Names":["/a"],"ImageID":"sha256:","State":"stopping","NetworkSettings":
			{"Networks":{"shop":{"NetworkID":"shop","IPAddress":"10.89.0.2"}}}}]`,
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close() //nolint:errcheck // all was answered
	found, err := e.Networks(context.Background())
	if err != nil || len(found) != 1 || found[0].bridge != "podman0" || found[0].id != "podman" ||
		len(found[0].subnets) != 1 {
		t.Errorf("networks %+v, %v", found, err)
	}
	c, err := e.Inspect(context.Background(), idOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	if c.network != "shop" || c.imageLabels == nil || !c.details.userNamespace || c.details.modeUnknown || !c.infra ||
		len(c.details.addresses["shop"]) != 1 {
		t.Errorf("inspected: %+v, %+v", c, c.details)
	}
	list, err := e.List(context.Background())
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if diff := cmp.Diff(map[string]string{"shop": "10.89.0.2"}, list[0].endpoints); diff != "" || !list[0].running {
		t.Errorf("listed: %+v\n%s", list[0], diff)
	}
}
