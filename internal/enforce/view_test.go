package enforce

import (
	"errors"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
)

// noNames is a cgroup tree in which everything ended.
type noNames struct{}

func (noNames) Named(uint64) (string, error) { return "", errors.New("it is gone") }

// exposedView knows one workload, in cgroup 7, that a policy with these ingress rules selects.
func exposedView(t *testing.T, ingress string) *View {
	t.Helper()
	w := policy.Workload{Name: "db", Kind: policy.KindCgroup, Labels: policy.Labels{"app": "db"},
		Cgroup: policy.Cgroup{Path: "db", ID: 7}}
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`apiVersion: thole/v1
kind: Policy
metadata: {name: p}
spec: {selector: {matchLabels: {app: db}}, ingress: ` + ingress + `}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: []policy.Workload{w},
		Options: compiler.Options{Epoch: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return &View{
		status: api.Status{Enforcing: true}, result: &result,
		roster: newRoster([]policy.Workload{w}, nil),
	}
}

// Members of a class that may not reach each other are owners of their own.
func TestOwner(t *testing.T) {
	v := exposedView(t, "[]")
	got := v.Owner(noNames{}, 7)
	if got.Workload != "db" || !got.Selected || got.Users || got.Side < 1<<63 {
		t.Errorf("a workload of a divided class: %+v", got)
	}
	v = exposedView(t, "[{}]")
	if got := v.Owner(noNames{}, 7); got.Side == 0 || got.Side >= 1<<63 {
		t.Errorf("a workload of a class that is not divided: %+v", got)
	}
	if got := v.Owner(noNames{}, 8); got.Side != 0 || got.Workload != "" {
		t.Errorf("a cgroup that is gone: %+v", got)
	}
}
