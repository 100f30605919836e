package api

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A limiter bounds what one user can ask for: requests at once, requests a second, and bytes of answers. Root is not
// bounded: who can stop the daemon need not be kept from asking it.
type limiter struct {
	now func() time.Time

	mu     sync.Mutex
	users  map[uint32]*allowance
	beyond refusedRequests
}

// refusedRequests are how many requests were refused, for each reason.
type refusedRequests struct{ atOnce, rate, bytes uint64 }

// An allowance is what one user may ask for yet.
type allowance struct {
	requests  *rate.Limiter
	running   int
	answering int       // bytes of answers that the user has not read yet
	owed      float64   // bytes of answers for which it has to wait, at the time since
	since     time.Time //
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, users: map[uint32]*allowance{}}
}

// enter admits a request or says why not. An admitted one calls leave when it is done.
func (l *limiter) enter(user uint32) (leave func(), err error) {
	if user == 0 {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.allowance(user, now)
	switch {
	case a.running >= maxConcurrentPerUser:
		l.beyond.atOnce++
		return nil, fmt.Errorf("too many requests at once: uid %d has %d, the most is %d: wait until they are answered",
			user, a.running, maxConcurrentPerUser)
	case !a.requests.AllowN(now, 1):
		l.beyond.rate++
		return nil, fmt.Errorf("too many requests: uid %d may send %d a second: try again in a second", user,
			requestsPerSecond)
	}
	a.running++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.running--
	}, nil
}

// mayReceive says why a user gets no answer now, before anybody makes it. What an answer costs is charged when its
// size is known, so a user may owe for the last one.
func (l *limiter) mayReceive(user uint32) error {
	if user == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.allowance(user, now)
	switch owed := a.owes(now); {
	case a.answering >= maxAnswering:
		l.beyond.bytes++
		return fmt.Errorf("too many answers at once: uid %d has not read %d MiB of them: read them first", user,
			a.answering>>20)
	case owed >= answerBurst:
		l.beyond.bytes++
		wait := time.Duration((owed - answerBurst) / answerBytesPerSecond * float64(time.Second))
		return fmt.Errorf("too many answers: uid %d may receive %d MiB a second: try again in %d seconds", user,
			answerBytesPerSecond>>20, 1+int(wait/time.Second))
	}
	return nil
}

// charge charges an answer to a user, who calls read when it is sent.
func (l *limiter) charge(user uint32, size int) (read func()) {
	if user == 0 {
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.allowance(user, now)
	a.owed, a.since = a.owes(now)+float64(size), now
	a.answering += size
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.answering -= size
	}
}

// owes is for how many bytes a user has to wait until it is as new.
func (a *allowance) owes(now time.Time) float64 {
	return max(0, a.owed-now.Sub(a.since).Seconds()*answerBytesPerSecond)
}

// allowance returns the user's. The caller holds mu.
func (l *limiter) allowance(user uint32, now time.Time) *allowance {
	a, ok := l.users[user]
	if !ok {
		if len(l.users) >= maxUserBuckets {
			l.forgetIdle(now)
		}
		a = &allowance{requests: rate.NewLimiter(requestsPerSecond, requestsBurst)}
		l.users[user] = a
	}
	return a
}

// forgetIdle drops the users who would be as new. The caller holds mu.
func (l *limiter) forgetIdle(now time.Time) {
	maps.DeleteFunc(l.users, func(_ uint32, a *allowance) bool { return a.idle(now) })
}

func (a *allowance) idle(now time.Time) bool {
	return a.running == 0 && a.answering == 0 && a.owes(now) == 0 && a.requests.TokensAt(now) >= requestsBurst
}

// bounds says how near the users are to their limits who are nearest.
func (l *limiter) bounds() []Bound {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	var running, answering int
	var spent, owed float64
	for _, a := range l.users {
		running, answering = max(running, a.running), max(answering, a.answering)
		spent, owed = max(spent, requestsBurst-a.requests.TokensAt(now)), max(owed, a.owes(now))
	}
	return []Bound{
		{Name: BoundRequestsAtOnce, Now: uint64(running), Max: maxConcurrentPerUser, Beyond: l.beyond.atOnce},
		{Name: BoundRequests, Now: uint64(spent), Max: requestsBurst, Beyond: l.beyond.rate},
		{Name: BoundAnswers, Now: uint64(owed), Max: answerBurst, Beyond: l.beyond.bytes},
	}
}
