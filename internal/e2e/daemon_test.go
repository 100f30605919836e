package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/faults"
	"thole/internal/nstest/probe"
)

// scratch is where the program is built; TestMain removes it.
var scratch string

// tholeBinary builds the program once for all tests, unless THOLE_BINARY says where it is.
var tholeBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("THOLE_BINARY"); path != "" {
		return path, nil
	}
	var err error
	if scratch, err = os.MkdirTemp("", "thole-e2e-"); err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "thole")
	out, err := exec.Command("go", "build", "-o", path, "thole/cmd/thole").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// A machine is a host with a daemon.
type machine struct {
	*nstest.Host
	t      testing.TB
	thole  string
	args   []string // of its daemon, where it is started more than once
	daemon *nstest.Process
	faults *faults.Injector // nil: none
}

// newMachine starts a daemon on a new host and waits until it enforces.
func newMachine(t *testing.T, args ...string) *machine {
	t.Helper()
	m := bareMachine(t)
	m.start(args...)
	return m
}

// bareMachine is a machine whose daemon was not started yet.
func bareMachine(t testing.TB) *machine {
	t.Helper()
	thole, err := tholeBinary()
	must(t, err)
	return &machine{Host: nstest.New(t), t: t, thole: thole}
}

func (m *machine) start(args ...string) {
	m.t.Helper()
	// It is scheduled as thole.service says.
	command := append([]string{m.thole, "daemon", "--state", "/run/state"}, args...)
	if m.faults != nil {
		command = m.faults.Wrap(m.t, m.thole, command...)
	}
	m.daemon = m.In("daemon").Start("chrt", append([]string{"--rr", "1"}, command...)...)
	if m.faults != nil {
		m.faults.Follow(m.t, m.daemon.Pid)
	}
	nstest.WaitFor(m.t, 10*time.Second, "the daemon to enforce", func() bool {
		out, _ := m.Command(m.thole, "status", "-o", "json").Output() // it fails where there is a problem to tell of
		var status api.Status
		return json.Unmarshal(out, &status) == nil && status.Enforcing
	})
}

// run is thole run to its end, from an unlabelled cgroup.
func (m *machine) run(label string, command ...string) (string, error) {
	out, err := m.Command(m.thole, append([]string{"run", "--label", label, "--"}, command...)...).CombinedOutput()
	return string(out), err
}

// apply loads policies, or returns the error.
func (m *machine) apply(yaml string) error {
	m.t.Helper()
	cmd := m.Command(m.thole, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// A process that sends in its first instructions, 200 times, while both cores are
// busy: what is forbidden never arrives, what is allowed always does.
func TestNothingLeavesBeforeTheLabelsHold(t *testing.T) {
	m := newMachine(t)
	sender := filepath.Join(t.TempDir(), "sender")
	must(t, os.WriteFile(sender, probe.SenderProgram(localhost, probe.AfterSend{}, 4001, 4002), 0o755))
	busy := m.In("busy")
	for range 2 {
		busy.Start("sh", "-c", "while :; do :; done")
	}
	// The receivers are labelled by hand: the same labels as the sender, and others.
	friend := m.labelledProbe("friend", "app=web")
	other := m.labelledProbe("other", "app=db")
	forbidden := other.OpenUDP("udp", "127.0.0.1:4001")
	expected := friend.OpenUDP("udp", "127.0.0.1:4002")
	const starts = 200
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range starts / 8 {
				if out, err := m.run("app=web", sender); err != nil {
					t.Errorf("a start: %v: %s", err, out)
				}
			}
		})
	}
	all.Wait()
	m.Barrier()
	if n := len(forbidden.Received()); n != 0 {
		t.Errorf("%d forbidden packets of %d starts arrived", n, starts)
	}
	if n := len(expected.Received()); n != starts {
		t.Errorf("%d of %d allowed packets arrived", n, starts)
	}
	nstest.WaitFor(t, 10*time.Second, "empty cgroups to be removed", func() bool {
		return strings.Count(m.Shell("ls /sys/fs/cgroup/thole.slice"), ".scope") <= 2
	})
}

// labelledProbe starts a probe and has the daemon take its process in.
func (m *machine) labelledProbe(name, label string) *probe.Process {
	m.t.Helper()
	return probe.Start(m.labelled(name, label), name)
}

var localhost = [4]byte{127, 0, 0, 1}
