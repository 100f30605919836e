package compiler_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/simulator"
)

const slicePolicies = `apiVersion: thole/v1
kind: Policy
metadata: {name: prod}
spec: {selector: {matchLabels: {env: prod}}, ingress: []}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {selector: {matchLabels: {app: db}}, ingress: []}
`

// A container in a slice with labels belongs to the slice. A label in its image, whatever its value, does not take it
// out of what restricts the slice.
func TestImageTakesNobodyOutOfASlice(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(slicePolicies)}})
	if err != nil {
		t.Fatal(err)
	}
	slice := policy.Workload{Name: "slice", Kind: policy.KindCgroup, Labels: policy.Labels{"env": "prod"},
		Facts: policy.Labels{"thole/kind": "cgroup"}, Cgroup: policy.Cgroup{Path: "docker.slice", ID: 100}}
	for _, doubtful := range []policy.Labels{nil, {"app": "nobody"}, {"app": "db", "env": "dev"}} {
		u := policy.Unlabelled{Name: "c", Cgroup: policy.Cgroup{Path: "docker.slice/c", ID: 101},
			Facts: policy.Labels{"thole/kind": "container", "thole/container": "c"}, Doubtful: doubtful}
		workloads, rest := docs.Identify([]policy.Workload{slice}, []policy.Unlabelled{u})
		r, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: workloads, Unlabelled: rest})
		if err != nil {
			t.Fatal(err)
		}
		h := host{"docker.slice": 100, "docker.slice/c": 101}
		call := reference.Connection{To: reference.Endpoint{Workload: &policy.Workload{Cgroup: u.Cgroup}},
			Protocol: ruleset.ProtoTCP, Port: 80}
		if v := h.simulate(simulator.New(&r.Table), call); v.Allowed {
			t.Errorf("doubtful %v: an unlabelled process reaches the container", doubtful)
		}
		if doubtful == nil {
			continue
		}
		want := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: slice.Labels, Cgroup: u.Cgroup,
			Facts:    policy.Labels{"thole/kind": "cgroup", "thole/container": "c"},
			Doubtful: policy.Labels{"app": doubtful["app"]}, Given: &policy.GivenLabels{Keys: []string{"env"}}}
		if own, has := doubtful["env"]; has {
			want.Given.Doubtful = policy.Labels{"env": own}
		}
		if diff := cmp.Diff(want, workloads[1], cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("doubtful %v (-want +got)\n%s", doubtful, diff)
		}
	}
}
