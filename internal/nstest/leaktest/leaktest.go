package leaktest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// Remains are what a test has made, as it is seen from outside.
type Remains struct {
	Cgroups []string // directories
	Members []int    // processes, one of each network
	Dirs    []string // of engines
	Janitor int      // its pid

	networks []*os.File // kept open, so that their numbers are not used again
	pidfd    int        // the janitor's
}

// Hold opens what would have no name any more when it is gone.
func (r *Remains) Hold(t *testing.T) {
	t.Helper()
	for _, pid := range r.Members {
		network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { network.Close() })
		r.networks = append(r.networks, network)
	}
	var err error
	if r.pidfd, err = unix.PidfdOpen(r.Janitor, 0); err != nil {
		t.Fatalf("janitor %d: %v", r.Janitor, err)
	}
	t.Cleanup(func() { unix.Close(r.pidfd) })
	if len(r.Cgroups) < 2 || len(r.networks) < 2 {
		t.Fatalf("it made two hosts, but tells of %+v", r)
	}
}

// Present lists what of it is still there, the janitor excepted.
func (r *Remains) Present() []string {
	var there []string
	for _, dir := range slices.Concat(r.Cgroups, r.Dirs) {
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	for _, network := range r.networks {
		id, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", network.Fd()))
		for _, link := range links {
			if got, _ := os.Readlink(link); got == id {
				there = append(there, link)
			}
		}
	}
	return there
}

// WaitGone waits until nothing of it is there, the janitor excepted.
func (r *Remains) WaitGone(t *testing.T) {
	t.Helper()
	var there []string
	defer func() {
		if len(there) > 0 {
			t.Errorf("left: %s", strings.Join(there, ", "))
		}
	}()
	nstest.WaitFor(t, 10*time.Second, "all that it made to be gone", func() bool {
		there = r.Present()
		return len(there) == 0
	})
}

// WaitJanitorGone waits until the janitor has ended.
func (r *Remains) WaitJanitorGone(t *testing.T) {
	t.Helper()
	nstest.WaitFor(t, 10*time.Second, "the janitor to end", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(r.pidfd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// Furnish makes two linked hosts, probes, programs, and a process that forked away from its parent twice.
func Furnish(t testing.TB) *Remains {
	r := &Remains{Janitor: janitorOf(os.Getpid())}
	a, b := nstest.New(t), nstest.New(t)
	nstest.Link(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
	for _, h := range []*nstest.Host{a, b} {
		p := probe.Start(h.In("thole.slice/web"), "p")
		p.Fork("child").Listen("tcp", "[::]:80")
		h.In("thole.slice/cli").As(4242).Start("sleep", "infinity")
		h.In("deep/deeper").Shell("setsid sh -c 'setsid sleep infinity & trap \"\" TERM HUP INT; sleep infinity' " +
			">/dev/null 2>&1 &")
		wire.Observe(h)
		r.Cgroups = append(r.Cgroups, h.CgroupDir(""))
		r.Members = append(r.Members, p.PID())
	}
	return r
}

func janitorOf(pid int) int {
	children, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, file := range children {
		list, _ := os.ReadFile(file)
		for _, child := range strings.Fields(string(list)) {
			if name, _ := os.ReadFile("/proc/" + child + "/cmdline"); strings.HasPrefix(string(name),
				"nstest-janitor\x00") {
				pid, _ := strconv.Atoi(child)
				return pid
			}
		}
	}
	return 0
}

// victim is the environment variable that tells TestVictim how to end.
const victim = "NSTEST_VICTIM"

// Victim is the body of the test TestVictim, which StartVictim runs: it makes something, says what, and ends as it was
// told: "panic", "exit", "fail", "pass". Names of more, as in "docker, fail", have it make more before. In an ordinary
// run of the tests it does nothing.
func Victim(t *testing.T, more map[string]func(testing.TB, *Remains)) {
	t.Helper()
	how := os.Getenv(victim)
	if how == "" {
		return
	}
	made := Furnish(t)
	for name, furnish := range more {
		if rest, ok := strings.CutPrefix(how, name+", "); ok {
			how = rest
			furnish(t, made)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(made); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it was seen
	switch how {
	case "panic":
		panic("as told")
	case "exit":
		os.Exit(3)
	case "fail":
		t.Fatal("as told")
	}
}

// StartVictim runs TestVictim in a test binary of its own, and returns when it has made everything. It goes on when its
// stdin is closed.
func StartVictim(t *testing.T, how string) (*exec.Cmd, io.Closer, *Remains) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), victim+"="+how)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	made := new(Remains)
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err := errors.Join(err, json.Unmarshal(line, made)); err != nil {
		t.Fatalf("the victim says %q: %v", line, err)
	}
	made.Hold(t)
	return cmd, in, made
}

// Kill kills a victim.
func Kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("the victim: %v", err)
	}
}

// KillJanitor kills the janitor of a victim.
func (r *Remains) KillJanitor(t *testing.T) {
	t.Helper()
	if err := unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	r.WaitJanitorGone(t)
}

// RunNextBinary runs a test binary with no test: it removes what binaries before it left.
func RunNextBinary(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("/proc/self/exe", "-test.run=^$").CombinedOutput(); err != nil {
		t.Fatalf("the next test binary: %v\n%s", err, out)
	}
}
