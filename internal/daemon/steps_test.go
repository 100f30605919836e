package daemon

import (
	"errors"
	"testing"

	"thole/compiler"
	"thole/compiler/compilertest"
	"thole/compiler/policy"
	"thole/internal/state"
	"thole/ruleset"
)

// asCompiled waits until the table is that of a fresh compile of allowWeb and of what the state directory says.
func (b *bench) asCompiled() {
	b.t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(allowWeb)}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.until("the table to be that of a fresh compile", func() bool {
		stored, err := state.At(b.config.State).Table()
		if err != nil {
			b.t.Fatal(err)
		}
		if s := b.status(); len(stored.Workloads) != s.Workloads+s.Ended {
			return false
		}
		in := compiler.Input{Policies: docs.Policies, Workloads: stored.Workloads, Parents: stored.Parents,
			Unlabelled: stored.Unlabelled}
		table := b.kernel.Loaded()
		in.Numbers, in.Options.Epoch = compilertest.Loaded(table)
		result, err := compiler.Compile(in)
		if err != nil {
			b.t.Fatal(err)
		}
		return sameTable(table, &result.Table)
	})
}

// One workload more or less of a class that stays is a change of its elements alone, and
// a daemon that comes knows of it.
func TestSmallChanges(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	web := map[string]string{"app": "web"}
	first := b.run("first", web)
	epoch, changes := b.status().Epoch, b.kernel.Changes()
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
	if n, small := b.kernel.Changes()-changes, b.kernel.Steps(changes); n != small || small < 4 {
		t.Errorf("%d of %d changes were made without a compile of all; want all", small, n)
	}
	if s := b.status(); s.Epoch != epoch || s.Workloads != 3 || s.Classes != 1 {
		t.Errorf("status %+v; want epoch %d", s, epoch)
	}

	changes = b.kernel.Changes()
	b.stop()
	b.start()
	if b.kernel.Changes() != changes {
		t.Errorf("the next daemon changed the table: %s", b.kernel.Applied[changes])
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
	b.kernel.Change(func() {
		b.kernel.Seen-- // nothing was changed
		b.kernel.Fail = errors.New("no buffer space available")
		b.kernel.Before = func(ruleset.Change) {
			b.kernel.Locked(func() {
				if calls++; calls == 2 {
					b.kernel.Fail = nil
				}
			})
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
