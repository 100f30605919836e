package nstest

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// slowness is what THOLE_SLOWNESS says, from 1 (no such variable) on: how many times as long as usually everything
// takes on this machine, because its processors are emulated.
var slowness = func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("THOLE_SLOWNESS"))
	if err != nil {
		return 1
	}
	return time.Duration(max(1, n))
}()

// Patience is what a patience of d is on this machine. Whatever this package is given or waits for is multiplied
// already; it is for a test that hands a time-out to others, as to curl. A time that is asserted, or the product's, is
// never multiplied.
func Patience(d time.Duration) time.Duration { return slowness * d }

// Slow says that this machine is slower than TCP's timers, which nothing multiplies: what was not lost may be repeated.
func Slow() bool { return slowness > 1 }

// WaitFor polls cond until it holds, and fails the test if it does not within patience. What completes the sentence
// "waited 5s for …". It is the one place in a test where time passes; all else is an event.
func WaitFor(t testing.TB, patience time.Duration, what string, cond func() bool) {
	t.Helper()
	if !Poll(patience, cond) {
		t.Fatalf("waited %v for %s", Patience(patience), what)
	}
}

// Poll calls cond, ever less often, until it holds (true) or patience is over (false). cond is called at least twice,
// the last time after the deadline, so that a machine that was asleep is not to blame.
func Poll(patience time.Duration, cond func() bool) bool {
	const first, most = 50 * time.Microsecond, 10 * time.Millisecond
	deadline := time.Now().Add(Patience(patience))
	for pause := first; time.Now().Before(deadline); pause = min(2*pause, most) {
		if cond() {
			return true
		}
		time.Sleep(pause)
	}
	return cond()
}
