package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/internal/routes"
	"thole/internal/state"
)

// fakeRoutes is table local of a test.
type fakeRoutes struct {
	mu     sync.Mutex
	list   []routes.Route
	err    error // of each change
	closed chan struct{}
}

// fail has all changes fail from now on; nil: none.
func (f *fakeRoutes) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeRoutes) ours() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.list {
		if r.Protocol == routes.Protocol {
			n++
		}
	}
	return n
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

func codesOf(list []condition.Condition) (codes []condition.Code) {
	for _, c := range list {
		codes = append(codes, c.Code)
	}
	return codes
}

// Routes that cannot be made are a problem, and the policies are enforced all the same. They are made when it works.
// While Thole is disarmed, and where the option is off, there are none.
func TestLocalRoutes(t *testing.T) {
	address := routes.Route{To: netip.MustParsePrefix("10.0.0.1/32"), Type: unix.RTN_LOCAL,
		Protocol: unix.RTPROT_KERNEL, Device: 2}
	b := newBench(t, func(b *bench) {
		b.config.Routes = true
		b.routes.list, b.routes.err = []routes.Route{address}, unix.ENOMEM
	})
	s := b.status()
	if !s.Enforcing || !slices.Contains(codesOf(s.Problems), condition.LocalRoutesFailed) || !s.LocalRoutes.On ||
		s.LocalRoutes.Error == "" {
		t.Errorf("they fail: %+v", s)
	}
	b.routes.fail(nil)
	nstest.WaitFor(t, patience, "the routes", func() bool {
		s := b.status()
		return s.Healthy() && s.LocalRoutes == api.LocalRoutesStatus{On: true, Addresses: 1}
	})
	if _, err := b.client.Disarm(t.Context()); err != nil || b.routes.ours() != 0 || b.status().LocalRoutes.On {
		t.Errorf("disarmed: %v, %d routes, %+v", err, b.routes.ours(), b.status().LocalRoutes)
	}
	if _, err := b.client.Arm(t.Context()); err != nil || b.routes.ours() != 2 {
		t.Errorf("armed: %v, %d routes", err, b.routes.ours())
	}
	// Another program disarms Thole by the file.
	if err := state.At(b.config.State).Disarm(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, patience, "no routes", func() bool { return b.routes.ours() == 0 })
	if _, err := b.client.Arm(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.stop()
	if b.routes.ours() != 2 {
		t.Error("the routes did not stay when the daemon ended")
	}
	b.routes.closed = nil
	b.config.Routes = false
	b.routes.fail(unix.ENOMEM)
	b.start()
	if s := b.status(); !slices.Contains(codesOf(s.Problems), condition.LocalRoutesFailed) || s.LocalRoutes.On {
		t.Errorf("they cannot be removed: %+v", s.LocalRoutes)
	}
	b.routes.fail(nil)
	nstest.WaitFor(t, patience, "them to be removed",
		func() bool { return b.status().Healthy() && b.routes.ours() == 0 })
}
