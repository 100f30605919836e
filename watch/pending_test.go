package watch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// Who waits for a scope waits for no look at all cgroups; that is still to come, and has the scope too. Where it is not
// known which scopes were made, only a Scan can tell.
func TestRunsBeforeALookAtAll(t *testing.T) {
	tr := newTree(t)
	tr.create("before")
	tr.cgroups.Scan(nil)
	run := tr.create("made")
	tr.cgroups.Wake()
	other := tr.create("afterwards")
	s := tr.cgroups.Runs(nil)
	want := workload.Snapshot{Partial: true, Workloads: []policy.Workload{other.workload(), run.workload()}}
	if diff := cmp.Diff(want, s, byValue); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	select {
	case <-tr.cgroups.Changed():
	default:
		t.Error("nothing tells that a look at all is to come")
	}
	if s := tr.cgroups.Changes(nil); s.Partial || len(s.Workloads) != 3 {
		t.Errorf("the look at all: %+v", s)
	}
	tr.cgroups.Wake()
	for i := range maxPending + 1 {
		tr.cgroups.Touch(fmt.Sprint(cgroupfs.TholeSlice, "/", i))
	}
	if s := tr.cgroups.Runs(nil); s.Partial || len(s.Workloads) != 3 {
		t.Errorf("with too many scopes to name: %+v", s)
	}
}

// What happens to one scope is seen without looking at any other; what may be more than
// that is left to a Scan.
func TestChanges(t *testing.T) {
	tr := newTree(t)
	first := tr.create("first")
	if _, ok := tr.cgroups.lookAtPending(nil); ok {
		t.Error("single cgroups before the first scan")
	}
	tr.cgroups.Scan(nil)
	if g, ok := tr.cgroups.lookAtPending(nil); !ok || len(g.Workloads)+len(g.Gone) > 0 {
		t.Fatalf("nothing happened: %+v, %v", g, ok)
	}
	second := tr.create("second")
	g, ok := tr.cgroups.lookAtPending(nil)
	want := workload.Snapshot{Partial: true, Workloads: []policy.Workload{second.workload()}}
	if diff := cmp.Diff(want, g, byValue); !ok || diff != "" {
		t.Fatalf("one was made: %v (-want +got)\n%s", ok, diff)
	}
	p := sleeper(t)
	if err := tr.scopes.Move(second, p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	tr.scopes.Settle(second)
	end(p)
	tr.untilPartial("its end", func(s workload.Snapshot) bool {
		return slices.Equal(s.Gone, []string{second.Cgroup.Path})
	})
	if tr.id(second.Cgroup.Path) != 0 || tr.id(first.Cgroup.Path) == 0 {
		t.Error("the empty scope was not removed, or one that has not begun was")
	}
	if use, _ := tr.scopes.Use(1000, nil); use.Runs != 1 {
		t.Errorf("%d scopes are known; want 1", use.Runs)
	}

	for what, f := range map[string]func(){
		"a wake-up": tr.cgroups.Wake,
		"a stranger in the slice": func() {
			tr.in(cgroupfs.TholeSlice + "/stranger").ID()
			tr.cgroups.Touch(cgroupfs.TholeSlice + "/stranger")
		},
		"another binding below them": func() {
			tr.cgroups.Scan([]policy.Binding{{Name: "x", Cgroup: cgroupfs.TholeSlice + "/*"}})
			tr.cgroups.Touch(first.Cgroup.Path)
		},
	} {
		tr.cgroups.Scan(nil)
		f()
		if _, ok := tr.cgroups.lookAtPending(nil); ok {
			t.Errorf("%s: single cgroups were enough", what)
		}
	}
}

// Only so many cgroups and containers wait for a look at them alone. Then nothing is stored about single ones.
func TestBoundOfPending(t *testing.T) {
	tr := newTree(t)
	for _, tt := range []struct {
		name                string
		cgroups, containers int
		everything          bool
	}{
		{"cgroups", maxPending, 0, false},
		{"one more", maxPending + 1, 0, true},
		{"containers", 0, maxPending, false},
		{"one container more", 0, maxPending + 1, true},
		{"both", maxPending / 2, maxPending / 2, false},
		{"one more than both", maxPending / 2, maxPending/2 + 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr.cgroups.takePending()
			for range 2 { // what waits already counts once
				for i := range tt.cgroups {
					tr.cgroups.Touch(fmt.Sprint(cgroupfs.TholeSlice, "/", i))
				}
				for i := range tt.containers {
					tr.cgroups.touchContainers(fmt.Sprint(i))
				}
			}
			p := tr.cgroups.takePending()
			cgroups, containers := tt.cgroups, tt.containers
			if tt.everything {
				cgroups, containers = 0, 0
			}
			if p.everything != tt.everything || len(p.cgroups) != cgroups || len(p.containers) != containers {
				t.Errorf("everything %v, %d cgroups and %d containers; want %v, %d and %d",
					p.everything, len(p.cgroups), len(p.containers), tt.everything, cgroups, containers)
			}
		})
	}
}

// A change of a container is seen by a look at this container alone, unless a binding may depend on its cgroup, or the
// engine cannot tell by that.
func TestChangesOfContainers(t *testing.T) {
	tr, engine := newEngineTree(t)
	partial := workload.Snapshot{Partial: true, Gone: []string{"containers/x"}, Workloads: []policy.Workload{
		{Name: "b", Cgroup: policy.Cgroup{Path: "containers/b", ID: 2}},
		{Name: "a", Cgroup: policy.Cgroup{Path: "containers/a", ID: 1}},
	}, Unlabelled: []policy.Unlabelled{{Cgroup: policy.Cgroup{Path: "containers/u", ID: 3}}}}
	sorted := partial
	sorted.Workloads = []policy.Workload{partial.Workloads[1], partial.Workloads[0]}
	for _, tt := range []struct {
		name     string
		found    workload.Snapshot
		bindings []policy.Binding
		enough   bool
	}{
		{"no binding", partial, nil, true},
		{"other bindings", partial,
			[]policy.Binding{{Unit: "c"}, {User: "1"}, {Cgroup: "containers"}, {Cgroup: "other/a"}}, true},
		{"its cgroup", partial, []policy.Binding{{Cgroup: "containers/a"}}, false},
		{"a cgroup that is gone", partial, []policy.Binding{{Cgroup: "/containers/x"}}, false},
		{"an unlabelled one's, by a pattern", partial, []policy.Binding{{Cgroup: "con*/?"}}, false},
		{"a cgroup in it", partial, []policy.Binding{{Cgroup: "containers/*/deeper"}}, false},
		{"its unit", partial, []policy.Binding{{Unit: "a"}}, false},
		{"the engine cannot tell", workload.Snapshot{}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			engine.partial = tt.found
			tr.cgroups.Scan(tt.bindings)
			engine.changed("2", "1")
			got, ok := tr.cgroups.lookAtPending(tt.bindings)
			if ok != tt.enough || !slices.Equal(engine.looked, []string{"1", "2"}) {
				t.Fatalf("a look at %q alone was enough: %v; want %v", engine.looked, ok, tt.enough)
			}
			if diff := cmp.Diff(sorted, got, byValue); ok && diff != "" {
				t.Errorf("the snapshot (-want +got):\n%s", diff)
			}
		})
	}
	engine.changed()
	if _, ok := tr.cgroups.lookAtPending(nil); ok {
		t.Error("anything may have changed, and a look at nothing was enough")
	}
}

// untilPartial looks at each change until it is as wanted.
func (tr *tree) untilPartial(what string, ok func(workload.Snapshot) bool) {
	tr.t.Helper()
	deadline := time.After(patience)
	for {
		g, enough := tr.cgroups.lookAtPending(nil)
		if enough && ok(g) {
			return
		}
		select {
		case <-tr.cgroups.Changed():
		case <-deadline:
			tr.t.Fatalf("waited %v for %s; they are %+v, %v", patience, what, g, enough)
		}
	}
}
