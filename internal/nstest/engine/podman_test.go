package engine_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/leaktest"
	"thole/internal/nstest/tbtest"
)

// A Podman's containers are in cgroups of the host, in its network or in their own, and have the labels that they were
// given.
func TestPodman(t *testing.T) {
	host := nstest.New(t)
	p := engine.StartPodman(t, host)
	image := p.Image("box", map[string]string{"from": "image"})
	machine := host.Shell("readlink /proc/self/ns/net")
	for _, network := range []string{"host", "none"} {
		p.Podman("run", "-d", "--name="+network, "--net="+network, "-l", "app=web", image, "sleep", "1000")
		id := p.Podman("inspect", "--format={{.Id}}", network)
		pid := p.Podman("inspect", "--format={{.State.Pid}}", network)
		pids := host.In("libpod_parent/libpod-" + id).Pids()
		if number, _ := strconv.Atoi(pid); !slices.Equal(pids, []int{number}) {
			t.Errorf("processes in the cgroup of %s: %v, want %s", network, pids, pid)
		}
		if own := host.Shell("readlink /proc/"+pid+"/ns/net") != machine; own != (network == "none") {
			t.Errorf("%s has a network of its own: %t", network, own)
		}
	}
	list := host.Shell("curl -s --unix-socket " + engine.PodmanSocket + " http://podman/v1.41/containers/json")
	if n := strings.Count(list, `{"app":"web","from":"image"}`); n != 2 {
		t.Errorf("the API service at Docker's socket lists %s, want two containers with their labels", list)
	}
}

// furnishPodman makes a host with Podman, and containers with a network of their own and without.
func furnishPodman(t testing.TB, r *leaktest.Remains) {
	host := nstest.New(t)
	p := engine.StartPodman(t, host)
	image := p.Image("box", nil)
	r.Cgroups = append(r.Cgroups, host.CgroupDir(""))
	for _, args := range [][]string{{"--net=host", "--restart=always"}, {"--publish=8080:80"}} {
		id := p.Podman(append(append([]string{"run", "-d"}, args...), image, "sleep", "1000")...)
		pid, err := strconv.Atoi(p.Podman("inspect", "--format={{.State.Pid}}", id))
		if err != nil {
			t.Fatal(err)
		}
		r.Members = append(r.Members, pid)
	}
}

func TestPodmanLeavesNothing(t *testing.T) {
	before := footprint(t)
	m := &tbtest.Scope{TB: t}
	made := leaktest.Furnish(m)
	furnishPodman(m, made)
	made.Hold(t)
	during := footprint(t)
	m.End()
	for _, dir := range made.Present() {
		t.Errorf("left: %s", dir)
	}
	for when, got := range map[string]map[string]any{"during": during, "after": footprint(t)} {
		if diff := cmp.Diff(before, got); diff != "" {
			t.Errorf("the machine %s the test (-before +%s):\n%s", when, when, diff)
		}
	}
}

func TestPodmanLeavesNothingHoweverTheBinaryEnds(t *testing.T) {
	nstest.Need(t, "root", "cgroup2", "podman")
	before := footprint(t)
	cmd, _, made := leaktest.StartVictim(t, "podman, killed")
	leaktest.Kill(t, cmd)
	made.WaitGone(t)
	made.WaitJanitorGone(t)
	if diff := cmp.Diff(before, footprint(t)); diff != "" {
		t.Errorf("the machine after the test (-before +after):\n%s", diff)
	}
}
