package api

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/watch"
	"thole/watch/cgroupfs"
)

func TestMain(m *testing.M) { os.Exit(nstest.Run(m)) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// fakeAsker says what a test wants of who asks.
type fakeAsker struct {
	pid   int
	gone  func(call int) bool // has the process ended, at the n-th question?
	asked int
}

func (a *fakeAsker) caller() (caller, error) { return caller{}, nil }

func (a *fakeAsker) process() (int, error) {
	a.asked++
	if a.gone != nil && a.gone(a.asked) {
		return a.pid, errPeerGone
	}
	return a.pid, nil
}

func (a *fakeAsker) waiting() error { return nil }

// knowsAll is a table that knows every cgroup at once.
type knowsAll struct{}

func (knowsAll) Sync(context.Context) error  { return nil }
func (knowsAll) Knows(uint64) bool           { return true }
func (knowsAll) Grants() []policy.LabelGrant { return nil }
func (knowsAll) Settings() *policy.Settings  { return &policy.Settings{} }

func itself(uid uint32) uint32 { return uid }

// A runBench is a runner on a host of its own.
type runBench struct {
	*runner
	t    *testing.T
	root cgroupfs.Root
}

func newRunBench(t *testing.T) *runBench {
	t.Helper()
	root, err := cgroupfs.RootAt(nstest.New(t).CgroupDir(""))
	if err != nil {
		t.Fatal(err)
	}
	scopes, err := watch.NewScopes(root, make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return &runBench{&runner{scopes: scopes, table: knowsAll{}, account: itself, log: log, now: time.Now}, t, root}
}

// ask has web run by who asks.
func (b *runBench) ask(a asker) error {
	_, err := b.run(context.Background(), a, RunRequest{Name: "web", Labels: map[string]string{"app": "web"}})
	return err
}

// emptied waits until the cgroup is empty, and removes it as the daemon does.
func (b *runBench) emptied() {
	b.t.Helper()
	nstest.WaitFor(b.t, patience, "the cgroup's end", func() bool {
		if _, err := watch.RemoveEmptyScopes(b.root); err != nil {
			b.t.Fatal(err)
		}
		return !b.left()
	})
}

func (b *runBench) left() bool {
	_, err := os.Stat(b.root.Path("thole.slice/web.scope"))
	return err == nil
}

// bystander is a process that never asked.
func bystander(t *testing.T) *exec.Cmd {
	t.Helper()
	p := exec.Command("sleep", "infinity")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// The process that asked ends, and its pid is given to another: a bystander.
func TestPIDReuse(t *testing.T) {
	b, other := newRunBench(t), bystander(t)
	run := func(gone func(int) bool) error { return b.ask(&fakeAsker{pid: other.Process.Pid, gone: gone}) }
	if err := run(func(int) bool { return true }); !errors.Is(err, errPeerGone) {
		t.Errorf("it ended before the move: %v", err)
	}
	if b.left() {
		t.Error("a cgroup is left")
	}

	if err := run(func(call int) bool { return call == 2 }); !errors.Is(err, errPeerGone) {
		t.Errorf("it ended during the move: %v", err)
	}
	// In between it was in the cgroup, by its new pid: it is left alone.
	if other.ProcessState != nil || unix.Kill(other.Process.Pid, 0) != nil {
		t.Error("the bystander was harmed")
	}
	_ = other.Process.Kill()
	b.emptied()
}

// The process ends just when it was found to be in its cgroup.
func TestEndAtTheLastMoment(t *testing.T) {
	b, p := newRunBench(t), bystander(t)
	err := b.ask(&fakeAsker{pid: p.Process.Pid, gone: func(call int) bool {
		if call == 3 {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
		return call == 3
	}})
	if !errors.Is(err, errPeerGone) {
		t.Errorf("run: %v; want %v", err, errPeerGone)
	}
	b.emptied()
}
