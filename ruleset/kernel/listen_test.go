package kernel

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/ruleset"
)

// listenIn listens in h for changes of our table.
func listenIn(t *testing.T, h *nstest.Host) (*Listener, <-chan Write, <-chan error) {
	t.Helper()
	var l *Listener
	var err error
	if doErr := h.Do(func() { l, err = Listen(Options{}, "thole") }); doErr != nil || err != nil {
		t.Fatal(doErr, err)
	}
	writes, errs := make(chan Write), make(chan error, 1)
	go func() {
		for {
			w, err := l.Next()
			if errors.Is(err, ErrLost) {
				errs <- err
				continue
			}
			if err != nil {
				close(writes)
				return
			}
			writes <- w
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for range writes {
		}
	})
	return l, writes, errs
}

// Who changes the table is named; changes of other tables are not heard of.
func TestListen(t *testing.T) {
	h, c := open(t)
	_, writes, _ := listenIn(t, h)
	next := func(what, program string) Write {
		t.Helper()
		select {
		case w := <-writes:
			generation, err := c.Generation()
			if err != nil || w.Generation != generation || program != "" && w.Program != program || w.PID == 0 {
				t.Errorf("%s: %+v, %v; want program %q and generation %d", what, w, err, program, generation)
			}
			return w
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing was heard", what)
			return Write{}
		}
	}
	mustApply(t, c, nil, marks(10))
	next("our own change", "")
	for _, script := range []string{
		"add table inet other; add chain inet other c",
		"add table ip thole; delete table ip thole",
	} {
		if err := h.Nft(script); err != nil {
			t.Fatal(err)
		}
	}
	for _, script := range []string{
		"add chain inet thole c; add rule inet thole c accept",
		"flush chain inet thole c",
		"flush ruleset; add table inet thole",
		"flush ruleset",
	} {
		if err := h.Nft(script); err != nil {
			t.Fatal(err)
		}
		if w := next(script, "nft"); int(w.PID) == os.Getpid() ||
			w.Removed != strings.HasSuffix(script, "flush ruleset") {
			t.Errorf("%s: heard of %+v", script, w)
		}
	}
	select {
	case w := <-writes:
		t.Errorf("heard of %+v", w)
	default:
	}
}

// What does not fit into the buffer is lost, and that is said.
func TestListenLost(t *testing.T) {
	h, c := open(t)
	l, writes, errs := listenIn(t, h)
	if err := l.nl.SetReadBuffer(1); err != nil { // the kernel's least
		t.Fatal(err)
	}
	have := (*ruleset.Table)(nil)
	for i := range 50 {
		want := marks(3000 + i)
		mustApply(t, c, have, want)
		have = want
		select {
		case err := <-errs:
			if !errors.Is(err, ErrLost) {
				t.Errorf("error %v", err)
			}
			return
		case <-writes:
		default:
		}
	}
	t.Error("nothing was lost")
}
