package daemon

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"thole/internal/enforce"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// A faulty host is the real one. Of the daemon's calls of netlink, each that there is,
// one in faultRate fails: before it is made, or, where it cannot be known from
// outside, after it. It says on its log nothing that a real one would not.
//
// What is below these calls fails in ruleset/kernel's TestFaultAtEveryCall, each message in
// turn. And every system call on a netlink socket may fail, whoever makes it (faults.Injector):
// here, and of what is not here, a bridge's ports and a fleet's queue and lookup of sockets,
// in internal/e2e (TestDockerFaults, TestFleetFaults).
type faulty struct {
	mu    sync.Mutex // guards r
	r     *rand.Rand
	conn  Kernel
	marks enforce.Conntrack
	heard enforce.Notifier
	cells func() (map[uint64]bool, error)
	left  func(string) (uint64, bool, error)
}

const faultRate = 20

// runFaulty runs one daemon after the other, each on a faulty host, until the context ends.
// SIGUSR2 has the next one begin.
func runFaulty(ctx context.Context, config Config, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(n, 2))
	next := make(chan os.Signal, 1)
	signal.Notify(next, syscall.SIGUSR2)
	for {
		f := &faulty{r: r}
		err := f.fault("open")
		if err == nil {
			err = f.runUntil(ctx, next, config)
		}
		if ctx.Err() != nil {
			return err
		}
		config.Logger.Error("the daemon ended: it is started anew", "error", err)
	}
}

// runUntil runs a daemon until the context ends, or the next one is to begin.
func (f *faulty) runUntil(ctx context.Context, next <-chan os.Signal, config Config) error {
	ctx, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx, config) }()
	select {
	case err := <-ended:
		end()
		return err
	case <-next:
		end()
		return <-ended
	}
}

// run runs a daemon on the real host, but for the faults.
func (f *faulty) run(ctx context.Context, config Config) error {
	h, err := openHost()
	if err != nil {
		return err
	}
	f.conn, f.marks, f.heard, f.cells = h.kernel, h.marks, h.writes, h.sockets
	h.kernel, h.marks, h.writes, h.sockets = f, f, f, f.Sockets
	f.left, h.dying = h.dying, f.Dying
	d, err := newDaemon(config, h)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// fault returns an error now and then: those of netlink.
func (f *faulty) fault(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.r.IntN(faultRate) != 0 {
		return nil
	}
	errs := []error{unix.ENOBUFS, unix.EINTR, unix.EMSGSIZE, unix.ENOMEM, unix.EAGAIN, unix.EBUSY}
	return fmt.Errorf("%s, by chance: %w", call, errs[f.r.IntN(len(errs))])
}

func (f *faulty) Read(name string) (*ruleset.Table, error) {
	if err := f.fault("read"); err != nil {
		return nil, err
	}
	return f.conn.Read(name)
}

// Apply also fails after the kernel has committed, as with ENOBUFS.
func (f *faulty) Apply(c ruleset.Change) error {
	if err := f.fault("apply"); err != nil {
		return err
	}
	if err := f.conn.Apply(c); err != nil {
		return err
	}
	return f.fault("applied")
}

func (f *faulty) Generation() (uint32, error) {
	if err := f.fault("generation"); err != nil {
		return 0, err
	}
	return f.conn.Generation()
}

func (f *faulty) Counters(name string) (map[string]kernel.Counter, error) {
	if err := f.fault("counters"); err != nil {
		return nil, err
	}
	return f.conn.Counters(name)
}

func (f *faulty) Remark(mask, bits uint32, change func(uint32) uint32) (int, error) {
	if err := f.fault("remark"); err != nil {
		return 0, err
	}
	return f.marks.Remark(mask, bits, change)
}

func (f *faulty) Dying(cgroup string) (id uint64, some bool, err error) {
	if err := f.fault("dying"); err != nil {
		return 0, false, err
	}
	return f.left(cgroup)
}

func (f *faulty) Sockets() (map[uint64]bool, error) {
	if err := f.fault("sockets"); err != nil {
		return nil, err
	}
	return f.cells()
}

// Next loses what it heard: the kernel says so, or there is another error.
func (f *faulty) Next() (kernel.Write, error) {
	w, err := f.heard.Next()
	if err != nil {
		return w, err
	}
	if f.fault("next") != nil {
		return kernel.Write{}, kernel.ErrLost
	}
	if err := f.fault("next"); err != nil {
		return kernel.Write{}, err
	}
	return w, nil
}

func (f *faulty) Close() error { return f.heard.Close() }
