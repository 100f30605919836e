package handshake

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"testing"
	"time"

	"thole/datapath/refusal"
	"thole/datapath/token"
)

// pendingOf is a server's Conn of a node, key i.
func pendingOf(i byte, goodM1 bool) Conn {
	key := make(ed25519.PublicKey, ed25519.PublicKeySize)
	key[0] = i
	return Conn{State: Answered, GoodM1: goodM1,
		pair: &token.Pair{Peer: &token.Claim{Identity: token.Identity{PublicKey: key}}}}
}

// key is the i-th connection of a host.
func key(host byte, i int) Key {
	remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2 + byte(i>>16), host}), uint16(i))
	return Key{Local: serverEnd, Remote: remote}
}

func mustPut(t *testing.T, table *Table, k Key, c Conn, now time.Time) {
	t.Helper()
	if err := table.Put(k, c, now); err != nil {
		t.Fatal(err)
	}
}

// TestQuotas: exactly as many as its quota of one owner, and the others' are not touched.
func TestQuotas(t *testing.T) {
	for pool, goodM1 := range map[Pool]bool{GoodM1: true, Strangers: false} {
		table := NewTable()
		for i := range bounds[pool].Quota {
			mustPut(t, table, key(1, i), pendingOf(1, goodM1), begin)
		}
		if err := table.Put(key(1, 60000), pendingOf(1, goodM1), begin); !errors.Is(err, refusal.OverQuota) {
			t.Errorf("pool %d: one more than the quota: %v", pool, err)
		}
		mustPut(t, table, key(1, 0), pendingOf(1, goodM1), begin) // it has its place
		mustPut(t, table, key(2, 0), pendingOf(2, goodM1), begin)
		mustPut(t, table, key(1, 60000), pendingOf(1, !goodM1), begin) // the other pool
		mustPut(t, table, key(1, 7), Conn{}, begin)
		mustPut(t, table, key(1, 60001), pendingOf(1, goodM1), begin)
		want := Counts{Conns: bounds[pool].Quota + 1, OverQuota: 1}
		if got := table.Counts(pool); got != want {
			t.Errorf("pool %d: %+v, want %+v", pool, got, want)
		}
	}
}

// TestPools: a pool that is full takes no more of anybody, and leaves the others alone.
func TestPools(t *testing.T) {
	for pool, goodM1 := range map[Pool]bool{GoodM1: true, Strangers: false} {
		table := NewTable()
		owners := bounds[pool].Conns / bounds[pool].Quota
		for o := range owners {
			for i := range bounds[pool].Quota {
				mustPut(t, table, key(byte(o), i), pendingOf(byte(o), goodM1), begin)
			}
		}
		if err := table.Put(key(200, 0), pendingOf(200, goodM1), begin); !errors.Is(err, refusal.Full) {
			t.Errorf("pool %d is full: %v", pool, err)
		}
		if got := table.Counts(pool); got.Conns != bounds[pool].Conns || got.Full != 1 {
			t.Errorf("pool %d: %+v", pool, got)
		}
		mustPut(t, table, key(200, 0), pendingOf(200, !goodM1), begin)
		mustPut(t, table, key(201, 0), Conn{State: Offered}, begin)
	}
}

// TestConnectsGiveWay: a workload that connects more than its quota loses its oldest,
// and nobody else's.
func TestConnectsGiveWay(t *testing.T) {
	table := NewTable()
	other := Conn{State: Offered, workload: 2}
	mustPut(t, table, key(9, 0), other, begin)
	mine := Conn{State: Offered, workload: 1}
	for i := range bounds[Connects].Quota {
		mustPut(t, table, key(1, i), mine, begin.Add(time.Duration(i)))
	}
	mustPut(t, table, key(1, 0), mine, begin.Add(time.Hour)) // no longer the oldest
	mustPut(t, table, key(2, 0), mine, begin.Add(time.Hour))
	if table.Get(key(1, 0)).State != Offered || table.Get(key(1, 1)).State != Closed || table.Get(key(9, 0)) != other {
		t.Error("another gave way")
	}
	if got := table.Counts(Connects); got.Evicted != 1 || got.Conns != bounds[Connects].Quota+1 {
		t.Errorf("%+v", got)
	}
	for w := range Workload(bounds[Connects].Conns/bounds[Connects].Quota - 1) {
		for i := range bounds[Connects].Quota {
			mustPut(t, table, key(byte(10+w), i), Conn{State: Offered, workload: 10 + w}, begin)
		}
	}
	// The pool is full: who has something gives of his own, who has nothing waits.
	mustPut(t, table, key(3, 0), other, begin)
	if got := table.Counts(Connects); got.Conns != bounds[Connects].Conns {
		t.Errorf("%+v", got)
	}
	if err := table.Put(key(4, 0), Conn{State: Offered, workload: 99}, begin); !errors.Is(err, refusal.Full) {
		t.Errorf("the pool is full: %v", err)
	}
}

// TestStrangersGiveWay: what came of T1 full keeps its place for as long as it is safe, and
// then makes room for another of its address, also where the whole pool is full.
func TestStrangersGiveWay(t *testing.T) {
	safe := bounds[Strangers].Safe
	table := NewTable()
	for o := range bounds[Strangers].Conns / bounds[Strangers].Quota {
		for i := range bounds[Strangers].Quota {
			mustPut(t, table, key(byte(o), i), pendingOf(byte(o), false), begin)
		}
	}
	mustPut(t, table, key(1, 0), pendingOf(1, false), begin.Add(1)) // it is not the oldest any more
	if err := table.Put(key(1, 60000), pendingOf(1, false), begin.Add(safe-1)); !errors.Is(err, refusal.OverQuota) {
		t.Errorf("while all are safe: %v", err)
	}
	mustPut(t, table, key(1, 60000), pendingOf(1, false), begin.Add(safe))
	if table.Get(key(1, 0)).State != Answered || table.Get(key(1, 1)).State != Closed {
		t.Error("another gave way")
	}
	if err := table.Put(key(200, 0), pendingOf(200, false), begin.Add(safe)); !errors.Is(err, refusal.Full) {
		t.Errorf("who has none waits: %v", err)
	}
	want := Counts{Conns: bounds[Strangers].Conns, OverQuota: 1, Full: 1, Evicted: 1}
	if got := table.Counts(Strangers); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestOnlyConnChangesItsPool: a Conn that moves to the other pool, or gives way to
// itself, is counted once.
func TestOnlyConnChangesItsPool(t *testing.T) {
	table := NewTable()
	mustPut(t, table, key(1, 0), pendingOf(1, false), begin)
	mustPut(t, table, key(1, 0), pendingOf(1, true), begin)
	mustPut(t, table, key(1, 0), Conn{State: Plain}, begin)
	mustPut(t, table, key(2, 0), Conn{}, begin)
	for pool, n := range map[Pool]int{Connects: 1, GoodM1: 0, Strangers: 0} {
		if got := table.Counts(pool).Conns; got != n {
			t.Errorf("pool %d has %d", pool, got)
		}
	}
	mustPut(t, table, key(1, 0), Conn{}, begin)
	if len(table.conns)+len(table.owners) != 0 {
		t.Error("something is left")
	}
}

// TestExpire: at the deadline, not before; each event moves it.
func TestExpire(t *testing.T) {
	table := NewTable()
	mustPut(t, table, key(1, 0), pendingOf(1, true), begin)
	mustPut(t, table, key(1, 1), pendingOf(1, true), begin.Add(time.Second))
	mustPut(t, table, key(1, 2), Conn{State: Offered}, begin)
	mustPut(t, table, key(1, 0), pendingOf(1, true), begin.Add(2*time.Second))
	for _, tc := range []struct {
		at   time.Duration
		left int
	}{
		{bounds[Connects].Lifetime - 1, 3},
		{bounds[Connects].Lifetime, 2},
		{bounds[GoodM1].Lifetime + time.Second - 1, 2},
		{bounds[GoodM1].Lifetime + time.Second, 1},
		{bounds[GoodM1].Lifetime + 2*time.Second, 0},
	} {
		table.Expire(begin.Add(tc.at))
		if len(table.conns) != tc.left {
			t.Errorf("after %v: %d left, want %d", tc.at, len(table.conns), tc.left)
		}
	}
	if len(table.owners) != 0 || table.Counts(GoodM1).Expired != 2 || table.Counts(Connects).Expired != 1 {
		t.Error("counts")
	}
}

func BenchmarkTable(b *testing.B) {
	table := NewTable()
	for i := range bounds[Connects].Quota {
		_ = table.Put(key(1, i), Conn{State: Offered}, begin)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		k := key(2, i%50000)
		_ = table.Put(k, Conn{State: Offered, workload: 7}, begin)
		_ = table.Put(k, Conn{}, begin)
	}
}
