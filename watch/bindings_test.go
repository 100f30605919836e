package watch

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch/workload"
)

func labelled(name string, b policy.Binding) policy.Binding {
	b.Name = name
	b.Labels = policy.Labels{"app": name}
	b.Position = policy.Position{File: name + ".yaml", Line: 1, Column: 1}
	return b
}

// A bindingTest makes cgroups after a binding.
type bindingTest struct {
	name    string
	binding policy.Binding
	others  []string // cgroups that must not be bound
	make    string   // the cgroup that is
	kind    policy.Kind
	facts   policy.Labels
}

func TestBindingsFollowTheTree(t *testing.T) {
	host := nstest.New(t)
	for _, tt := range []bindingTest{
		{"unit", policy.Binding{Unit: "nginx.service"},
			[]string{"system.slice/cron.service", "other/nginx.service",
				"user.slice/user-7.slice/user@7.service/app.slice/nginx.service"},
			"system.slice/nginx.service", policy.KindUnit, nil},
		{"unit in a slice of a slice", policy.Binding{Unit: "db.service"}, nil,
			"site.slice/site-backend.slice/db.service", policy.KindUnit, nil},
		{"unit with an escape", policy.Binding{Unit: `srv\x2dwww.mount`}, []string{"system.slice/srv.mount"},
			`system.slice/srv\x2dwww.mount`, policy.KindUnit, nil},
		{"instances of a template", policy.Binding{Unit: "worker@*.service"},
			[]string{"system.slice/worker.service", "system.slice/system-worker.slice/other@1.service"},
			"system.slice/system-worker.slice/worker@1.service", policy.KindUnit, nil},
		{"slice", policy.Binding{Unit: "batch.slice"}, []string{"other"}, "batch.slice", policy.KindUnit, nil},
		{"uid", policy.Binding{User: "4242"}, []string{"user.slice/user-42.slice"},
			"user.slice/user-4242.slice", policy.KindUser, policy.Labels{workload.FactUID: "4242"}},
		{"user", policy.Binding{User: "daemon"}, nil,
			"user.slice/user-1.slice", policy.KindUser,
			policy.Labels{workload.FactUID: "1", workload.FactUser: "daemon"}},
		{"path", policy.Binding{Cgroup: "jobs/nightly"}, []string{"jobs/daily", "nightly"},
			"jobs/nightly", policy.KindCgroup, nil},
		{"pattern", policy.Binding{Cgroup: "jobs/*/w?"}, []string{"jobs/a", "jobs/b/w10", "jobs/a/b/w1"},
			"jobs/b/w1", policy.KindCgroup, nil},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, host) })
	}
}

func (tt bindingTest) run(t *testing.T, host *nstest.Host) {
	tr, bindings := newTreeIn(t, host), []policy.Binding{labelled("it", tt.binding)}
	none := func(s workload.Snapshot) bool { return len(s.Workloads) == 0 }
	tr.until("nothing at the start", bindings, none)
	for _, path := range tt.others {
		tr.in(path).ID()
	}
	tr.until("nothing among others", bindings, none)

	id := tr.in(tt.make).ID()
	one := func(s workload.Snapshot) bool { return len(s.Workloads) == 1 }
	s := tr.until("the cgroup", bindings, one)
	facts := policy.Labels{workload.FactKind: tt.kind.String()}
	maps.Copy(facts, tt.facts)
	name := "it"
	if policy.IsPattern(tt.binding.Cgroup + tt.binding.Unit) {
		name = "it:" + tt.make
	}
	want := workload.Snapshot{Workloads: []policy.Workload{{
		Name: name, Kind: tt.kind, Labels: bindings[0].Labels, Facts: facts,
		Cgroup: policy.Cgroup{Path: tt.make, ID: id}, Position: bindings[0].Position,
	}}}
	if diff := cmp.Diff(want, s, byValue); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}

	tr.remove(tt.make)
	tr.until("the cgroup's end", bindings, none)
	again := tr.in(tt.make).ID()
	s = tr.until("another one of the same name", bindings, one)
	if got := s.Workloads[0].Cgroup.ID; got != again || got == id {
		t.Errorf("its id is %d; want %d, not %d", got, again, id)
	}
}

func TestOneBindingACgroup(t *testing.T) {
	tr := newTree(t)
	tr.in("system.slice/nginx.service").ID()
	tr.in("user.slice/user-7.slice").ID()
	s := tr.cgroups.Scan([]policy.Binding{
		labelled("by-path", policy.Binding{Cgroup: "system.slice/*"}),
		labelled("by-unit", policy.Binding{Unit: "nginx.service"}),
		labelled("by-unit-too", policy.Binding{Unit: "nginx.service"}),
		labelled("by-user", policy.Binding{User: "7"}),
		labelled("by-slice", policy.Binding{Unit: "user-7.slice"}),
	})
	got := map[string]string{}
	for _, w := range s.Workloads {
		got[w.Cgroup.Path] = w.Name
	}
	want := map[string]string{"system.slice/nginx.service": "by-unit", "user.slice/user-7.slice": "by-slice"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workloads (-want +got)\n%s", diff)
	}
	wantProblems := []condition.Condition{
		{Code: condition.BindingOverlap, Where: "by-unit-too.yaml:1:1",
			Text: `workload "by-unit-too" (unit) has no effect on the cgroup system.slice/nginx.service: ` +
				`it has the labels of "by-unit" (unit)`},
		{Code: condition.BindingOverlap, Where: "by-path.yaml:1:1",
			Text: `workload "by-path:system.slice/nginx.service" (cgroup) has no effect on the cgroup ` +
				`system.slice/nginx.service: it has the labels of "by-unit" (unit)`},
		{Code: condition.BindingOverlap, Where: "by-user.yaml:1:1",
			Text: `workload "by-user" (user) has no effect on the cgroup user.slice/user-7.slice: ` +
				`it has the labels of "by-slice" (unit)`},
	}
	if diff := cmp.Diff(wantProblems, s.Conditions); diff != "" {
		t.Errorf("problems (-want +got)\n%s", diff)
	}
}

func TestBindingsThatCanNotBe(t *testing.T) {
	tr := newTree(t)
	tests := []struct {
		binding policy.Binding
		want    string
	}{
		{policy.Binding{User: "no-such-user"}, "useradd"},
		{policy.Binding{Address: netip.MustParseAddr("192.0.2.1")}, "inventory"},
		{policy.Binding{Container: "web"}, "no container engine is followed"},
		{policy.Binding{Compose: policy.Compose{Project: "a", Service: "b"}}, "no container engine is followed"},
		{policy.Binding{Cgroup: "../.."}, "below the cgroup root"},
	}
	for _, tt := range tests {
		s := tr.cgroups.Scan([]policy.Binding{labelled("it", tt.binding)})
		if len(s.Workloads) != 0 || len(s.Conditions) != 1 || !strings.Contains(s.Conditions[0].Text, tt.want) {
			t.Errorf("%+v: snapshot %+v; want one problem with %q", tt.binding, s, tt.want)
		}
	}
}
