package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"thole/internal/api"
	"thole/ruleset/kernel"
)

// A notifier says which transactions changed our table (kernel.Listener).
type notifier interface {
	Next() (kernel.Write, error) // waits; kernel.ErrLost: something was not said
	Close() error                // ends it
}

// A listener hears of changes of our table, our own among them, and wakes the enforcer.
// It is the quick way: what it misses is found by asking (driftPoll).
type listener struct {
	from notifier
	to   chan<- kernel.Write
	log  *slog.Logger
}

// Run listens until the context ends.
func (l *listener) Run(ctx context.Context) error {
	if l.from == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = l.from.Close() })() // it ends Next
	for {
		w, err := l.from.Next()
		if ctx.Err() != nil {
			return nil
		}
		var pause <-chan time.Time
		if err != nil {
			l.log.Warn("notifications of table changes failed: the table is read instead", "error", err)
			w = kernel.Write{}
		}
		if err != nil && !errors.Is(err, kernel.ErrLost) {
			pause = time.After(retryFirst)
		}
		select {
		case l.to <- w:
		case <-ctx.Done():
			return nil
		}
		if pause == nil {
			continue
		}
		select {
		case <-pause:
		case <-ctx.Done():
			return nil
		}
	}
}

// A mending is one that was made in one of some generations of nftables.
type mending struct {
	api.Mending
	after, until uint32
}

// mending is the last one, as clients see it; nil: there was none.
func (e *enforcer) mending() *api.Mending {
	if e.lastMended == nil {
		return nil
	}
	return &e.lastMended.Mending
}

// heard looks at the table when somebody may have changed it. A Write without a
// generation is one that was lost.
func (e *enforcer) heard(w kernel.Write) {
	if w.Generation != 0 && !later(w.Generation, e.seen) {
		e.name(w)
		return // our own, or one that was found already
	}
	if w.PID != 0 && !ownThread(w.PID) {
		e.suspect = w
	}
	e.mend()
}

// mend looks whether the table is ours still, and loads it again if it is not.
func (e *enforcer) mend() {
	if drifted, err := e.look(); err != nil || drifted {
		e.attempt(e.reconcile) // it reports the error, if it persists
	}
}

// look notices that another program changed the table, or that Thole was armed or disarmed. It is read where nftables
// has seen a transaction that was not ours, and every so often in any case.
func (e *enforcer) look() (drifted bool, err error) {
	turned := e.heed()
	generation, err := e.kernel.Generation()
	if err != nil || generation == e.seen && e.now().Sub(e.read) < readBack {
		return turned, err
	}
	loaded, err := e.kernel.Read(tableName)
	if err != nil {
		return false, fmt.Errorf("reading the table back: %w", err)
	}
	e.read = e.now()
	switch {
	case sameTable(loaded, e.loaded):
	case !e.disarmed.IsZero(): // removed by thole cleanup, or loaded by somebody else and to be removed
		e.loaded, e.settled, drifted = loaded, false, true
	default:
		m := mending{Mending: api.Mending{Time: e.now()}, after: e.seen, until: generation}
		if later(e.suspect.Generation, e.seen) {
			m.Program, m.PID = e.suspect.Program, e.suspect.PID
		}
		e.log.Warn("another program changed the table: restoring it",
			"removed", loaded == nil, "by", m.Program, "pid", m.PID)
		e.loaded, e.settled, drifted = loaded, false, true
		e.mended, e.lastMended = e.mended+1, &m
	}
	e.seen = generation
	return drifted || turned, nil
}

// name says who made a change that was found before it was heard of.
func (e *enforcer) name(w kernel.Write) {
	m := e.lastMended
	if m == nil || m.PID != 0 || w.PID == 0 || ownThread(w.PID) || !later(w.Generation, m.after) ||
		later(w.Generation, m.until) {
		return
	}
	named := *m // the old one is in a view
	named.Program, named.PID = w.Program, w.PID
	e.lastMended = &named
	e.log.Warn("the program that changed the table", "by", named.Program, "pid", named.PID)
	e.publish()
}

// later reports whether a generation comes after another. They go round.
func later(a, b uint32) bool { return int32(a-b) > 0 }

// ownThread reports whether a thread is this process's.
func ownThread(tid uint32) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
	return err == nil
}
