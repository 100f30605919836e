package peers

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func fill(f *fairCache[string, int], owner string, n int, proven bool) {
	for i := range n {
		k := fmt.Sprint(owner, "/", i)
		f.put(k, owner, i, start.Add(time.Hour))
		if proven {
			f.prove(k)
		}
	}
}

func count(f *fairCache[string, int], owner string) (all, proven int) {
	if h := f.owners[owner]; h != nil {
		return h.items.Len(), h.proven
	}
	return 0, 0
}

// TestFairAtItsLimits: the bounds are those of statements, to the last entry.
func TestFairAtItsLimits(t *testing.T) {
	f := newFairCache[string, int](shares{unproven: MaxStatements / 4, proven: MaxStatements * 3 / 4,
		owner: StatementsPerNode})
	t.Run("one node's quota", func(t *testing.T) {
		fill(f, "greedy", StatementsPerNode, true)
		if f.evicted != (evictions{}) {
			t.Errorf("%+v at the limit", f.evicted)
		}
		f.put("greedy/more", "greedy", 0, start.Add(time.Hour))
		if n, _ := count(f, "greedy"); n != StatementsPerNode || f.evicted.owner != 1 {
			t.Errorf("%d, %+v", n, f.evicted)
		}
		if f.entries["greedy/0"] != nil || f.entries["greedy/more"] == nil {
			t.Error("the wrong one made room")
		}
		// Now the unproven one makes room for the next, not those that are proven.
		f.put("greedy/more2", "greedy", 0, start.Add(time.Hour))
		if f.entries["greedy/more"] != nil || f.entries["greedy/1"] == nil {
			t.Error("a proven entry made room for an unproven one")
		}
		f.drop("greedy/more2")
	})
	t.Run("unproven", func(t *testing.T) {
		f.evicted = evictions{}
		for i := range MaxStatements / 4 {
			f.put(fmt.Sprint("replayed/", i), fmt.Sprint("seen-", i%64), 0, start.Add(time.Hour))
		}
		if f.evicted != (evictions{}) || f.unproven.Len() != MaxStatements/4 {
			t.Errorf("%+v, %d at the limit", f.evicted, f.unproven.Len())
		}
		f.put("replayed/more", "seen-0", 0, start.Add(time.Hour))
		if f.evicted.unproven != 1 || f.entries["replayed/0"] != nil {
			t.Errorf("%+v", f.evicted)
		}
		for i := range 20_000 {
			f.put(fmt.Sprint("again/", i), fmt.Sprint("seen-", i%1000), 0, start.Add(time.Hour))
		}
		if _, proven := count(f, "greedy"); proven != StatementsPerNode-1 {
			t.Errorf("unproven entries pushed out proven ones: %d are left", proven)
		}
		if n := len(f.entries); n > MaxStatements {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("proven", func(t *testing.T) {
		f := newFairCache[string, int](f.shares)
		fill(f, "small", 10, true)
		for n := 0; f.proven < f.shares.proven; n++ {
			fill(f, fmt.Sprint("node-", n), min(StatementsPerNode, f.shares.proven-f.proven), true)
		}
		if f.evicted != (evictions{}) {
			t.Errorf("%+v at the limit", f.evicted)
		}
		for n := range 50 {
			fill(f, fmt.Sprint("late-", n), 100, true)
		}
		if f.evicted.share != 50*100 || f.proven != f.shares.proven {
			t.Errorf("%+v, %d proven", f.evicted, f.proven)
		}
		if n, _ := count(f, "small"); n != 10 {
			t.Errorf("a node with 10 kept %d, while others had %d", n, StatementsPerNode)
		}
		for n := range 50 {
			if got, _ := count(f, fmt.Sprint("late-", n)); got != 100 {
				t.Fatalf("late-%d has %d of 100", n, got)
			}
		}
	})
}

// TestFairEven: where all have the same, who wants more loses.
func TestFairEven(t *testing.T) {
	f := newFairCache[string, int](shares{unproven: 4, proven: 8, owner: 8})
	fill(f, "a", 4, true)
	fill(f, "b", 4, true)
	for i := range 100 {
		k := fmt.Sprint("b/more", i)
		f.put(k, "b", 0, start.Add(time.Hour))
		f.prove(k)
	}
	if n, _ := count(f, "a"); n != 4 {
		t.Errorf("a kept %d of 4", n)
	}
	one := newFairCache[string, int](shares{unproven: 2, proven: 2, owner: 2})
	for _, owner := range []string{"a", "b", "c"} {
		fill(one, owner, 1, true)
	}
	if n, _ := count(one, "c"); n != 0 || one.proven != 2 || one.evicted.share != 1 {
		t.Errorf("%d, %d, %+v", n, one.proven, one.evicted)
	}
}

// TestFairAgreesWithItself: after random operations the counts are those of the entries.
func TestFairAgreesWithItself(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	f := newFairCache[string, int](shares{unproven: 5, proven: 9, owner: 4})
	now := start
	for step := range 50_000 {
		k, owner := fmt.Sprint(r.IntN(40)), fmt.Sprint("n", r.IntN(6))
		switch r.IntN(6) {
		case 0, 1:
			f.put(k, owner, step, now.Add(time.Duration(r.IntN(50))*time.Second))
		case 2, 3:
			f.prove(k)
		case 4:
			f.get(k, now)
		case 5:
			if r.IntN(10) == 0 {
				f.sweep(now)
			}
			now = now.Add(time.Second)
		}
		proven, items := 0, 0
		for name, h := range f.owners {
			if h.items.Len() == 0 || h.items.Len() > f.owner {
				t.Fatalf("seed %d, step %d: %s has %d", seed, step, name, h.items.Len())
			}
			proven += h.proven
			items += h.items.Len()
		}
		if proven != f.proven || items != len(f.entries) || items-proven != f.unproven.Len() || proven > 9 ||
			f.unproven.Len() > 5 {
			t.Fatalf("seed %d, step %d: %d/%d proven, %d/%d entries, %d unproven", seed, step, proven, f.proven, items,
				len(f.entries), f.unproven.Len())
		}
	}
}

func TestRecent(t *testing.T) {
	r := newLRUCache[int, int](MaxOwnSets)
	for i := range MaxOwnSets {
		r.put(i, i, start.Add(time.Minute))
	}
	if _, ok := r.get(0, start); !ok || r.evicted != 0 {
		t.Errorf("evicted %d at the limit", r.evicted)
	}
	r.put(MaxOwnSets, 0, start.Add(time.Hour))
	if _, ok := r.get(1, start); ok || r.evicted != 1 || len(r.entries) != MaxOwnSets {
		t.Error("what was used least recently is still there")
	}
	if _, ok := r.get(0, start); !ok {
		t.Error("what was used is gone")
	}
	if _, ok := r.get(2, start.Add(61*time.Second)); ok {
		t.Error("what has expired is still there")
	}
	r.sweep(start.Add(61 * time.Second))
	if len(r.entries) != 1 || r.order.Len() != 1 {
		t.Errorf("%d left", len(r.entries))
	}
}

func TestBucket(t *testing.T) {
	b := bucket{perMille: 100, burst: 10 * time.Millisecond}
	now := start
	took := func() (n int) {
		for b.take(time.Millisecond, now) {
			n++
		}
		return n
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		want  int
	}{
		{"full at first", 0, 10},
		{"empty then", 0, 0},
		{"a tenth of the time", 50 * time.Millisecond, 5},
		{"no more than full", 1000 * time.Hour, 10},
		{"the clock goes back: nothing", -time.Hour, 0},
		{"and fills from there", 20 * time.Millisecond, 2},
	} {
		now = now.Add(c.after)
		if n := took(); n != c.want {
			t.Errorf("%s: %d, want %d", c.name, n, c.want)
		}
	}
	for range 1000 { // small steps lose nothing but fractions of a nanosecond
		now = now.Add(10 * time.Microsecond)
		b.take(time.Hour, now)
	}
	if n := took(); n != 1 {
		t.Errorf("10 ms in small steps: %d, want 1", n)
	}
}
