package nstest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// furnishEngine makes a host with an engine, and containers with a network of their own and without.
func furnishEngine(t testing.TB, r *remains) {
	host := nstest.New(t)
	e := nstest.StartEngine(t, host)
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

func TestEngineLeavesNothing(t *testing.T) {
	before := footprint(t)
	m := &moment{TB: t}
	made := furnish(m)
	furnishEngine(m, made)
	made.hold(t)
	during := footprint(t)
	m.end()
	for _, dir := range made.present() {
		t.Errorf("left: %s", dir)
	}
	for when, got := range map[string]map[string]any{"during": during, "after": footprint(t)} {
		if diff := cmp.Diff(before, got); diff != "" {
			t.Errorf("the machine %s the test (-before +%s):\n%s", when, when, diff)
		}
	}
}

func TestEngineLeavesNothingHoweverTheBinaryEnds(t *testing.T) {
	nstest.Need(t, "root", "cgroup2", "dockerd")
	t.Run("fail", func(t *testing.T) {
		cmd, in, made := startVictim(t, "engine, fail")
		in.Close()
		if err := cmd.Wait(); err == nil {
			t.Error("the victim did not fail")
		}
		made.waitGone(t)
	})
	t.Run("killed", func(t *testing.T) {
		cmd, _, made := startVictim(t, "engine, killed")
		kill(t, cmd)
		made.waitGone(t)
	})
	t.Run("killed with its janitor", func(t *testing.T) {
		cmd, _, made := startVictim(t, "engine, killed")
		if err := unix.PidfdSendSignal(made.pidfd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		made.waitJanitorGone(t)
		kill(t, cmd)
		if out, err := exec.Command("/proc/self/exe", "-test.run=^$").CombinedOutput(); err != nil {
			t.Fatalf("the next test binary: %v\n%s", err, out)
		}
		made.waitGone(t)
	})
}
