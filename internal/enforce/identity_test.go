package enforce

import (
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch/workload"
)

// A workload whose document cannot be resolved just now gets what a new certificate requires, too.
func TestUnresolvedWithANewCertificate(t *testing.T) {
	set, err := policyset.Parse(api.SourceApplied, []policy.File{{Name: "w.yaml", Data: []byte(`
apiVersion: thole/v1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {user: nobody}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	binding := set.Docs.Bindings[0]
	w := policy.Workload{
		Name: binding.Name, Kind: policy.KindUser, Labels: policy.Labels{"app": "web", "team": "a"},
		Facts:  policy.Labels{policy.NodeFact: "old", "other": "fact"},
		Cgroup: policy.Cgroup{Path: "user.slice", ID: 7},
	}
	e := &Enforcer{
		set: set, cgroups: fakeCgroups{living: map[uint64]bool{7: true}},
		loaded:   loaded{workloads: newRoster([]policy.Workload{w}, nil)},
		identity: &state.Identity{Node: "new", Require: policy.Labels{"team": "b"}},
	}
	kept := e.unresolved(set, workload.Snapshot{}.Workloads)
	if len(kept) != 1 || kept[0].Labels["team"] != "b" ||
		kept[0].Facts[policy.NodeFact] != "new" || kept[0].Facts["other"] != "fact" {
		t.Errorf("%+v", kept)
	}
	if w.Labels["team"] != "a" || w.Facts[policy.NodeFact] != "old" {
		t.Errorf("the workload of the loaded table was changed: %+v", w)
	}
}

// A label that the certificate requires takes the place of an image's with the same value, and never hides another.
func TestRequiredLabelAndDoubtfulOne(t *testing.T) {
	id := &state.Identity{Node: "n", Require: policy.Labels{"team": "a"}}
	same := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: policy.Labels{"app": "x"},
		Doubtful: policy.Labels{"team": "a"}}
	if found := certify(id, &policy.Settings{}, &same); found != nil || same.Labels["team"] != "a" ||
		len(same.Doubtful) > 0 ||
		!hasRequired(id, same) {
		t.Errorf("the same value: %+v, %v", same, found)
	}
	other := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: policy.Labels{"app": "x"},
		Doubtful: policy.Labels{"team": "b"}}
	found := certify(id, &policy.Settings{}, &other)
	if len(found) != 1 || found[0].Code != condition.CertificateContradicts || hasRequired(id, other) {
		t.Errorf("another value: %+v, %v", other, found)
	}
	deny := policy.Selector{Requirements: []policy.Requirement{{Key: "team", Operator: policy.In,
		Values: []string{"b"}}}}
	if !deny.Selects(&other, policy.Restricting) {
		t.Errorf("another value is hidden: %+v", other)
	}
}
