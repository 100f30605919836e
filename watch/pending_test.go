package watch

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// What happens to one scope is seen without looking at any other; what may be more than
// that is left to a Scan.
func TestChanges(t *testing.T) {
	tr := newTree(t)
	first := tr.create("first")
	if _, ok := tr.cgroups.lookAtPending(); ok {
		t.Error("single cgroups before the first scan")
	}
	tr.cgroups.Scan(nil)
	if g, ok := tr.cgroups.lookAtPending(); !ok || len(g.Workloads)+len(g.Gone) > 0 {
		t.Fatalf("nothing happened: %+v, %v", g, ok)
	}
	second := tr.create("second")
	g, ok := tr.cgroups.lookAtPending()
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
	if total, _ := tr.scopes.Count(1000); total != 1 {
		t.Errorf("%d scopes are known; want 1", total)
	}

	for what, f := range map[string]func(){
		"a wake-up": tr.cgroups.Wake,
		"a stranger in the slice": func() {
			tr.in(cgroupfs.TholeSlice + "/stranger").ID()
			tr.cgroups.Touch(cgroupfs.TholeSlice + "/stranger")
		},
		"more than single cgroups": func() {
			for i := range maxPending + 1 {
				tr.cgroups.Touch(cgroupfs.TholeSlice + "/" + string(rune('a'+i)))
			}
		},
		"another binding below them": func() {
			tr.cgroups.Scan([]policy.Binding{{Name: "x", Cgroup: cgroupfs.TholeSlice + "/*"}})
			tr.cgroups.Touch(first.Cgroup.Path)
		},
	} {
		tr.cgroups.Scan(nil)
		f()
		if _, ok := tr.cgroups.lookAtPending(); ok {
			t.Errorf("%s: single cgroups were enough", what)
		}
	}
}

// untilPartial looks at each change until it is as wanted.
func (tr *tree) untilPartial(what string, ok func(workload.Snapshot) bool) {
	tr.t.Helper()
	deadline := time.After(patience)
	for {
		g, enough := tr.cgroups.lookAtPending()
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
