package daemon

import (
	"fmt"
	"sync"
	"time"
)

// A limiter bounds what one user can ask for: requests at once, and requests a
// second. Root is not bounded: who can stop the daemon need not be kept from
// asking it.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	users map[uint32]*allowance
}

// An allowance is one user's bucket of tokens, one for each request.
type allowance struct {
	tokens  float64
	filled  time.Time
	running int
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
	a := l.allowance(uid)
	switch {
	case a.running >= maxConcurrentPerUser:
		return nil, fmt.Errorf("too many requests at once: uid %d has %d, the most is %d: wait until they are answered", uid, a.running, maxConcurrentPerUser)
	case a.tokens < 1:
		return nil, fmt.Errorf("too many requests: uid %d may send %d a second: try again in a second", uid, requestsPerSecond)
	}
	a.tokens--
	a.running++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.running--
	}, nil
}

// allowance returns the user's, with the tokens of the time that has passed. The
// caller holds mu.
func (l *limiter) allowance(uid uint32) *allowance {
	now := l.now()
	a, ok := l.users[uid]
	if !ok {
		if len(l.users) >= maxUserBuckets {
			l.forgetIdle(now)
		}
		a = &allowance{tokens: requestsBurst, filled: now}
		l.users[uid] = a
	}
	a.refill(now)
	return a
}

func (a *allowance) refill(now time.Time) { a.fill(now, requestsPerSecond, requestsBurst) }

func (a *allowance) fill(now time.Time, perSecond, burst float64) {
	a.tokens = min(burst, a.tokens+now.Sub(a.filled).Seconds()*perSecond)
	a.filled = now
}

// forgetIdle drops the users who would be as new. The caller holds mu.
func (l *limiter) forgetIdle(now time.Time) {
	for uid, a := range l.users {
		if a.refill(now); a.running == 0 && a.tokens >= requestsBurst {
			delete(l.users, uid)
		}
	}
}
