package docker

import "sync"

// A backlog are the containers that wait to be asked about. One that is asked about
// already is given out again only when that is done: what was asked last is known
// last.
type backlog struct {
	ready chan struct{} // size 1: there may be something to take

	mu      sync.Mutex
	waiting map[string]bool
	busy    map[string]bool
}

func newBacklog() *backlog {
	return &backlog{ready: make(chan struct{}, 1), waiting: map[string]bool{}, busy: map[string]bool{}}
}

func (b *backlog) add(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[id] = true
	b.signal()
}

// take gives one out; ok is false if there is none.
func (b *backlog) take() (id string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.waiting {
		if !b.busy[id] {
			delete(b.waiting, id)
			b.busy[id] = true
			b.signal() // another one may take the next
			return id, true
		}
	}
	return "", false
}

// takeAll gives all out.
func (b *backlog) takeAll() []string {
	var ids []string
	for id, ok := b.take(); ok; id, ok = b.take() {
		ids = append(ids, id)
	}
	return ids
}

// done takes back what was given out.
func (b *backlog) done(ids ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		delete(b.busy, id)
	}
	b.signal()
}

func (b *backlog) signal() {
	select {
	case b.ready <- struct{}{}:
	default: // who takes has been told already
	}
}
