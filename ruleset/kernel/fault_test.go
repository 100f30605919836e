package kernel

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/ruleset"
)

// A faulty socket fails once: at its n-th call, before or after that is made.
type faulty struct {
	socket
	n     int // calls to go
	after bool
	err   error
	hit   string // the call that failed
}

func (f *faulty) call(name string, do func() error) error {
	f.n--
	if f.n != 0 {
		return do()
	}
	f.hit = name
	if f.after {
		if err := do(); err != nil {
			return err
		}
	}
	return f.err
}

func (f *faulty) Execute(m netlink.Message) (replies []netlink.Message, err error) {
	err = f.call("execute", func() (err error) { replies, err = f.socket.Execute(m); return err })
	return replies, err
}

func (f *faulty) SendMessages(m []netlink.Message) (sent []netlink.Message, err error) {
	err = f.call("send", func() (err error) { sent, err = f.socket.SendMessages(m); return err })
	return sent, err
}

func (f *faulty) SetReadBuffer(n int) error {
	return f.call("read buffer", func() error { return f.socket.SetReadBuffer(n) })
}

func (f *faulty) SetWriteBuffer(n int) error {
	return f.call("write buffer", func() error { return f.socket.SetWriteBuffer(n) })
}

func (f *faulty) SyscallConn() (raw syscall.RawConn, err error) {
	err = f.call("receive", func() (err error) { raw, err = f.socket.SyscallConn(); return err })
	return raw, err
}

// Every call of netlink fails in turn, before and after the kernel did what it was asked
// for. What is said of the table is true, and the connection can be used on.
func TestFaultAtEveryCall(t *testing.T) {
	h, c := open(t)
	real := c.nl
	other := openIn(t, h) // sees what is loaded
	a, b := lookedUp(marks(20), "one"), lookedUp(marks(30), "two")
	mustApply(t, c, nil, a)
	for _, op := range []struct {
		name string
		do   func(have, want *ruleset.Table) error
	}{
		{"apply", func(have, want *ruleset.Table) error { return c.Apply(ruleset.Diff(have, want)) }},
		{"apply what the kernel refuses", func(have, want *ruleset.Table) error {
			return c.Apply(ruleset.Diff(have, invalid(want)))
		}},
		{"read", func(_, _ *ruleset.Table) error { _, err := c.Read("thole"); return err }},
		{"counters", func(_, _ *ruleset.Table) error { _, err := c.Counters("thole"); return err }},
		{"generation", func(_, _ *ruleset.Table) error { _, err := c.Generation(); return err }},
		{"remark", func(_, _ *ruleset.Table) error {
			_, err := c.Remark(0, 0, func(mark uint32) uint32 { return mark | 0x80000000 })
			return err
		}},
	} {
		calls := 0
		for n, over := 1, false; !over; n++ {
			for _, after := range []bool{false, true} {
				for _, errno := range []error{unix.ENOBUFS, unix.EINTR, unix.EMSGSIZE} {
					what := fmt.Sprintf("%s, call %d, after %v, %v", op.name, n, after, errno)
					f := &faulty{socket: real, n: n, after: after, err: errno}
					c.nl = f
					err := op.do(a, b)
					c.nl = real
					over = f.hit == ""
					checkOutcome(t, what+", "+f.hit, err, mustRead(t, other), a, b)
					if _, err := c.Generation(); err != nil {
						t.Fatalf("%s: the connection cannot be used on: %v", what, err)
					}
					mustApply(t, other, mustRead(t, other), a)
				}
			}
			calls = n
		}
		t.Logf("%s: %d calls", op.name, calls-1)
	}
}

// checkOutcome compares what an error says of the table with what is loaded now, which
// was a and was to be b.
func checkOutcome(t *testing.T, what string, err error, now, a, b *ruleset.Table) {
	t.Helper()
	is := func(want *ruleset.Table) bool { return now != nil && ruleset.Same(*now, *want) }
	if !is(a) && !is(b) {
		t.Fatalf("%s: the table is neither the old nor the new one:\n%s", what, now.Text())
	}
	var failed *ApplyError
	if !errors.As(err, &failed) {
		return
	}
	if failed.Outcome == Loaded && !is(b) || failed.Outcome == NotLoaded && !is(a) {
		t.Errorf("%s: %v; that is not so", what, err)
	}
}
