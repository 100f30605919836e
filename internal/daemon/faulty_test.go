package daemon

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"thole/ruleset"
	"thole/ruleset/kernel"
)

// A faulty host is the real one, of whose calls one in faultRate fails: before it is
// made, or, where it can not be known from outside, after it. It says on its log
// nothing that a real one would not.
type faulty struct {
	mu    sync.Mutex // guards r
	r     *rand.Rand
	conn  Kernel
	marks conntrack
	heard notifier
	cells func() (map[uint64]bool, error)
}

const faultRate = 20

// runFaulty runs one daemon after the other, each on a faulty host, until the context ends.
func runFaulty(ctx context.Context, config Config, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(n, 2))
	for {
		h, err := openHost()
		if err != nil {
			return err
		}
		f := &faulty{r: r, conn: h.kernel, marks: h.marks, heard: h.writes, cells: h.sockets}
		h.kernel, h.marks, h.writes, h.sockets = f, f, f, f.Sockets
		d, err := newDaemon(config, h)
		if err == nil {
			err = d.Run(ctx)
		}
		if ctx.Err() != nil {
			return err
		}
		config.Logger.Error("the daemon ended: it is started anew", "error", err)
	}
}

// fault returns an error now and then: those of netlink.
func (f *faulty) fault(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.r.IntN(faultRate) != 0 {
		return nil
	}
	errs := []error{unix.ENOBUFS, unix.EINTR, unix.EMSGSIZE, unix.ENOMEM, unix.EAGAIN, unix.EBUSY, kernel.ErrGeneration}
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

func (f *faulty) Sockets() (map[uint64]bool, error) {
	if err := f.fault("sockets"); err != nil {
		return nil, err
	}
	return f.cells()
}

// Next loses what it heard.
func (f *faulty) Next() (kernel.Write, error) {
	w, err := f.heard.Next()
	if err == nil {
		if f.fault("next") != nil {
			return kernel.Write{}, kernel.ErrLost
		}
	}
	return w, err
}

func (f *faulty) Close() error { return f.heard.Close() }
