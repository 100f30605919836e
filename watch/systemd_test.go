package watch

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"thole/watch/cgroupfs"
)

// fakeManager makes directories and counts what holds them. That of systemd is tried in internal/vm.
type fakeManager struct {
	root cgroupfs.Root
	held int
	fail error
}

func (m *fakeManager) Start(unit, _ string) (func(), error) {
	if m.fail != nil {
		return nil, m.fail
	}
	if err := os.Mkdir(m.root.Path(cgroupfs.TholeSlice), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Mkdir(m.root.Path(cgroupfs.TholeSlice+"/"+unit), 0o755); err != nil {
		return nil, err
	}
	m.held++
	return func() { m.held-- }, nil
}

func TestScopesOfAManager(t *testing.T) {
	tr := newTree(t)
	m := &fakeManager{root: tr.root}
	scopes, err := NewScopes(tr.root, testKey, m)
	if err != nil {
		t.Fatal(err)
	}
	list := func() int {
		t.Helper()
		runs, problems := scopes.list(true, func(string) {})
		if len(problems) != 0 {
			t.Errorf("problems: %v", problems)
		}
		return len(runs)
	}
	run, err := scopes.Create(aRun("session-1"))
	if err != nil {
		t.Fatal(err)
	}
	if run.Cgroup.Path != "thole.slice/thole-session-1.scope" || m.held != 1 || list() != 1 {
		t.Errorf("made: %s, %d held, %d listed", run.Cgroup.Path, m.held, list())
	}
	if _, err := scopes.Create(aRun("session-1")); !errors.Is(err, fs.ErrExist) || m.held != 1 {
		t.Errorf("a second one of the name: %v, %d held", err, m.held)
	}
	scopes.Settle(run)
	scopes.Settle(run)
	if n := list(); m.held != 0 || n != 1 {
		t.Errorf("settled: %d held, %d listed", m.held, n)
	}
	if err := os.Remove(tr.root.Path(run.Cgroup.Path)); err != nil {
		t.Fatalf("an empty scope is the manager's to remove: %v", err)
	}
	if n := list(); n != 0 {
		t.Errorf("removed: %d listed", n)
	}
	if run, err = scopes.Create(aRun("again")); err != nil {
		t.Fatal(err)
	}
	if err := scopes.Discard(run); err != nil || m.held != 0 || list() != 0 {
		t.Errorf("discarded: %v, %d held", err, m.held)
	}
	for _, fail := range []error{fs.ErrExist, errors.New("no bus")} {
		m.fail = fail
		_, err := scopes.Create(aRun("never"))
		if err == nil || errors.Is(err, fs.ErrExist) != errors.Is(fail, fs.ErrExist) {
			t.Errorf("refused with %v: %v", fail, err)
		}
	}
	m.fail = nil
	if run, err = scopes.Create(aRun("never")); err != nil {
		t.Fatalf("a name that was refused is still taken: %v", err)
	}
	if err := scopes.Discard(run); err != nil {
		t.Error(err)
	}
}
