package daemon

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/workload"
)

// onePartial is a scanner that has one Partial snapshot to give.
type onePartial struct {
	partial workload.Snapshot
	scans   int
}

func (s *onePartial) Scan([]policy.Binding) workload.Snapshot {
	s.scans++
	return workload.Snapshot{}
}

func (s *onePartial) Changes([]policy.Binding) workload.Snapshot { return s.partial }

func (s *onePartial) Recall(workload.Snapshot) {}

// A look at single containers has what the node's certificate says of them. That a container contradicts the
// certificate, or does so no more, is for a look at all to tell.
func TestCertificateInPartialSnapshot(t *testing.T) {
	known := policy.Workload{Name: "bad", Cgroup: policy.Cgroup{Path: "docker/bad", ID: 1}}
	e := &enforcer{identity: &identity{Node: "n1", Require: policy.Labels{"env": "prod"}},
		enforced: newRoster([]policy.Workload{known}, nil),
		found:    []condition.Condition{{Code: condition.CertificateContradicts, Where: "bad"}}}
	at := policy.Cgroup{Path: "docker/x", ID: 2}
	for _, tt := range []struct {
		name    string
		partial workload.Snapshot
		want    workload.Snapshot // not Partial: of a look at all
	}{
		{"a workload", workload.Snapshot{Partial: true, Workloads: []policy.Workload{{Name: "x", Cgroup: at}}},
			workload.Snapshot{Partial: true, Workloads: []policy.Workload{{Name: "x", Cgroup: at,
				Labels: policy.Labels{"env": "prod"}, Facts: policy.Labels{policy.NodeFact: "n1"}}}}},
		{"an unlabelled one", workload.Snapshot{Partial: true, Unlabelled: []policy.Unlabelled{{Cgroup: at,
			Doubtful: policy.Labels{"app": "a"}}}},
			workload.Snapshot{Partial: true, Unlabelled: []policy.Unlabelled{{Cgroup: at,
				Doubtful: policy.Labels{"app": "a"}, Facts: policy.Labels{policy.NodeFact: "n1"}}}}},
		{"one that is gone", workload.Snapshot{Partial: true, Gone: []string{"docker/y"}},
			workload.Snapshot{Partial: true, Gone: []string{"docker/y"}}},
		{"one that contradicts", workload.Snapshot{Partial: true, Workloads: []policy.Workload{{Name: "x",
			Cgroup: at, Labels: policy.Labels{"env": "dev"}}}}, workload.Snapshot{}},
		{"the end of one that contradicted", workload.Snapshot{Partial: true, Gone: []string{"docker/bad"}},
			workload.Snapshot{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := &onePartial{partial: tt.partial}
			got := carrier{from, e}.Changes(nil)
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
