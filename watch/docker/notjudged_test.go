package docker

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch/workload"
)

// notJudgedIn returns a snapshot's problems of code container-not-judged, as "WHERE: REASON": the text up to its
// colon.
func notJudgedIn(s workload.Snapshot) []string {
	var list []string
	for _, c := range s.Conditions {
		if c.Code == condition.ContainerNotJudged {
			reason, _, _ := strings.Cut(c.Text, ":")
			list = append(list, c.Where+": "+reason)
		}
	}
	return list
}

func judgedExcept(want ...string) func(workload.Snapshot) bool {
	return func(s workload.Snapshot) bool { return cmp.Equal(notJudgedIn(s), want) }
}

// strangeContainer is a running container the name of whose cgroup is not recognised.
func strangeContainer(tr *tree, letter, mode string, unknown bool) (container, *nstest.Process) {
	p := tr.in("other_parent/other-"+idOf(letter)).Start("sleep", "infinity")
	c := containerWith(letter, "app", "web")
	c.running, c.network = true, mode
	c.details = &details{pid: p.Pid, modeUnknown: unknown}
	return c, p
}

const notFound = "it runs, and its cgroup was not found"

// A container of an engine none of whose cgroups is recognised is a problem while it runs, and no longer.
func TestRunningContainerWithoutCgroup(t *testing.T) {
	tr, docker := newDockerTree(t)
	c, p := strangeContainer(tr, "a", "host", false)
	docker.put(c)
	docker.emit(event{container: c.id})
	s := tr.until("the problem", nil, judgedExcept("container name-a: "+notFound))
	for _, want := range []string{"no policy protects or restricts it", "/other-" + c.id} {
		if got := problemsOf(s); !strings.Contains(got, want) {
			t.Errorf("problem %q, want it to have %q", got, want)
		}
	}
	p.Kill()
	_ = p.Wait() // it was killed
	if got := notJudgedIn(tr.cgroups.Scan(nil)); got != nil {
		t.Errorf("its process has ended, and the engine has not said so yet: problems %q", got)
	}
	c.running, c.details = false, &details{}
	docker.put(c)
	docker.emit(event{container: c.id})
	nstest.WaitFor(t, patience, "the end to be known", func() bool {
		tr.docker.containers.mu.Lock()
		defer tr.docker.containers.mu.Unlock()
		return !tr.docker.containers.records[c.id].running
	})
	for range maxListingsWithoutCgroup + 1 {
		tr.listAnew(docker)
	}
	if got := notJudgedIn(tr.cgroups.Scan(nil)); got != nil {
		t.Errorf("it does not run: problems %q", got)
	}
}

// Containers that were only made, or that have ended, are no problems. Neither is one whose cgroup is found.
func TestContainersThatAreNoProblem(t *testing.T) {
	tr, docker := newDockerTree(t)
	docker.put(containerWith("a", "app", "web"))
	c := containerWith("b", "app", "web")
	c.running = true
	docker.put(c)
	tr.in("docker/" + c.id)
	for range maxListingsWithoutCgroup + 1 {
		tr.listAnew(docker)
	}
	if got := problemsOf(tr.until("the workload", nil, has("name-b"))); got != "" {
		t.Errorf("problems %q", got)
	}
}

// listAnew has all containers listed once more, as happens every listInterval.
func (tr *tree) listAnew(docker *fakeEngine) {
	tr.t.Helper()
	if err := tr.docker.newSession(docker, nil).listAll(context.Background()); err != nil {
		tr.t.Fatal(err)
	}
}

// The engine lists a container as running, and no process of it is found: it may have just ended. If the engine still
// lists it as running at the third listing, it is a problem.
func TestContainerThatMayHaveEnded(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		hold bool // Inspect does not answer
	}{{"its process has ended", false}, {"it cannot be inspected", true}} {
		t.Run(tt.name, func(t *testing.T) {
			tr, docker := newDockerTree(t)
			if tt.hold {
				docker.set(func() { docker.held = make(chan struct{}) })
			}
			c := containerWith("a", "app", "web")
			c.running, c.details = true, &details{pid: ended.Process.Pid}
			docker.put(c)
			for n := 1; n < maxListingsWithoutCgroup; n++ {
				list := tr.docker.containers
				for listed := -1; listed != n; listed = list.withoutCgroup(c.id) { // until Run did not list, too
					list.setWithoutCgroup(c.id, n-1)
					tr.listAnew(docker)
					if got := notJudgedIn(tr.cgroups.Scan(nil)); got != nil && list.withoutCgroup(c.id) == n {
						t.Errorf("after %d listings: problems %q", n, got)
					}
				}
			}
			tr.listAnew(docker)
			tr.until("the problem", nil, judgedExcept("container name-a: "+notFound))
			tr.in("docker/" + c.id)
			tr.until("the cgroup", nil, judgedExcept())
		})
	}
}

// setWithoutCgroup sets in how many listings in a row a container had no cgroup.
func (c *containers) setWithoutCgroup(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		changed := *r
		changed.listingsWithoutCgroup = n
		c.records[id] = &changed
	}
}

// withoutCgroup returns in how many listings in a row a container had no cgroup.
func (c *containers) withoutCgroup(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		return r.listingsWithoutCgroup
	}
	return 0
}

// A container that is restarted has no cgroup in between, and is no problem.
func TestRestartedContainerIsNoProblem(t *testing.T) {
	tr, docker := newDockerTree(t)
	c := containerWith("a", "app", "web")
	c.running = true
	for range 5 {
		p := tr.in("docker/"+c.id).Start("sleep", "infinity")
		c.details = &details{pid: p.Pid}
		docker.put(c)
		docker.emit(event{container: c.id})
		id := tr.id("docker/" + c.id)
		tr.until("the workload", nil, func(s workload.Snapshot) bool {
			return has("name-a")(s) && s.Workloads[0].Cgroup.ID == id
		})
		p.Kill()
		_ = p.Wait() // it was killed
		tr.remove("docker/" + c.id)
		if got := notJudgedIn(tr.cgroups.Scan(nil)); got != nil {
			t.Fatalf("problems %q", got)
		}
	}
}

// A running container with a network mode that is unknown is a problem, also where its cgroup is found.
func TestUnknownNetworkMode(t *testing.T) {
	tr, docker := newDockerTree(t)
	a, _ := strangeContainer(tr, "a", "slirp4netns", true)
	b := containerWith("b", "app", "web")
	b.running, b.network, b.details = true, "ns:/run/netns/b", &details{modeUnknown: true}
	made := containerWith("c", "app", "web")
	made.network, made.details = "pasta", &details{modeUnknown: true}
	tr.in("docker/" + b.id)
	for _, c := range []container{a, b, made} {
		docker.put(c)
		docker.emit(event{container: c.id})
	}
	want := judgedExcept(
		"container name-a: "+notFound,
		`container name-a: its network mode "slirp4netns" is unknown`,
		`container name-b: its network mode "ns`,
	)
	tr.until("the problems", nil, want)
	tr.listAnew(docker)
	tr.until("the same problems after another listing", nil, want)
}

// A network mode that a list does not contain stays as the inspection had it.
func TestListWithoutNetworkMode(t *testing.T) {
	before := newRecord(container{id: idOf("a"), network: "host", details: &details{}})
	r := newRecord(container{id: idOf("a")})
	r.completeFrom(before)
	if got := r.facts[workload.FactNetwork]; got != "host" {
		t.Errorf("network %q, want host", got)
	}
}
