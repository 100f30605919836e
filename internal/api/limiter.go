package api

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A limiter bounds what one user can ask for: requests at once, and requests a
// second. Root is not bounded: who can stop the daemon need not be kept from
// asking it.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	users map[uint32]*allowance
}

// An allowance is what one user may ask for yet.
type allowance struct {
	requests *rate.Limiter
	running  int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, users: map[uint32]*allowance{}}
}

// enter admits a request or says why not. An admitted one calls leave when it is done.
func (l *limiter) enter(uid uint32) (leave func(), err error) {
	if uid == 0 {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.allowance(uid, now)
	switch {
	case a.running >= maxConcurrentPerUser:
		return nil, fmt.Errorf("too many requests at once: uid %d has %d, the most is %d: wait until they are answered",
			uid, a.running, maxConcurrentPerUser)
	case !a.requests.AllowN(now, 1):
		return nil, fmt.Errorf("too many requests: uid %d may send %d a second: try again in a second", uid,
			requestsPerSecond)
	}
	a.running++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.running--
	}, nil
}

// allowance returns the user's. The caller holds mu.
func (l *limiter) allowance(uid uint32, now time.Time) *allowance {
	a, ok := l.users[uid]
	if !ok {
		if len(l.users) >= maxUserBuckets {
			l.forgetIdle(now)
		}
		a = &allowance{requests: rate.NewLimiter(requestsPerSecond, requestsBurst)}
		l.users[uid] = a
	}
	return a
}

// forgetIdle drops the users who would be as new. The caller holds mu.
func (l *limiter) forgetIdle(now time.Time) {
	maps.DeleteFunc(l.users, func(_ uint32, a *allowance) bool {
		return a.running == 0 && a.requests.TokensAt(now) >= requestsBurst
	})
}
