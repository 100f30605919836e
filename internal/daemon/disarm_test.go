package daemon

import (
	"os"
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
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
	b.kernel.set(func() { b.kernel.table = nil })
	nstest.WaitFor(t, patience, "the table to be loaded again", func() bool { return b.kernel.loaded() != nil })
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
	if s := b.status(); s.Enforcing || s.Disarmed == nil || b.kernel.loaded() != nil {
		t.Errorf("disarmed, but not stored: %+v, table loaded %v", s, b.kernel.loaded() != nil)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Arm(t.Context()); err != nil || !b.status().Enforcing || b.kernel.loaded() == nil {
		t.Errorf("armed: %v, %+v", err, b.status())
	}
}

// "thole cleanup" between the look at the file and the loading: nothing stays loaded.
func TestDisarmedWhileLoading(t *testing.T) {
	b := newBench(t)
	state := &stateDir{dir: b.config.State}
	b.kernel.set(func() {
		b.kernel.before = func(c ruleset.Change) {
			if c.Want != nil {
				if err := state.disarm(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	answer, err := b.client.Apply(t.Context(), api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if err != nil || answer.Disarmed == nil || b.kernel.loaded() != nil {
		t.Errorf("apply: %+v, %v; table loaded %v", answer, err, b.kernel.loaded() != nil)
	}
}

// A label that the certificate requires takes the place of an image's with the same value, and never hides another.
func TestRequiredLabelAndDoubtfulOne(t *testing.T) {
	id := &identity{Node: "n", Require: policy.Labels{"team": "a"}}
	same := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: policy.Labels{"app": "x"},
		Doubtful: policy.Labels{"team": "a"}}
	if found := carry(id, &policy.Settings{}, &same); found != nil || same.Labels["team"] != "a" ||
		len(same.Doubtful) > 0 ||
		!id.requiredOf(same) {
		t.Errorf("the same value: %+v, %v", same, found)
	}
	other := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: policy.Labels{"app": "x"},
		Doubtful: policy.Labels{"team": "b"}}
	found := carry(id, &policy.Settings{}, &other)
	if len(found) != 1 || found[0].Code != condition.CertificateContradicts || id.requiredOf(other) {
		t.Errorf("another value: %+v, %v", other, found)
	}
	deny := policy.Selector{Requirements: []policy.Requirement{{Key: "team", Operator: policy.In,
		Values: []string{"b"}}}}
	if !deny.MayMatch(&other) {
		t.Errorf("another value is hidden: %+v", other)
	}
}
