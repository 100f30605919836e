package nstest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// WaitFor polls cond until it holds, and fails the test if it does not within patience. What completes the sentence
// "waited 5s for …". It is the one place in a test where time passes; all else is an event.
func WaitFor(t testing.TB, patience time.Duration, what string, cond func() bool) {
	t.Helper()
	if !poll(patience, cond) {
		t.Fatalf("waited %v for %s", patience, what)
	}
}

// poll calls cond, ever less often, until it holds (true) or patience is over (false). cond is called at least twice,
// the last time after the deadline, so that a machine that was asleep is not to blame.
func poll(patience time.Duration, cond func() bool) bool {
	const first, most = 50 * time.Microsecond, 10 * time.Millisecond
	deadline := time.Now().Add(patience)
	for pause := first; time.Now().Before(deadline); pause = min(2*pause, most) {
		if cond() {
			return true
		}
		time.Sleep(pause)
	}
	return cond()
}

// pollFD waits until one of the events of poll(2) is there, or an error of the descriptor (true), or patience is over.
func pollFD(fd int, events int16, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		if err != unix.EINTR {
			return n > 0, err
		}
	}
}
