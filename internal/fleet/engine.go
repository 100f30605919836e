package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"thole/datapath"
	"thole/datapath/pki"
)

// An Engine is a datapath.Engine. It works from its making on; Run gives back what it took.
type Engine interface {
	Run(context.Context) error
	Replace(*pki.Node) error
	Status() datapath.Status
}

// NewEngine makes one.
func NewEngine(config datapath.Config) (Engine, error) {
	e, err := datapath.New(config)
	if err != nil {
		return nil, err // not e: an interface that holds a nil pointer is not nil
	}
	return e, nil
}

// An engineKeeper has at most one engine run. It belongs to one goroutine, which receives from ended and calls stopped
// then. It starts no engine by itself: that is for begin.
type engineKeeper struct {
	start   func(*pki.Node) (Engine, error)
	current Engine     // nil: none runs
	failed  error      // why none runs; nil while one does, and before the first
	ended   chan error // of size 1, so that nobody has to receive
	running sync.WaitGroup
}

// replace has the engine use another certificate, key or trust, if one runs.
func (k *engineKeeper) replace(node *pki.Node) error {
	if k.current == nil || node == nil {
		return nil
	}
	return k.current.Replace(node)
}

// begin starts an engine that works until the context ends, unless one runs, or there is no certificate for it.
func (k *engineKeeper) begin(ctx context.Context, node *pki.Node) {
	if k.current != nil || node == nil || ctx.Err() != nil {
		return
	}
	e, err := k.start(node)
	if err != nil {
		k.stopped(err)
		return
	}
	k.current, k.failed = e, nil
	k.running.Go(func() { k.ended <- e.Run(ctx) })
}

// stopped notes that no engine runs.
func (k *engineKeeper) stopped(err error) {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	k.current = nil
	k.failed = fmt.Errorf("handshakes with other nodes are not processed, so labelled connections to and from them "+
		"do not open: %w; the daemon tries again", err)
}

// wait returns when no engine runs any more, after its context has ended.
func (k *engineKeeper) wait() { k.running.Wait() }
