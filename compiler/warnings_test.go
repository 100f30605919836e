package compiler_test

import (
	"strings"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
)

const denyDev = "deny: {ingress: [{from: [{workloads: {matchLabels: {env: dev}}}]}]}"

func TestWarnings(t *testing.T) {
	web := policy.Workload{Name: "web", Kind: policy.KindRun, Labels: policy.Labels{"app": "web"},
		Cgroup: policy.Cgroup{Path: "a.slice"}}
	document := func(name, spec string) string {
		return "---\napiVersion: thole/v1\nkind: Policy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
	}
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"nothing to say", document("a", `{selector: {matchLabels: {app: web}}, ingress: [{from: [{any: true}]}]}`),
			nil},
		{"selects nothing", document("a", `{selector: {matchLabels: {app: wbe}}, ingress: []}`),
			[]string{"p.yaml:4:18: policy a selects no workload that runs now"}},
		{"no listener of ICMP", document("a",
			`{selector: {matchLabels: {app: web}}, ingress: [{ports: [icmp, sctp]}]}`),
			[]string{"icmp in ingress has no effect", "sctp in ingress has no effect"}},
		{"a deny beside an allowance by address",
			document("a", `{selector: {matchLabels: {app: web}}, ingress: [{from: [{cidr: 10.0.0.0/8}]}]}`) +
				document("b", "{selector: {matchLabels: {app: web}}, "+denyDev+"}"),
			[]string{"policy b: a process of another node evades this deny rule"}},
		{"a deny without isolation",
			document("b", "{selector: {matchLabels: {app: web}}, "+denyDev+"}"),
			[]string{"policy b: a process of another node evades this deny rule"}},
		{"a deny of who may come in by label alone",
			document("a", "{selector: {matchLabels: {app: web}}, ingress: [{from: [{workloads: {}}]}], "+denyDev+"}"),
			nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(c.yaml)}})
			if err != nil {
				t.Fatal(err)
			}
			got := compile(t, compiler.Input{Policies: docs.Policies, Workloads: []policy.Workload{web}}).Warnings
			if len(got) != len(c.want) {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			for i, w := range got {
				if line := w.Position.String() + ": " + w.Message; !strings.Contains(line, c.want[i]) {
					t.Errorf("got %q, want %q in it", line, c.want[i])
				}
			}
		})
	}
}
