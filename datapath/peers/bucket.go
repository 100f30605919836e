package peers

import "time"

// A bucket holds processor time. It fills at a share of the clock, up to its burst.
type bucket struct {
	perMille int64 // of the clock
	burst    time.Duration
	spent    time.Duration // what is missing from a full bucket
	last     time.Time
}

// take takes cost out if it is there.
func (b *bucket) take(cost time.Duration, now time.Time) bool {
	if elapsed := now.Sub(b.last); elapsed > 0 { // a clock that went back fills nothing
		filled := b.spent // all, if enough time has passed: the product does not overflow
		if elapsed < b.spent/time.Duration(b.perMille)*1000+time.Second {
			filled = min(b.spent, elapsed*time.Duration(b.perMille)/1000)
		}
		b.spent -= filled
	}
	b.last = now
	if b.spent+cost > b.burst {
		return false
	}
	b.spent += cost
	return true
}
