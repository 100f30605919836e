package enforce

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/enforce/certified"
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
		Facts:  policy.Labels{policy.NodeFact: "old", "com.docker.compose.service": "db"},
		Cgroup: policy.Cgroup{Path: "user.slice", ID: 7},
	}
	e := &Enforcer{
		set: set, cgroups: fakeCgroups{living: map[uint64]bool{7: true}},
		loaded:   loaded{workloads: newRoster([]policy.Workload{w}, nil)},
		identity: &state.Identity{Node: "new", Require: policy.Labels{"team": "b"}},
	}
	kept := e.unresolved(set, workload.Snapshot{}.Workloads)
	if len(kept) != 1 || kept[0].Labels["team"] != "b" ||
		kept[0].Facts[policy.NodeFact] != "new" || kept[0].Facts["com.docker.compose.service"] != "db" {
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
	if found := certified.Certify(id, &policy.Settings{}, &same); found != nil || same.Labels["team"] != "a" ||
		len(same.Doubtful) > 0 ||
		!certified.HasRequired(id, same) {
		t.Errorf("the same value: %+v, %v", same, found)
	}
	other := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: policy.Labels{"app": "x"},
		Doubtful: policy.Labels{"team": "b"}}
	found := certified.Certify(id, &policy.Settings{}, &other)
	if len(found) != 1 || found[0].Code != condition.CertificateContradicts || certified.HasRequired(id, other) {
		t.Errorf("another value: %+v, %v", other, found)
	}
	deny := policy.Selector{Requirements: []policy.Requirement{{Key: "team", Operator: policy.In,
		Values: []string{"b"}}}}
	if !deny.Selects(&other, policy.Restricting) {
		t.Errorf("another value is hidden: %+v", other)
	}
}

// onePartial is a Scanner that has one Partial snapshot to give.
type onePartial struct {
	partial workload.Snapshot
	scans   int
}

func (s *onePartial) Scan([]policy.Binding) workload.Snapshot {
	s.scans++
	return workload.Snapshot{}
}

func (s *onePartial) Changes([]policy.Binding) workload.Snapshot { return s.partial }

func (s *onePartial) Runs([]policy.Binding) workload.Snapshot { return s.partial }

func (s *onePartial) Recall(workload.Snapshot) {}

// A look at single containers has what the node's certificate says of them. That a container contradicts the
// certificate, or does so no more, is for a look at all to tell.
func TestCertificateInPartialSnapshot(t *testing.T) {
	known := policy.Workload{Name: "bad", Cgroup: policy.Cgroup{Path: "docker/bad", ID: 1}}
	at := policy.Cgroup{Path: "docker/x", ID: 2}
	container := func(labels, facts policy.Labels) policy.Workload {
		return policy.Workload{Name: "x", Cgroup: at, Labels: labels, Facts: facts}
	}
	node := policy.Labels{policy.NodeFact: "n1"}
	doubtful := []policy.Unlabelled{{Cgroup: at, Doubtful: policy.Labels{"app": "a"}}}
	for _, tt := range []struct {
		name    string
		partial workload.Snapshot
		want    workload.Snapshot // not Partial: of a look at all
	}{
		{"a workload",
			workload.Snapshot{Partial: true, Workloads: []policy.Workload{container(policy.Labels{"app": "x"}, nil)}},
			workload.Snapshot{Partial: true, Workloads: []policy.Workload{
				container(policy.Labels{"app": "x", "env": "prod"}, node)}}},
		{"an unlabelled one", workload.Snapshot{Partial: true, Unlabelled: doubtful},
			workload.Snapshot{Partial: true, Unlabelled: doubtful}},
		{"one that is gone", workload.Snapshot{Partial: true, Gone: []string{"docker/y"}},
			workload.Snapshot{Partial: true, Gone: []string{"docker/y"}}},
		{"one that contradicts",
			workload.Snapshot{Partial: true, Workloads: []policy.Workload{container(policy.Labels{"env": "dev"}, nil)}},
			workload.Snapshot{}},
		{"the end of one that contradicted", workload.Snapshot{Partial: true, Gone: []string{"docker/bad"}},
			workload.Snapshot{}},
	} {
		for i := range tt.want.Workloads {
			tt.want.Workloads[i].Given = &policy.GivenLabels{Keys: []string{"env"}}
		}
		t.Run(tt.name, func(t *testing.T) {
			from := &onePartial{partial: tt.partial}
			e := &Enforcer{
				scanner: from, identity: &state.Identity{Node: "n1", Require: policy.Labels{"env": "prod"}},
				loaded:     loaded{workloads: newRoster([]policy.Workload{known}, nil), inSync: true},
				conditions: []condition.Condition{{Code: condition.CertificateContradicts, Where: "bad"}},
			}
			got := e.scan(policyset.Set{}, whatChanged)
			diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}))
			if diff != "" {
				t.Errorf("the snapshot (-want +got):\n%s", diff)
			}
			if all := !tt.want.Partial; all != (from.scans == 1) {
				t.Errorf("%d looks at all; want one: %v", from.scans, all)
			}
		})
	}
}
