package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler"
	"thole/datapath"
	"thole/datapath/pki"
)

// Class is a method of datapath.Daemon.
func (f *fleet) Class(r compiler.Remote) (uint32, error) {
	key := remoteKey(r)
	if class, ok := f.view.Load().remotes[key]; ok {
		f.proven(key)
		return class, nil
	}
	if !f.mayMeet(r.Node) {
		return 0, fmt.Errorf("node %s: %w", r.Node, datapath.TooOften)
	}
	f.proven(key)
	ctx, cancel := context.WithTimeout(context.Background(), classPatience)
	defer cancel()
	var err error
	ordered := f.order(ctx, func() { err = f.meet(r) })
	if err = errors.Join(ordered, err); err != nil {
		return 0, err
	}
	class, ok := f.view.Load().remotes[key]
	if !ok {
		return 0, errors.New("the table does not know it")
	}
	return class, nil
}

// proven notes that a Remote was proven now.
func (f *fleet) proven(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.use[key] = f.now()
}

// mayMeet takes from what a node may make the table change.
func (f *fleet) mayMeet(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
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
func (f *fleet) forgetFull(now time.Time) {
	maps.DeleteFunc(f.rates, func(_ string, allowance *rate.Limiter) bool { return allowance.TokensAt(now) >= remotesBurst })
}

// meet has the table know what another node's workload proved.
func (f *fleet) meet(r compiler.Remote) error {
	if slices.ContainsFunc(f.remotes, func(known compiler.Remote) bool { return !known.Ended && remoteKey(known) == remoteKey(r) }) {
		return f.reconcile() // it was not loaded the last time
	}
	if f.vouches != nil && !f.vouches(r.Certificate) {
		return fmt.Errorf("%w: the certificate of node %s, just now", pki.ErrRevoked, r.Node)
	}
	if err := f.makeRoom(r.Node); err != nil {
		return err
	}
	f.remotes = append(slices.Clone(f.remotes), r)
	err := f.reconcile()
	if err != nil {
		f.remotes = f.remotes[:len(f.remotes)-1]
	}
	return err
}

// makeRoom removes, where as many Remotes are known as there may be, some that nobody
// uses: the node's own where it has its share, else of the node that has most. The error
// is datapath.TooMany: connections use them all.
func (f *fleet) makeRoom(node string) error {
	of := map[string]int{}
	for _, r := range f.remotes {
		of[r.Node]++
	}
	loses := node
	switch {
	case of[node] >= maxRemotesPerNode:
	case len(f.remotes) < maxRemotes:
		return nil
	default:
		for other, n := range of {
			if n > of[loses] {
				loses = other
			}
		}
	}
	removed, err := f.removeRemotes(remoteGrace, max(1, of[loses]/8), func(r compiler.Remote) bool { return r.Node == loses })
	if err == nil && removed == 0 {
		err = fmt.Errorf("node %s: %w: %d are known, %d of node %s", node, datapath.TooMany, len(f.remotes), of[loses], loses)
	}
	return err
}

// removeRemotes removes up to most of those Remotes that nobody has proven for a time, or
// that have ended, and whose class no connection has: those used least recently. The
// table is changed with the next reconcile. Numbers are not used again before all others
// were (compiler.Numbers).
func (f *fleet) removeRemotes(idle time.Duration, most int, which func(compiler.Remote) bool) (int, error) {
	now, used := f.now(), f.uses()
	var unused []int
	for i, r := range f.remotes {
		if which(r) && (r.Ended || now.Sub(used[i]) >= idle) {
			unused = append(unused, i)
		}
	}
	if len(unused) == 0 {
		return 0, nil
	}
	live, err := f.liveRemotes()
	if err != nil {
		return 0, err
	}
	classes := map[string]uint32{}
	for i, class := range f.result.Remotes {
		classes[remoteKey(f.met[i])] = class
	}
	unused = slices.DeleteFunc(unused, func(i int) bool {
		class, ok := classes[remoteKey(f.remotes[i])]
		return !ok || live[class]
	})
	slices.SortStableFunc(unused, func(a, b int) int { return used[a].Compare(used[b]) })
	gone := map[int]bool{}
	for _, i := range unused[:min(most, len(unused))] {
		gone[i] = true
	}
	f.forget(gone)
	return len(gone), nil
}

// uses returns when each of the Remotes was proven last. What an earlier daemon met
// begins now.
func (f *fleet) uses() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	used := make([]time.Time, len(f.remotes))
	for i, r := range f.remotes {
		key := remoteKey(r)
		if _, ok := f.use[key]; !ok {
			f.use[key] = f.now()
		}
		used[i] = f.use[key]
	}
	return used
}

// forget drops Remotes, by their place in the list.
func (f *fleet) forget(gone map[int]bool) {
	if len(gone) == 0 {
		return
	}
	var left []compiler.Remote
	use := map[string]time.Time{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, r := range f.remotes {
		if !gone[i] {
			left = append(left, r)
			use[remoteKey(r)] = f.use[remoteKey(r)]
		}
	}
	f.remotes, f.use = left, use
}

// liveRemotes returns the classes of other nodes' workloads that connections have.
func (f *fleet) liveRemotes() (map[uint32]bool, error) {
	live := map[uint32]bool{}
	mask, bits := compiler.RemoteMarks()
	_, err := f.connections.Remark(mask, bits, func(mark uint32) uint32 {
		if class, ok := compiler.IsRemote(mark); ok {
			live[class] = true
		}
		return mark // nothing changes
	})
	return live, err
}

// sweepRemotes removes what nobody uses, now and then.
func (f *fleet) sweepRemotes(ctx context.Context) {
	tick := time.NewTicker(remoteSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = f.order(ctx, f.sweepOnce) // it fails when the daemon stops
		}
	}
}

func (f *fleet) sweepOnce() {
	n, err := f.removeRemotes(remoteIdle, len(f.remotes), func(compiler.Remote) bool { return true })
	if err != nil {
		f.log.Warn("what other nodes proved is not forgotten", "error", err)
	}
	if n > 0 {
		f.log.Info("what other nodes proved, and nobody uses, is forgotten", "classes", n)
		f.attempt(f.reconcile)
	}
}

// believe has the table follow this node's certificate and whom it trusts. A certificate that requires other labels
// changes every workload of this node, so all that runs is looked at again.
func (f *fleet) believe(c credentials) error {
	before := f.identity
	f.adoptCredentials(c)
	f.endRemotes()
	err := f.reconcile()
	if err == nil && !reflect.DeepEqual(before, f.identity) {
		f.remember() // where the table stays as it is, nobody else does
	}
	return err
}

// endRemotes ends what was proven with certificates that are not believed any more.
func (e *enforcer) endRemotes() {
	if e.vouches == nil {
		return
	}
	e.remotes = slices.Clone(e.remotes)
	for i := range e.remotes {
		r := &e.remotes[i]
		if !r.Ended && !e.vouches(r.Certificate) {
			r.Ended, e.disbelieved = true, true
			e.log.Info("what a node proved is not believed any more", "node", r.Node, "address", r.Address, "labels", r.Labels.String())
		}
	}
}
