package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler/policy"
	"thole/datapath/refusal"
)

// class returns the class of what another node's workload proved, which the table may have to learn first.
func (f *Fleet) class(r policy.Remote) (uint32, error) {
	if class, ok := f.table.Class(r); ok {
		return class, nil
	}
	if !f.mayMeet(r.Node) {
		return 0, fmt.Errorf("node %s: %w", r.Node, refusal.TooOften)
	}
	ctx, cancel := context.WithTimeout(context.Background(), classPatience)
	defer cancel()
	if err := f.table.Learn(ctx, r); err != nil {
		return 0, err
	}
	class, ok := f.table.Class(r)
	if !ok {
		return 0, errors.New("the table has no element for it")
	}
	return class, nil
}

// mayMeet takes from what a node may make the table change.
func (f *Fleet) mayMeet(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.config.Now()
	allowance := f.rates[node]
	if allowance == nil {
		if len(f.rates) >= maxRemoteBuckets {
			f.forgetFull(now)
		}
		allowance = rate.NewLimiter(remotesPerSecond, remotesBurst)
		f.rates[node] = allowance
	}
	return allowance.AllowN(now, 1)
}

// forgetFull drops the nodes that would be as new; f.mu is held. Certificates bound how
// many there are that are not.
func (f *Fleet) forgetFull(now time.Time) {
	maps.DeleteFunc(f.rates, func(_ string, allowance *rate.Limiter) bool {
		return allowance.TokensAt(now) >= remotesBurst
	})
}

// sweep has the table forget what nobody uses, now and then.
func (f *Fleet) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.table.Forget(ctx)
		}
	}
}
