package api

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(func() time.Time { return now })
	take := func(uid uint32) int {
		n := 0
		for range 2 * requestsBurst {
			if leave, err := l.enter(uid); err == nil {
				leave()
				n++
			}
		}
		return n
	}
	if n := take(1); n != requestsBurst {
		t.Errorf("%d requests at first; want %d", n, requestsBurst)
	}
	if n := take(2); n != requestsBurst {
		t.Errorf("another user: %d requests; want %d", n, requestsBurst)
	}
	if n := take(0); n != 2*requestsBurst {
		t.Errorf("root: %d requests; want %d", n, 2*requestsBurst)
	}
	now = now.Add(time.Second)
	if n := take(1); n != requestsPerSecond {
		t.Errorf("%d requests a second later; want %d", n, requestsPerSecond)
	}
	now = now.Add(time.Hour)
	var leaves []func()
	for range 2 * maxConcurrentPerUser {
		if leave, err := l.enter(1); err == nil {
			leaves = append(leaves, leave)
		}
	}
	if len(leaves) != maxConcurrentPerUser {
		t.Errorf("%d at once; want %d", len(leaves), maxConcurrentPerUser)
	}
	for _, leave := range leaves {
		leave()
	}
	if _, err := l.enter(1); err != nil {
		t.Errorf("after all left: %v", err)
	}
	now = now.Add(time.Hour)
	for uid := range uint32(maxUserBuckets) {
		_, _ = l.enter(uid + 10)
	}
	if n := len(l.users); n > maxUserBuckets+2 {
		t.Errorf("%d users are remembered", n)
	}
}
