package whose

import (
	"errors"
	"sync"
	"time"

	"thole/datapath/sockets"
)

// The bounds of a look at all sockets. None is meant to be met in normal use.
const (
	maxLooked  = 65_536                 // sockets
	maxTime    = 300 * time.Millisecond // that it may take
	pauseRatio = 9                      // times what a look took, until the next: a tenth of one CPU at most
)

// Looks are looks at all sockets. They are safe for concurrent use.
//
// Any user may ask often. So what a look found is the answer for pauseRatio times as long as the look took.
type Looks struct {
	list func(visit func(sockets.Socket) bool) error
	now  func() time.Time

	mu       sync.Mutex // guards what follows, and is held while it is looked
	next     time.Time
	found    []sockets.Socket // not written to after they were returned
	complete bool
}

// NewLooks returns the Looks at the sockets that a function lists (sockets.Open).
func NewLooks(list func(visit func(sockets.Socket) bool) error, now func() time.Time) *Looks {
	return &Looks{list: list, now: now}
}

// look returns the sockets. complete is false where a bound was reached.
func (l *Looks) look() (found []sockets.Socket, complete bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	began := l.now()
	if began.Before(l.next) {
		return l.found, l.complete, nil
	}
	until := began.Add(maxTime)
	l.found, l.complete = nil, true
	untold := false
	err = l.list(func(s sockets.Socket) bool {
		untold = untold || s.Bound && s.Cgroup == 0
		if s.Cgroup == 0 {
			return true // what is left of a connection, without a process
		}
		if l.complete = len(l.found) < maxLooked && l.now().Before(until); l.complete {
			l.found = append(l.found, s)
		}
		return l.complete
	})
	if err == nil && untold {
		err = errors.New("listing sockets: the kernel does not tell their cgroups (INET_DIAG)")
	}
	if err != nil {
		l.found, l.next = nil, time.Time{}
		return nil, false, err
	}
	ended := l.now()
	l.next = ended.Add(pauseRatio * ended.Sub(began))
	return l.found, l.complete, nil
}
