package engine_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/leaktest"
	"thole/internal/nstest/tbtest"
)

// furnishDocker makes a host with an engine, and containers with a network of their own and without.
func furnishDocker(t testing.TB, r *leaktest.Remains) {
	host := nstest.New(t)
	e := engine.StartDocker(t, host)
	image := e.Image("box", nil)
	r.Cgroups = append(r.Cgroups, host.CgroupDir(""))
	r.Dirs = append(r.Dirs, filepath.Dir(e.Socket))
	r.Members = append(r.Members,
		e.Probe("host", "--net=host", "--restart=always", image).PID(),
		e.Probe("bridge", "--publish=8080:80", image).PID())
}

// footprint is where an engine would leave traces on the machine.
func footprint(t *testing.T) map[string]any {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	print := map[string]any{"mounts": string(mounts)}
	for _, pattern := range []string{
		"/etc/docker/*", "/opt/containerd", "/run/docker*", "/run/containerd*", "/var/lib/docker/*",
		"/var/lib/containerd/*",
		"/dev/shm/*", "/etc/cni/net.d/*", "/run/containers*", "/run/libpod*", "/run/netns*", "/run/runc*",
		"/var/cache/containers*", "/var/lib/cni*", "/var/lib/containers*", "/var/tmp/podman*", "/var/tmp/storage*",
		"/sys/class/net/*",
	} {
		print[pattern], _ = filepath.Glob(pattern)
	}
	return print
}

func TestDockerLeavesNothing(t *testing.T) {
	before := footprint(t)
	m := &tbtest.Scope{TB: t}
	made := leaktest.Furnish(m)
	furnishDocker(m, made)
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

func TestDockerLeavesNothingHoweverTheBinaryEnds(t *testing.T) {
	nstest.Need(t, "root", "cgroup2", "dockerd")
	t.Run("fail", func(t *testing.T) {
		cmd, in, made := leaktest.StartVictim(t, "docker, fail")
		in.Close()
		if err := cmd.Wait(); err == nil {
			t.Error("the victim did not fail")
		}
		made.WaitGone(t)
	})
	t.Run("killed", func(t *testing.T) {
		cmd, _, made := leaktest.StartVictim(t, "docker, killed")
		leaktest.Kill(t, cmd)
		made.WaitGone(t)
	})
	t.Run("killed with its janitor", func(t *testing.T) {
		cmd, _, made := leaktest.StartVictim(t, "docker, killed")
		made.KillJanitor(t)
		leaktest.Kill(t, cmd)
		leaktest.RunNextBinary(t)
		made.WaitGone(t)
	})
}
