package explain

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/internal/condition"
)

func TestNamed(t *testing.T) {
	at := func(line int) policy.Position { return policy.Position{File: "a.yaml", Line: line, Column: 1} }
	byName := func(name string) policy.Selector {
		return policy.Selector{Requirements: []policy.Requirement{
			{Key: "thole/container", Operator: policy.In, Values: []string{name}}}}
	}
	docs := policy.Documents{
		Bindings: []policy.Binding{
			{Name: "runs", Container: "web", Position: at(1)},
			{Name: "unlabelled-runs", Container: "cache", Position: at(2)},
			{Name: "misspelt", Container: "wbe", Position: at(3)},
			{Name: "service", Compose: policy.Compose{Project: "shop", Service: "db"}, Position: at(4)},
			{Name: "no-service", Compose: policy.Compose{Project: "shop", Service: "bd"}, Position: at(5)},
			{Name: "unit", Unit: "web.service", Position: at(6)},
			{Name: "unresolved", Container: "wbe", Position: at(11)},
		},
		Policies: []policy.Policy{
			{Name: "protects", Selector: byName("web"), Position: at(7)},
			{Name: "protects-nothing", Selector: byName("cache"), Position: at(8)},
			{Name: "records", Selector: byName("cache"), Audit: true, Position: at(9)},
			{Name: "not-there", Selector: byName("other"), Position: at(10)},
		},
	}
	running := []policy.Workload{
		{Kind: policy.KindContainer, Name: "web"},
		{Kind: policy.KindContainer, Name: "shop-db-1", Facts: policy.Labels{
			"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}},
		{Kind: policy.KindRun, Name: "wbe"},
	}
	ofSwarm := policy.Labels{"com.docker.swarm.service.name": "shop_web"}
	unlabelled := []policy.Unlabelled{{Name: "cache"}, {Name: ""}, {Name: "shop_web.1", Facts: ofSwarm},
		{Name: "shop_web.2", Facts: ofSwarm}}
	type found struct {
		Code  condition.Code
		Where string
	}
	var got []found
	for _, c := range Named(&docs, running, unlabelled,
		[]condition.Condition{{Code: condition.BindingUnresolved, Where: "a.yaml:11:1"}}) {
		got = append(got, found{c.Code, c.Where})
	}
	want := []found{
		{condition.ContainerAbsent, "a.yaml:3:1"},
		{condition.ContainerAbsent, "a.yaml:5:1"},
		{condition.ContainerUnprotected, "a.yaml:8:1"},
		{condition.SwarmService, "service shop_web"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
