package peers

import (
	"container/list"
	"time"
)

// shares bounds a fairCache.
type shares struct {
	unproven, proven int // entries in all
	owner            int // entries of one owner, of both kinds
}

// evictions count entries that made room while they still held.
type evictions struct{ unproven, owner, share uint64 }

// A fairCache is a bounded map whose entries belong to nodes, and whose nodes cannot push
// each other out:
//
//   - An entry is unproven until somebody showed, just then, the private key behind it.
//     Unproven ones have room of their own, where the oldest makes room: who only sends
//     again what he saw pushes out nothing that is proven.
//   - A node has a quota. Beyond it the node's own entries make room, unproven ones first.
//   - When there is no room for one more that is proven, the node with most of them loses
//     the one used least recently; the newcomer counts, and loses when it is even. So
//     nobody with less than an equal share loses anything.
type fairCache[K comparable, V any] struct {
	shares
	entries  map[K]*item[K, V]
	owners   map[string]*holder
	unproven *list.List // of *item, the oldest first
	proven   int
	evicted  evictions
}

type item[K comparable, V any] struct {
	key    K
	value  V
	until  time.Time
	owner  string
	held   *list.Element // in its holder
	waits  *list.Element // in unproven, or nil
	proven bool
}

// A holder is what one node has.
type holder struct {
	items  *list.List // of *item, the least recently used first
	proven int
}

func newFairCache[K comparable, V any](s shares) *fairCache[K, V] {
	return &fairCache[K, V]{shares: s, entries: make(map[K]*item[K, V]), owners: make(map[string]*holder),
		unproven: list.New()}
}

// get returns an entry's value, and uses it.
func (f *fairCache[K, V]) get(k K, now time.Time) (v V, ok bool) {
	i := f.entries[k]
	if i == nil {
		return v, false
	}
	if now.After(i.until) {
		f.remove(i)
		return v, false
	}
	f.owners[i.owner].items.MoveToBack(i.held)
	return i.value, true
}

// put stores a value. A new entry is unproven; one that is there stays what it is.
func (f *fairCache[K, V]) put(k K, owner string, v V, until time.Time) {
	if i := f.entries[k]; i != nil {
		if i.owner == owner {
			i.value, i.until = v, until
			f.owners[owner].items.MoveToBack(i.held)
			return
		}
		f.remove(i)
	}
	if h := f.owners[owner]; h != nil && h.items.Len() >= f.owner {
		f.evicted.owner++
		f.remove(f.leastOf(h))
	}
	if f.unproven.Len() >= f.shares.unproven {
		f.evicted.unproven++
		f.remove(f.unproven.Front().Value.(*item[K, V]))
	}
	h := f.owners[owner]
	if h == nil {
		h = &holder{items: list.New()}
		f.owners[owner] = h
	}
	i := &item[K, V]{key: k, value: v, until: until, owner: owner}
	i.held, i.waits = h.items.PushBack(i), f.unproven.PushBack(i)
	f.entries[k] = i
}

// leastOf returns which of a holder's entries makes room for another of its own.
func (f *fairCache[K, V]) leastOf(h *holder) *item[K, V] {
	if h.proven < h.items.Len() {
		for e := h.items.Front(); e != nil; e = e.Next() {
			if i := e.Value.(*item[K, V]); !i.proven {
				return i
			}
		}
	}
	return h.items.Front().Value.(*item[K, V])
}

// prove makes an entry a proven one.
func (f *fairCache[K, V]) prove(k K) {
	i := f.entries[k]
	if i == nil || i.proven {
		return
	}
	mine := f.owners[i.owner]
	f.unproven.Remove(i.waits)
	i.waits, i.proven = nil, true
	mine.proven++
	f.proven++
	if f.proven <= f.shares.proven {
		return
	}
	most := mine
	for _, h := range f.owners {
		if h.proven > most.proven {
			most = h
		}
	}
	for e := most.items.Front(); e != nil; e = e.Next() {
		if other := e.Value.(*item[K, V]); other.proven && other != i {
			f.evicted.share++
			f.remove(other)
			return
		}
	}
	f.evicted.share++
	f.remove(i) // nobody has more than one, and there is no room for this one
}

func (f *fairCache[K, V]) remove(i *item[K, V]) {
	h := f.owners[i.owner]
	h.items.Remove(i.held)
	if i.proven {
		h.proven--
		f.proven--
	} else {
		f.unproven.Remove(i.waits)
	}
	if h.items.Len() == 0 {
		delete(f.owners, i.owner)
	}
	delete(f.entries, i.key)
}

// drop removes an entry, if it is there.
func (f *fairCache[K, V]) drop(k K) {
	if i := f.entries[k]; i != nil {
		f.remove(i)
	}
}

// sweep removes what has expired.
func (f *fairCache[K, V]) sweep(now time.Time) {
	for _, i := range f.entries {
		if now.After(i.until) {
			f.remove(i)
		}
	}
}
