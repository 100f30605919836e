package enforce

import (
	"testing"

	"thole/compiler/policy"
	"thole/internal/state"
)

// A container that was unlabelled and is a workload now, or the other way round, is found by its path.
func TestRosterKnowsWhatBecomesAWorkload(t *testing.T) {
	cgroup := policy.Cgroup{Path: "docker/a", ID: 7}
	w := policy.Workload{Kind: policy.KindContainer, Cgroup: cgroup}
	free := &state.Containers{Unlabelled: []policy.Unlabelled{{Cgroup: cgroup}}}
	r := newRoster(nil, free.Unlabelled)
	for _, step := range []struct {
		name string
		delta
	}{
		{"it becomes a workload", delta{began: []policy.Workload{w}, containers: &state.Containers{}}},
		{"it becomes unlabelled", delta{ended: []policy.Workload{w}, containers: free}},
		{"it becomes a workload again", delta{began: []policy.Workload{w}, containers: &state.Containers{}}},
	} {
		r.apply(&step.delta)
		if id, ok := r.named(cgroup.Path); !ok || id != cgroup.ID {
			t.Errorf("%s: its path names %d, %t", step.name, id, ok)
		}
	}
	r.apply(&delta{ended: []policy.Workload{w}})
	if id, ok := r.named(cgroup.Path); ok {
		t.Errorf("after its end, its path names %d", id)
	}
}
