package watch

import (
	"errors"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch/workload"
)

func aRun(name string) Run {
	return Run{Name: name, Labels: compiler.Labels{"app": name}, UID: 1000, User: "alice", Started: time.Unix(1_700_000_000, 0).UTC()}
}

func (tr *tree) create(name string) Run {
	tr.t.Helper()
	run, err := tr.scopes.Create(aRun(name))
	if err != nil {
		tr.t.Fatal(err)
	}
	return run
}

// sleeper starts a process that lives until the test or the caller ends it.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestScopeLivesAsLongAsItsProcess(t *testing.T) {
	tr := newTree(t)
	run := tr.create("web")
	if run.Cgroup.Path != "thole.slice/web.scope" || run.Cgroup.ID != tr.id(run.Cgroup.Path) {
		t.Fatalf("cgroup %+v", run.Cgroup)
	}
	want := []compiler.Workload{{
		Name: "web", Kind: compiler.KindRun, Labels: compiler.Labels{"app": "web"},
		Facts:  compiler.Labels{workload.FactKind: "run", workload.FactUID: "1000", workload.FactUser: "alice"},
		Cgroup: run.Cgroup,
	}}
	if diff := cmp.Diff(want, tr.cgroups.Scan(nil).Workloads, byValue); diff != "" {
		t.Fatalf("before its process: (-want +got)\n%s", diff)
	}
	p := sleeper(t)
	if err := tr.scopes.Move(run, p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if in, err := tr.scopes.Holds(run, p.Process.Pid); err != nil || !in {
		t.Fatalf("Holds = %v, %v", in, err)
	}
	tr.scopes.Settle(run)
	if diff := cmp.Diff(want, tr.cgroups.Scan(nil).Workloads, byValue); diff != "" {
		t.Fatalf("with its process: (-want +got)\n%s", diff)
	}
	if _, err := tr.scopes.Create(aRun("web")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one of the name: %v; want fs.ErrExist", err)
	}
	tr.in("thole.slice/web.scope/child/grandchild").ID() // what runs in it may make cgroups
	if total, ofUser := tr.scopes.Count(1000); total != 1 || ofUser != 1 {
		t.Errorf("Count = %d, %d; want 1, 1", total, ofUser)
	}

	end(p)
	tr.until("the end of the scope", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 0 })
	if id := tr.id(run.Cgroup.Path); id != 0 {
		t.Errorf("the cgroup is still there")
	}
	if total, _ := tr.scopes.Count(1000); total != 0 {
		t.Errorf("Count = %d; want 0", total)
	}
}

func TestScopeIsDiscarded(t *testing.T) {
	tr := newTree(t)
	run := tr.create("web")
	if err := tr.scopes.Discard(run); err != nil {
		t.Fatal(err)
	}
	if got := tr.cgroups.Scan(nil).Workloads; len(got) != 0 || tr.id(run.Cgroup.Path) != 0 {
		t.Errorf("it is still there: %v", got)
	}

	// Somebody is in it who should not be: he is left alone.
	run = tr.create("web")
	p := sleeper(t)
	if err := tr.scopes.Move(run, p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := tr.scopes.Discard(run); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Discard of a populated scope: %v; want EBUSY", err)
	}
	end(p)
	tr.until("the end of the scope", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 0 })
}

func TestScopesSurviveARestart(t *testing.T) {
	tr := newTree(t)
	run := tr.create("web")
	if err := tr.scopes.Move(run, sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	tr.create("never-started")
	before := tr.cgroups.Scan(nil).Workloads
	if len(before) != 2 {
		t.Fatalf("workloads %v", before)
	}
	tr.restart()
	after := tr.cgroups.Scan(nil)
	want := slices.DeleteFunc(before, func(w compiler.Workload) bool { return w.Name != "web" })
	if diff := cmp.Diff(want, after.Workloads, byValue); diff != "" || len(after.Conditions) > 0 {
		t.Errorf("problems %v, workloads (-want +got)\n%s", after.Conditions, diff)
	}
}

func TestAttributesAreNotBelieved(t *testing.T) {
	type setup struct {
		tr   *tree
		good Run // a scope with a good seal
	}
	attribute := func(s setup, path string) []byte {
		value, err := readAttribute(s.tr.root.Path(path))
		if err != nil {
			s.tr.t.Fatal(err)
		}
		return value
	}
	put := func(s setup, path string, value []byte) {
		if err := unix.Lsetxattr(s.tr.root.Path(path), attributeName, value, 0); err != nil {
			s.tr.t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		forge func(setup) (path string)
		want  string // in the problem; "": not even looked at
	}{
		{"none", func(setup) string { return "thole.slice/evil.scope" }, "has no attribute"},
		{"nonsense", func(s setup) string {
			put(s, "thole.slice/evil.scope", []byte("app=db"))
			return "thole.slice/evil.scope"
		}, "not in our form"},
		{"copied", func(s setup) string {
			put(s, "thole.slice/evil.scope", attribute(s, s.good.Cgroup.Path))
			return "thole.slice/evil.scope"
		}, "was not written by this daemon for this cgroup"},
		{"other key", func(s setup) string {
			forger := seal{key: []byte(strings.Repeat("x", 32)), boot: s.tr.scopes.seal.boot}
			id, _ := s.tr.root.ID("thole.slice/evil.scope")
			run := aRun("evil")
			run.Cgroup = compiler.Cgroup{Path: "thole.slice/evil.scope", ID: id}
			if err := forger.write(s.tr.root, run); err != nil {
				s.tr.t.Fatal(err)
			}
			return "thole.slice/evil.scope"
		}, "was not written by this daemon for this cgroup"},
		{"other boot", func(s setup) string {
			forger := seal{key: testKey, boot: "00000000-0000-0000-0000-000000000000"}
			id, _ := s.tr.root.ID("thole.slice/evil.scope")
			run := aRun("evil")
			run.Version = runVersion
			run.Cgroup = compiler.Cgroup{Path: "thole.slice/evil.scope", ID: id}
			if err := forger.write(s.tr.root, run); err != nil {
				s.tr.t.Fatal(err)
			}
			return "thole.slice/evil.scope"
		}, "since this boot"},
		{"changed", func(s setup) string {
			value := attribute(s, s.good.Cgroup.Path)
			put(s, s.good.Cgroup.Path, []byte(strings.Replace(string(value), `"app":"good"`, `"app":"evil"`, 1)))
			s.tr.restart() // who has checked a seal does not look again
			return s.good.Cgroup.Path
		}, "was not written by this daemon for this cgroup"},
		{"elsewhere", func(s setup) string {
			s.tr.in("docker/1/thole.slice/evil.scope").ID()
			put(s, "docker/1/thole.slice/evil.scope", attribute(s, s.good.Cgroup.Path))
			return "docker/1/thole.slice/evil.scope"
		}, ""},
		{"below", func(s setup) string {
			path := s.good.Cgroup.Path + "/evil.scope"
			s.tr.in(path).ID()
			put(s, path, attribute(s, s.good.Cgroup.Path))
			return path
		}, ""},
	}
	host := nstest.New(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTreeIn(t, host)
			good := tr.create("good")
			tr.in(good.Cgroup.Path).Start("sleep", "infinity")
			if strings.Contains(tt.want, "n") && tt.name != "changed" {
				tr.in("thole.slice/evil.scope").Start("sleep", "infinity") // else it is swept
			}
			path := tt.forge(setup{tr, good})
			s := tr.cgroups.Scan(nil)
			for _, w := range s.Workloads {
				if w.Cgroup.Path == path {
					t.Errorf("it is a workload: %+v", w)
				}
			}
			found := slices.ContainsFunc(s.Conditions, func(p condition.Condition) bool {
				return p.Where == path && tt.want != "" && strings.Contains(p.Text, tt.want)
			})
			if found != (tt.want != "") || len(s.Conditions) > 1 {
				t.Errorf("problems %v; want one at %s with %q", s.Conditions, path, tt.want)
			}
		})
	}
}

func TestSliceOfSomebodyElse(t *testing.T) {
	tr := newTree(t)
	tr.in("thole.slice").ID()
	if err := unix.Chown(tr.root.Path("thole.slice"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.scopes.Create(aRun("web")); err == nil || !strings.Contains(err.Error(), "belongs to uid 1000") {
		t.Errorf("Create = %v; want a refusal", err)
	}
}

func TestRemoveEmptyScopes(t *testing.T) {
	tr := newTree(t)
	tr.create("empty")
	full := tr.create("full")
	p := sleeper(t)
	if err := tr.scopes.Move(full, p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	stay, err := RemoveEmptyScopes(tr.root)
	if diff := cmp.Diff([]string{full.Cgroup.Path}, stay); err != nil || diff != "" {
		t.Errorf("RemoveEmptyScopes: %v, (-want +got)\n%s", err, diff)
	}
	end(p)
	stay, err = RemoveEmptyScopes(tr.root)
	if err != nil || len(stay) > 0 || tr.id("thole.slice") != 0 {
		t.Errorf("RemoveEmptyScopes: %v, %v; want nothing left", stay, err)
	}
}

func TestSameNameManyTimes(t *testing.T) {
	tr := newTree(t)
	for range 20 {
		run := tr.create("web")
		p := sleeper(t)
		if err := tr.scopes.Move(run, p.Process.Pid); err != nil {
			t.Fatal(err)
		}
		tr.scopes.Settle(run)
		tr.cgroups.Scan(nil)
		end(p)
		tr.until("the end of the scope", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 0 })
	}
	tr.cgroups.Scan(nil)
	if n := len(tr.cgroups.inotify.WatchList()); n > 4 {
		t.Errorf("%d watches are left: %v", n, tr.cgroups.inotify.WatchList())
	}
}
