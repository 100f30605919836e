package peers

import (
	"container/list"
	"time"
)

// An lruCache is a bounded map. When it is full, what was used least recently makes room:
// it is for what can be made again at little cost, or is not a stranger's to fill.
type lruCache[K comparable, V any] struct {
	limit   int
	entries map[K]*list.Element // of *used, in order
	order   *list.List          // the least recently used first
	evicted uint64
}

type used[K comparable, V any] struct {
	key   K
	value V
	until time.Time
}

func newLRUCache[K comparable, V any](limit int) *lruCache[K, V] {
	return &lruCache[K, V]{limit: limit, entries: make(map[K]*list.Element), order: list.New()}
}

func (r *lruCache[K, V]) get(k K, now time.Time) (v V, ok bool) {
	e := r.entries[k]
	if e == nil {
		return v, false
	}
	u := e.Value.(*used[K, V])
	if now.After(u.until) {
		r.drop(k)
		return v, false
	}
	r.order.MoveToBack(e)
	return u.value, true
}

func (r *lruCache[K, V]) put(k K, v V, until time.Time) {
	if e := r.entries[k]; e != nil {
		u := e.Value.(*used[K, V])
		u.value, u.until = v, until
		r.order.MoveToBack(e)
		return
	}
	if r.order.Len() >= r.limit {
		r.evicted++
		r.drop(r.order.Front().Value.(*used[K, V]).key)
	}
	r.entries[k] = r.order.PushBack(&used[K, V]{k, v, until})
}

func (r *lruCache[K, V]) drop(k K) {
	if e := r.entries[k]; e != nil {
		r.order.Remove(e)
		delete(r.entries, k)
	}
}

func (r *lruCache[K, V]) clear() {
	clear(r.entries)
	r.order.Init()
}

func (r *lruCache[K, V]) sweep(now time.Time) {
	for k, e := range r.entries {
		if now.After(e.Value.(*used[K, V]).until) {
			r.drop(k)
		}
	}
}
