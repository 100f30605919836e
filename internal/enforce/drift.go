package enforce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"thole/internal/api"
	"thole/ruleset/kernel"
)

// FollowWrites reads the notifications of changes of our table, our own among them, and wakes Run, until the context
// ends. It is the quick way: a change whose notification is lost is found by reading the generation (driftPoll).
func (e *Enforcer) FollowWrites(ctx context.Context, from Notifier) error {
	if from == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = from.Close() })() // it ends Next
	for {
		w, err := from.Next()
		if ctx.Err() != nil {
			return nil
		}
		var pause <-chan time.Time
		if err != nil {
			e.log.Warn("notifications of table changes failed: the table is read instead", "error", err)
			w = kernel.Write{}
		}
		if err != nil && !errors.Is(err, kernel.ErrLost) {
			pause = time.After(retryFirst)
		}
		select {
		case e.channels.writes <- w:
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

// drift is what other programs did to the table.
type drift struct {
	restored int          // how often a change of theirs was found, and the table restored
	last     *restoration // the last of them; nil: there was none
	foreign  kernel.Write // the last change that was notified and not made by this program
}

// A restoration is one of a change that was made in one of some generations of nftables.
type restoration struct {
	api.Mending
	after, until uint32
}

// notified notes a change of the table that nftables told of.
func (d *drift) notified(w kernel.Write) {
	if w.PID != 0 && !ownThread(w.PID) {
		d.foreign = w
	}
}

// found counts a change by another program, between two generations.
func (d *drift) found(now time.Time, after, until uint32) restoration {
	r := restoration{Mending: api.Mending{Time: now}, after: after, until: until}
	if later(d.foreign.Generation, after) {
		r.Program, r.PID = d.foreign.Program, d.foreign.PID
	}
	d.restored, d.last = d.restored+1, &r
	return r
}

// named says which program made the last change, where the notification came after the change was found. ok is false
// where it is about another change, or the program was known.
func (d *drift) named(w kernel.Write) (ok bool) {
	r := d.last
	if r == nil || r.PID != 0 || w.PID == 0 || ownThread(w.PID) || !later(w.Generation, r.after) ||
		later(w.Generation, r.until) {
		return false
	}
	named := *r // the old one is in a view
	named.Program, named.PID = w.Program, w.PID
	d.last = &named
	return true
}

// status is the last restoration, as clients see it; nil: there was none.
func (d *drift) status() *api.Mending {
	if d.last == nil {
		return nil
	}
	return &d.last.Mending
}

// tableWritten checks the table when another program may have changed it. A Write without a
// generation is one that was lost.
func (e *Enforcer) tableWritten(w kernel.Write) {
	if w.Generation == 0 || later(w.Generation, e.loaded.generation) {
		e.drift.notified(w)
		e.restore()
		return
	}
	if e.drift.named(w) { // else it is our own, or one that was found already
		e.log.Warn("the program that changed the table", "by", w.Program, "pid", w.PID)
		e.publish()
	}
}

// restore checks whether the table is ours still, and loads it again if it is not.
func (e *Enforcer) restore() {
	if drifted, err := e.checkTable(); err != nil || drifted {
		e.attempt(e.reconcile) // it reports the error, if it persists
	}
}

// checkTable notices that another program changed the table, or that Thole was armed or disarmed. The table is read
// where nftables has seen a transaction that was not ours, and every so often in any case.
func (e *Enforcer) checkTable() (drifted bool, err error) {
	turned := e.checkDisarmed()
	generation, err := e.kernel.Generation()
	if err != nil || generation == e.loaded.generation && e.now().Sub(e.loaded.readAt) < readBack {
		return turned, err
	}
	table, err := e.kernel.Read(TableName)
	if err != nil {
		return false, fmt.Errorf("reading the table back: %w", err)
	}
	e.loaded.readAt = e.now()
	switch {
	case sameTable(table, e.loaded.table):
	case e.arming.isDisarmed(): // removed by thole cleanup, or loaded by somebody else and to be removed
		e.loaded.replacedBy(table)
		drifted = true
	default:
		r := e.drift.found(e.now(), e.loaded.generation, generation)
		e.log.Warn("another program changed the table: restoring it",
			"removed", table == nil, "by", r.Program, "pid", r.PID)
		e.loaded.replacedBy(table)
		drifted = true
	}
	e.loaded.generation = generation
	return drifted || turned, nil
}

// later reports whether a generation comes after another. They go round.
func later(a, b uint32) bool { return int32(a-b) > 0 }

// ownThread reports whether a thread is this process's.
func ownThread(tid uint32) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
	return err == nil
}
