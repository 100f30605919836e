package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

func aRun(name string) Run {
	return Run{
		Name: name, Labels: policy.Labels{"app": name}, UID: 1000, User: "alice",
		Started: time.Unix(1_700_000_000, 0).UTC(),
	}
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
	want := []policy.Workload{{
		Name: "web", Kind: policy.KindRun, Labels: policy.Labels{"app": "web"},
		Facts:  policy.Labels{workload.FactKind: "run", workload.FactUID: "1000", workload.FactUser: "alice"},
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
	if use, total := tr.scopes.Use(1000, run.Labels); total != 1 || use != (Use{Runs: 1, Labels: 1, Has: true}) {
		t.Errorf("Use = %+v, %d; want one run", use, total)
	}

	end(p)
	tr.until("the end of the scope", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 0 })
	if id := tr.id(run.Cgroup.Path); id != 0 {
		t.Errorf("the cgroup is still there")
	}
	if use, total := tr.scopes.Use(1000, nil); total != 0 || use != (Use{}) {
		t.Errorf("Use = %+v, %d; want none", use, total)
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
	want := slices.DeleteFunc(before, func(w policy.Workload) bool { return w.Name != "web" })
	if diff := cmp.Diff(want, after.Workloads, byValue); diff != "" || len(after.Conditions) > 0 {
		t.Errorf("problems %v, workloads (-want +got)\n%s", after.Conditions, diff)
	}
}

// A forger has a scope with a good seal, and forges the attribute of another one.
type forger struct {
	tr   *tree
	good Run
}

func (f forger) attribute(path string) []byte {
	value, err := readAttribute(f.tr.root.Path(path))
	if err != nil {
		f.tr.t.Fatal(err)
	}
	return value
}

func (f forger) put(path string, value []byte) {
	if err := unix.Lsetxattr(f.tr.root.Path(path), attributeName, value, 0); err != nil {
		f.tr.t.Fatal(err)
	}
}

// seal seals a run in the cgroup evilScope.
func (f forger) seal(with seal, run Run) {
	id, _ := f.tr.root.ID(evilScope)
	run.Cgroup = policy.Cgroup{Path: evilScope, ID: id}
	if err := with.write(f.tr.root, run); err != nil {
		f.tr.t.Fatal(err)
	}
}

const evilScope = "thole.slice/evil.scope"

// forgeries are the attributes that must not be believed. The function forge returns the cgroup that has one.
var forgeries = []struct {
	name  string
	forge func(forger) (path string)
	want  string // in the problem; "": the cgroup is not read
}{
	{"none", func(forger) string { return evilScope }, "has no attribute"},
	{"nonsense", func(f forger) string {
		f.put(evilScope, []byte("app=db"))
		return evilScope
	}, "not in Thole's form"},
	{"copied", func(f forger) string {
		f.put(evilScope, f.attribute(f.good.Cgroup.Path))
		return evilScope
	}, "was not written by this daemon for this cgroup"},
	{"other key", func(f forger) string {
		f.seal(seal{key: []byte(strings.Repeat("x", 32)), boot: f.tr.scopes.seal.boot}, aRun("evil"))
		return evilScope
	}, "was not written by this daemon for this cgroup"},
	{"other boot", func(f forger) string {
		run := aRun("evil")
		run.Version = runVersion
		f.seal(seal{key: testKey, boot: "00000000-0000-0000-0000-000000000000"}, run)
		return evilScope
	}, "since this boot"},
	{"changed", func(f forger) string {
		value := f.attribute(f.good.Cgroup.Path)
		f.put(f.good.Cgroup.Path, []byte(strings.Replace(string(value), `"app":"good"`, `"app":"evil"`, 1)))
		f.tr.restart() // a seal is checked once
		return f.good.Cgroup.Path
	}, "was not written by this daemon for this cgroup"},
	{"elsewhere", func(f forger) string {
		f.tr.in("docker/1/thole.slice/evil.scope").ID()
		f.put("docker/1/thole.slice/evil.scope", f.attribute(f.good.Cgroup.Path))
		return "docker/1/thole.slice/evil.scope"
	}, ""},
	{"below", func(f forger) string {
		path := f.good.Cgroup.Path + "/evil.scope"
		f.tr.in(path).ID()
		f.put(path, f.attribute(f.good.Cgroup.Path))
		return path
	}, ""},
}

func TestAttributesAreNotBelieved(t *testing.T) {
	host := nstest.New(t)
	for _, tt := range forgeries {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTreeIn(t, host)
			good := tr.create("good")
			tr.in(good.Cgroup.Path).Start("sleep", "infinity")
			if strings.Contains(tt.want, "n") && tt.name != "changed" {
				tr.in(evilScope).Start("sleep", "infinity") // else it is swept
			}
			path := tt.forge(forger{tr, good})
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

// A scope that is made while all are looked at is not forgotten, and who makes it does not wait for the look.
func TestScopeMadeDuringALook(t *testing.T) {
	tr := newTree(t)
	for i := range 20 {
		tr.create(fmt.Sprint("before-", i))
	}
	tr.scopes.list(true, func(cgroup string) {
		if cgroup == cgroupfs.TholeSlice {
			tr.create("within")
		}
	})
	made := make(chan error, 1)
	for i := range 50 {
		looked := 0
		tr.scopes.list(true, func(string) {
			if looked++; looked == 10 {
				go func() {
					_, err := tr.scopes.Create(aRun(fmt.Sprint("meanwhile-", i)))
					made <- err
				}()
			}
		})
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		if use, total := tr.scopes.MostUse(); use.Runs != 22+i || total != use.Runs || use.Ended != 0 {
			t.Fatalf("after %d: %+v, %d in all", i, use, total)
		}
	}
}
