package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/ruleset"
)

// steps returns how many of the changes from the n-th on were made without a compile of all.
func (k *fakeKernel) steps(n int) (count int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.applied[n:] {
		if c.Have == nil && c.Want == nil {
			count++
		}
	}
	return count
}

// asCompiled fails the test if the table is not that of a fresh compile.
func (b *bench) asCompiled() {
	b.t.Helper()
	table := b.kernel.loaded()
	b.ordered(func(e *enforcer) {
		in := compiler.Input{Policies: e.set.docs.Policies, Workloads: e.loaded.workloads.list(),
			Parents: e.loaded.containers.Parents, Unlabelled: e.loaded.containers.Unlabelled}
		in.Numbers, in.Options.Epoch = compiler.Loaded(table)
		result, err := compiler.Compile(in)
		if err != nil || !sameTable(table, &result.Table) || !sameTable(table, e.loaded.table) {
			b.t.Errorf("the table is not that of a fresh compile: %v", err)
		}
	})
}

// ordered has the daemon do something between two of its changes.
func (b *bench) ordered(do func(e *enforcer)) {
	done := make(chan struct{})
	b.daemon.enforcer.channels.orders <- func() {
		defer close(done)
		do(b.daemon.enforcer)
	}
	<-done
}

// One workload more or less of a class that stays is a change of its elements alone, and
// a daemon that comes knows of it.
func TestSmallChanges(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	web := map[string]string{"app": "web"}
	first := b.run("first", web)
	epoch, changes := b.status().Epoch, b.kernel.changes()
	more := []*process{b.run("second", web), b.run("third", web), b.run("fourth", web)}
	for _, p := range more {
		if !b.knows(p.Answer.ID) {
			t.Errorf("the table does not know %s", p.Answer.Name)
		}
	}
	b.asCompiled()
	more[0].end()
	b.until("the end of one", func() bool { return !b.knows(more[0].Answer.ID) && b.status().Runs == 3 })
	b.asCompiled()
	if n, small := b.kernel.changes()-changes, b.kernel.steps(changes); n != small || small < 4 {
		t.Errorf("%d of %d changes were made without a compile of all; want all", small, n)
	}
	if s := b.status(); s.Epoch != epoch || s.Workloads != 3 || s.Classes != 1 {
		t.Errorf("status %+v; want epoch %d", s, epoch)
	}

	changes = b.kernel.changes()
	b.stop()
	b.start()
	if b.kernel.changes() != changes {
		t.Errorf("the next daemon changed the table: %s", b.kernel.applied[changes])
	}
	// The last of its class, and one of another class, are more than that.
	more[1].end()
	more[2].end()
	first.end()
	b.run("other", map[string]string{"app": "other"})
	b.until("the end of all of the class", func() bool { return b.status().Workloads == 1 })
	b.asCompiled()
}

// A small change that fails is made by a whole one; what became of it is found out.
func TestSmallChangeFails(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	web := map[string]string{"app": "web"}
	b.run("first", web)
	calls := 0
	b.kernel.set(func() {
		b.kernel.seen-- // nothing was changed
		b.kernel.fail = errors.New("no buffer space available")
		b.kernel.before = func(ruleset.Change) {
			b.kernel.mu.Lock()
			defer b.kernel.mu.Unlock()
			if calls++; calls == 2 {
				b.kernel.fail = nil
			}
		}
	})
	second := b.run("second", web)
	if !b.knows(second.Answer.ID) || calls != 2 {
		t.Errorf("%d tries; want 2", calls)
	}
	b.asCompiled()
	if third := b.run("third", web); !b.knows(third.Answer.ID) {
		t.Error("the table does not know the third")
	}
	b.asCompiled()
}

// Changes that were appended are a part of the memory; one that was not written to its
// end is as if it had not been.
func TestMemoryAndItsChanges(t *testing.T) {
	state, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	workload := func(id uint64) policy.Workload {
		return policy.Workload{Labels: policy.Labels{"app": "web"}, Cgroup: policy.Cgroup{Path: "x", ID: id}}
	}
	began := func(id uint64, key string) memoryChange {
		return memoryChange{Began: []policy.Workload{workload(id)},
			Numbers: compiler.Renumbering{Set: map[string]uint32{key: uint32(id)}, Next: uint32(id)}}
	}
	if state.saveChange(began(1, "a"), 10) {
		t.Error("a change of no memory was saved")
	}
	m := memory{Epoch: 7, Workloads: []policy.Workload{workload(1), workload(2)},
		Numbers: compiler.Numbers{Workloads: map[string]uint32{"gone": 9}, Next: 1}}
	if err := state.saveMemory(m); err != nil {
		t.Fatal(err)
	}
	last := memoryChange{Ended: []uint64{1}, Numbers: compiler.Renumbering{Drop: []string{"gone"}, Next: 8}}
	if !state.saveChange(began(3, "c"), 2) || !state.saveChange(last, 2) || state.saveChange(began(4, "d"), 2) {
		t.Error("want room for two")
	}
	check := func(what string, ids []uint64, numbers compiler.Numbers) {
		t.Helper()
		got, err := state.memory()
		if err != nil {
			t.Fatal(err)
		}
		var have []uint64
		for _, w := range got.Workloads {
			have = append(have, w.Cgroup.ID)
		}
		slices.Sort(have)
		if !slices.Equal(have, ids) || got.Epoch != 7 || !cmp.Equal(got.Numbers, numbers) {
			t.Errorf("%s: workloads %v, epoch %d, %+v; want %v, %+v", what, have, got.Epoch, got.Numbers, ids, numbers)
		}
	}
	check("both changes", []uint64{2, 3}, compiler.Numbers{Workloads: map[string]uint32{"c": 3}, Next: 8})
	path := filepath.Join(state.dir, memoryFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := len(data) - 1
	for cut := whole - 1; data[cut] != '\n'; cut-- {
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		check("half a change", []uint64{1, 2, 3}, compiler.Numbers{Workloads: map[string]uint32{"c": 3, "gone": 9},
			Next: 3})
	}
	state.close()
}
