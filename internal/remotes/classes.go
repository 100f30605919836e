package remotes

import (
	"sync"
	"time"

	"thole/compiler/policy"
)

// times are when Remotes were proven last, by Key. The goroutine of the engine writes them, too.
type times struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// note notes that a Remote was proven.
func (t *times) note(key string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	t.last[key] = now
}

// of returns when each of the Remotes was proven last. The time of those that an earlier daemon learned begins now.
func (t *times) of(remotes []policy.Remote, now time.Time) []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	list := make([]time.Time, len(remotes))
	for i, r := range remotes {
		key := Key(r)
		if _, ok := t.last[key]; !ok {
			t.last[key] = now
		}
		list[i] = t.last[key]
	}
	return list
}

// keep forgets all but these Remotes.
func (t *times) keep(remotes []policy.Remote) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := map[string]time.Time{}
	for _, r := range remotes {
		key := Key(r)
		left[key] = t.last[key]
	}
	t.last = left
}

// classes are the classes of Remotes in the loaded table. The goroutine that owns the Set changes them with the table;
// the datapath reads those that are believed.
type classes struct {
	mu       sync.RWMutex     // the goroutine that owns the Set needs it to write only
	byKey    map[string]class // by Key
	believed int              // how many of them
}

type class struct {
	number   uint32
	believed bool
}

func (c *classes) of(key string) (number uint32, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	known := c.byKey[key]
	return known.number, known.believed
}

func (c *classes) len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.believed
}

// set takes over the classes of a table that is loaded.
func (c *classes) set(t Table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := 0 // of t.Remotes, that is not known
	if t.Step && c.byKey != nil {
		for _, r := range t.Forgotten {
			c.forget(Key(r))
		}
		first = len(t.Remotes) - len(t.Learned)
	} else {
		c.byKey, c.believed = map[string]class{}, 0
	}
	for i := first; i < len(t.Classes); i++ {
		r := t.Remotes[i]
		c.byKey[Key(r)] = class{t.Classes[i], !r.Ended}
		if !r.Ended {
			c.believed++
		}
	}
}

// forget removes a class. It needs the lock.
func (c *classes) forget(key string) {
	if c.byKey[key].believed {
		c.believed--
	}
	delete(c.byKey, key)
}
