package daemon

import (
	"os"
	"testing"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/internal/state"
	"thole/ruleset"
)

// A state directory that cannot be read neither ends the enforcement, nor keeps anybody from turning Thole off.
func TestStateDirectoryCannotBeRead(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	dir := b.config.State
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.kernel.Change(func() { b.kernel.Table = nil })
	nstest.WaitFor(t, patience, "the table to be loaded again", func() bool { return b.kernel.Loaded() != nil })
	nstest.WaitFor(t, patience, "the problem", func() bool {
		for _, p := range b.status().Problems {
			if p.Code == condition.StateUnreadable {
				return true
			}
		}
		return false
	})

	answer, err := b.client.Disarm(t.Context())
	if err != nil || answer.Stored || answer.Error == "" {
		t.Errorf("disarmed: %+v, %v", answer, err)
	}
	// No table could be bypassed, so sockets are not looked at.
	if s := b.status(); s.Enforcing || s.Disarmed == nil || s.Sockets != nil || b.kernel.Loaded() != nil {
		t.Errorf("disarmed, but not stored: %+v, table loaded %v", s, b.kernel.Loaded() != nil)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Arm(t.Context()); err != nil || !b.status().Enforcing || b.kernel.Loaded() == nil {
		t.Errorf("armed: %v, %+v", err, b.status())
	}
}

// "thole cleanup" between the look at the file and the loading: nothing stays loaded.
func TestDisarmedWhileLoading(t *testing.T) {
	b := newBench(t)
	dir := state.At(b.config.State)
	b.kernel.Change(func() {
		b.kernel.Before = func(c ruleset.Change) {
			if c.Want != nil {
				if err := dir.Disarm(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	answer, err := b.client.Apply(t.Context(), api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if err != nil || answer.Disarmed == nil || b.kernel.Loaded() != nil {
		t.Errorf("apply: %+v, %v; table loaded %v", answer, err, b.kernel.Loaded() != nil)
	}
}
