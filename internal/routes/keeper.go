package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A Table is table local of the kernel: a Kernel, or a test's.
type Table interface {
	List() ([]Route, error)
	Apply(Change) error
	Wait() error // until something may have changed; an error: it was closed
	Close() error
}

// How often a Keeper looks at the table.
const (
	rounds   = 3                      // of changes, each time, until the table is as it should be
	pause    = 50 * time.Millisecond  // between two looks: other programs may change routes without end
	poll     = time.Second            // between two looks at whether routes are wanted
	lookings = 30                     // polls between two looks at the table, where the kernel tells nothing
	retry    = 500 * time.Millisecond // after a failure
)

// A Keeper keeps our routes for as long as they are wanted. Its methods may be called from several goroutines.
type Keeper struct {
	table  Table
	wanted func() bool
	log    *slog.Logger

	mu    sync.Mutex // guards what follows, and is held while the table is changed
	state State
}

// A State is what a Keeper has reached.
type State struct {
	On        bool  // our routes are wanted
	Addresses int   // that are routed over lo
	Err       error // why not all that should be are
}

// Closed reports whether all addresses are routed over lo.
func (s State) Closed() bool { return s.On && s.Err == nil }

// NewKeeper returns a Keeper of a table. Wanted says whether there are to be routes now; where it says no, the Keeper
// removes its routes, also those of an earlier process.
func NewKeeper(table Table, wanted func() bool, log *slog.Logger) *Keeper {
	return &Keeper{table: table, wanted: wanted, log: log}
}

// State returns what was reached last.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Sync brings the table to what it should be now.
func (k *Keeper) Sync() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	last := k.state
	k.state.On = k.wanted()
	k.state.Addresses, k.state.Err = k.settle(k.state.On)
	switch {
	case k.state.Err != nil && fmt.Sprint(k.state.Err) != fmt.Sprint(last.Err):
		k.log.Error("local routes", "error", k.state.Err)
	case k.state.Err == nil && k.state != last:
		k.log.Info("local routes", "wanted", k.state.On, "addresses", k.state.Addresses)
	}
	return k.state.Err
}

// settle changes the table until it is as it should be.
func (k *Keeper) settle(on bool) (addresses int, err error) {
	var failed error
	for range rounds {
		have, err := k.table.List()
		if err != nil {
			return 0, err
		}
		changes := Cleared(have)
		if on {
			changes, addresses = Plan(have)
		}
		if len(changes) == 0 {
			return addresses, nil
		}
		failed = nil
		for _, c := range changes {
			failed = errors.Join(failed, k.apply(c))
		}
	}
	if failed == nil {
		failed = errors.New("another program changes local routes at the same time")
	}
	return addresses, failed
}

// apply makes a change. Where it cannot be made, none of our routes stays: without the one over lo, the other would
// take an address away from this node.
func (k *Keeper) apply(c Change) error {
	err := k.table.Apply(c)
	if err == nil {
		return nil
	}
	undo := Change{To: c.To, Remove: loopbackLast(slices.Concat(c.Remove, c.Add))}
	return errors.Join(fmt.Errorf("routing %s over lo: %w", c.To, err), k.table.Apply(undo))
}

// Run keeps the routes until the context ends, and leaves them as they are then. It closes the table. Where the kernel
// cannot be listened to, the table is looked at once a second.
func (k *Keeper) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	deaf := make(chan error, 1)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer k.table.Close() //nolint:errcheck // it ends Wait
	listening.Go(func() { deaf <- k.listen(changed) })
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	every := lookings
	for ticks := 1; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-deaf:
			k.log.Error("local routes: changes by other programs are noticed once a second only", "error", err)
			every = 1
		case <-changed:
			if !sleep(ctx, k.sync()) {
				return nil
			}
		case <-ticker.C:
			if ticks++; ticks%every == 0 || k.wanted() != k.State().On || k.State().Err != nil {
				k.sync()
			}
		}
	}
}

// sync is Sync, and returns how long to wait until the next. What failed is in the State.
func (k *Keeper) sync() time.Duration {
	if k.Sync() != nil {
		return retry
	}
	return pause
}

// sleep waits, or returns false when the context ends.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// listen passes on that something may have changed. What nobody took yet is told once.
func (k *Keeper) listen(changed chan<- struct{}) error {
	for {
		if err := k.table.Wait(); err != nil {
			return err
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
