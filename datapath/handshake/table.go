package handshake

import (
	"container/list"
	"encoding/binary"
	"net/netip"
	"thole/datapath/refusal"
	"time"
)

// A Pool is a part of the table with bounds of its own, so that strangers cannot crowd
// out nodes that have shown their key, nor either this node's own connects.
type Pool uint8

// The pools.
const (
	Connects  Pool = iota // the client's side; each workload has a quota
	GoodM1                // T1 was short and its MAC right; each node has a quota
	Strangers             // T1 full, which anybody may send again; each address has a quota
	endPool
)

// Pools is how many there are: the pools are the numbers below it.
const Pools = endPool

func (p Pool) String() string { return [endPool]string{"connects", "proven-key", "strangers"}[p] }

// Bounds returns the pool's.
func (p Pool) Bounds() Bounds { return bounds[p] }

// Bounds of a pool.
type Bounds struct {
	Conns, Quota int           // in all, and of one owner
	Lifetime     time.Duration // since the last event that was not refused
	Safe         time.Duration // since then, in which it does not give way to another of its owner
}

// bounds of the table. A Conn takes about half a kilobyte.
//
// Server: between two SYN-ACKs of Linux's timer are at most 32 s, and as long after the
// last. Client: what is forgotten while the SYN is still sent again begins anew with the
// next; T3 is not needed again 15 s after the last packet that carried it, unless four
// SYN-ACKs or their answers were lost, and then the connection is reset.
//
// Whose quota is used up: a client that is forgotten begins anew with its next SYN. T1
// full is forged with little, so what came of it keeps its place for a packet's way there
// and back, and who forges some of them does not keep the node out whose address it is.
var bounds = [endPool]Bounds{
	Connects:  {Conns: 65536, Quota: 16384, Lifetime: 15 * time.Second},
	GoodM1:    {Conns: 16384, Quota: 2048, Lifetime: 40 * time.Second, Safe: 40 * time.Second},
	Strangers: {Conns: 4096, Quota: 256, Lifetime: 40 * time.Second, Safe: time.Second},
}

// A Key names a connection by its ends, whoever opened it.
type Key struct{ Local, Remote netip.AddrPort }

// Counts are what happened to a pool's Conns.
type Counts struct {
	Conns     int    // now
	Full      uint64 // refused: the pool was
	OverQuota uint64 // refused: the owner's quota was reached
	Evicted   uint64 // the oldest of an owner's, for a new one
	Expired   uint64
}

// An owner is whom a Conn counts against.
type owner struct {
	pool Pool
	id   [32]byte // workload, node's public key, or address
}

type entry struct {
	key      Key
	conn     Conn
	owner    owner
	deadline time.Time
}

// A Table holds the Conns that are not Closed. It belongs to one goroutine. It allocates
// for each connection, once: its entry, which is gone when the connection is decided.
type Table struct {
	conns  map[Key]*list.Element // of *entry
	owners map[owner]*list.List  // by deadline, the next first
	counts [endPool]Counts
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{conns: make(map[Key]*list.Element), owners: make(map[owner]*list.List)}
}

// Counts returns a pool's counts.
func (t *Table) Counts(p Pool) Counts { return t.counts[p] }

// Get returns the connection's Conn; what is not there is Closed.
func (t *Table) Get(k Key) Conn {
	if e := t.conns[k]; e != nil {
		return e.Value.(*entry).conn
	}
	return Conn{}
}

// Put stores the Conn that Step returned, with a new deadline. A Closed one is deleted.
// The error is Full or OverQuota; then the connection is as before, and its packet is to
// be dropped. Where the owner's oldest Conn is not safe any more (Bounds), it gives way
// instead: to forget one is to have its connection begin anew, or end.
func (t *Table) Put(k Key, c Conn, now time.Time) error {
	old := t.conns[k]
	if c.State == Closed {
		t.remove(old)
		return nil
	}
	own := ownerOf(&c, k)
	deadline := now.Add(bounds[own.pool].Lifetime)
	if old != nil && old.Value.(*entry).owner == own {
		e := old.Value.(*entry)
		e.conn, e.deadline = c, deadline
		t.owners[own].MoveToBack(old)
		return nil
	}
	if err := t.admit(own, now); err != nil {
		return err
	}
	t.remove(t.conns[k]) // of another pool; or it has just given way to itself
	l := t.owners[own]
	if l == nil {
		l = list.New()
		t.owners[own] = l
	}
	t.conns[k] = l.PushBack(&entry{k, c, own, deadline})
	t.counts[own.pool].Conns++
	return nil
}

// admit makes sure that there is room for one more of the owner's.
func (t *Table) admit(own owner, now time.Time) error {
	limits, counts, l := bounds[own.pool], &t.counts[own.pool], t.owners[own]
	overQuota := l != nil && l.Len() >= limits.Quota
	if !overQuota && counts.Conns < limits.Conns {
		return nil
	}
	if l != nil {
		oldest := l.Front()
		if since := now.Sub(oldest.Value.(*entry).deadline) + limits.Lifetime; since >= limits.Safe {
			counts.Evicted++
			t.remove(oldest)
			return nil
		}
	}
	if overQuota {
		counts.OverQuota++
		return refusal.OverQuota
	}
	counts.Full++
	return refusal.Full
}

// Expire forgets the Conns whose deadline has passed.
func (t *Table) Expire(now time.Time) {
	for own, l := range t.owners {
		for l.Len() > 0 && !now.Before(l.Front().Value.(*entry).deadline) {
			t.counts[own.pool].Expired++
			t.remove(l.Front())
		}
	}
}

func (t *Table) remove(element *list.Element) {
	if element == nil {
		return
	}
	e := element.Value.(*entry)
	l := t.owners[e.owner]
	l.Remove(element)
	if l.Len() == 0 {
		delete(t.owners, e.owner)
	}
	delete(t.conns, e.key)
	t.counts[e.owner.pool].Conns--
}

func ownerOf(c *Conn, k Key) owner {
	switch {
	case c.State < Received:
		o := owner{pool: Connects}
		binary.BigEndian.PutUint64(o.id[:], uint64(c.workload))
		return o
	case c.GoodM1:
		o := owner{pool: GoodM1}
		copy(o.id[:], c.pair.Peer.Identity.PublicKey)
		return o
	}
	o := owner{pool: Strangers}
	address := k.Remote.Addr().As16()
	copy(o.id[:], address[:])
	return o
}
