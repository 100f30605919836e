package daemon

import (
	"errors"
	"slices"
	"sync"

	"thole/internal/routes"
)

// fakeRoutes is table local of a test.
type fakeRoutes struct {
	mu     sync.Mutex
	list   []routes.Route
	err    error // of each change
	closed chan struct{}
}

func (f *fakeRoutes) List() ([]routes.Route, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list), nil
}

func (f *fakeRoutes) Apply(c routes.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.list = slices.DeleteFunc(f.list, func(r routes.Route) bool { return slices.Contains(c.Remove, r) })
	for _, r := range c.Add {
		f.list = slices.Insert(f.list, 0, r)
	}
	return nil
}

func (f *fakeRoutes) Wait() error {
	<-f.done()
	return errors.New("it is closed")
}

func (f *fakeRoutes) Close() error {
	done := f.done()
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-done:
	default:
		close(done)
	}
	return nil
}

func (f *fakeRoutes) done() chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed == nil {
		f.closed = make(chan struct{})
	}
	return f.closed
}
