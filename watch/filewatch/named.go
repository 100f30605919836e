package filewatch

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// The times of Named.
const (
	reportEvery = 250 * time.Millisecond // changes are reported no more often; the first one is at once
	blindEvery  = time.Second            // without inotify, a change is assumed so often
	renewEvery  = time.Minute            // the watch is made anew: inotify does not report what is mounted on the way
)

// Named watches files of given names in one directory. Neither has to exist yet: the nearest existing directory
// on the path is watched.
//
// A change is reported at once, without a quiet time. So a reader may find a half-written file; it keeps what it has,
// and the end of the writing is reported, too. Of many changes within reportEvery the first and the last are reported.
//
// Named works in rounds: watch the path (pathWatch), report a change, wait for an event. Each round has a watch
// of its own, so none is left on a directory that was swapped for another. The report comes after the watch was made:
// a reader that reads at each report misses no change.
type Named struct {
	path    string
	names   []string
	inotify func() (*inotify, error)
	changed chan struct{} // of size 1
	failure atomic.Pointer[error]
}

// NewNamed watches the files with these names in the directory at path.
func NewNamed(path string, names ...string) *Named {
	return &Named{path: path, names: names, inotify: newInotify, changed: make(chan struct{}, 1)}
}

// Changed receives a value when the files may be others than before: once at the start, and after each change.
func (n *Named) Changed() <-chan struct{} { return n.changed }

// Err says why inotify cannot be used, so that a change is assumed once a second; nil: it is used.
func (n *Named) Err() error {
	if err := n.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Run watches until the context ends.
func (n *Named) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		next := time.After(reportEvery)
		if err := n.round(ctx); err != nil {
			n.failure.Store(&err)
			n.report()
			next = time.After(blindEvery)
		}
		select {
		case <-ctx.Done():
		case <-next:
		}
	}
	return nil
}

// round reports a change, and returns after the next one.
func (n *Named) round(ctx context.Context) error {
	inotify, err := n.inotify()
	if err != nil {
		return fmt.Errorf("watching %s: %v: see `sysctl fs.inotify.max_user_instances`", n.path, err)
	}
	defer inotify.close() //nolint:errcheck // nothing was written
	path, err := newPathWatch(inotify, n.path, n.isNamed)
	if err != nil {
		return err
	}
	n.failure.Store(nil)
	n.report()
	_, err = path.wait(ctx, time.Now().Add(renewEvery))
	return err
}

func (n *Named) isNamed(name string) bool { return slices.Contains(n.names, name) }

// report makes Changed receive a value, if none waits there already.
func (n *Named) report() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}
