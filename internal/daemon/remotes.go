package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/datapath/refusal"
)

// Remotes of other nodes in the loaded table: what package fleet asks of it (fleet.Table, fleet.Node).

// remoteTimes are when Remotes were proven last, by remoteKey. The engine's goroutine notes them.
type remoteTimes struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// note notes that a Remote was proven.
func (t *remoteTimes) note(key string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	t.last[key] = now
}

// times returns when each of the Remotes was proven last. What an earlier daemon met begins now.
func (t *remoteTimes) times(remotes []policy.Remote, now time.Time) []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	list := make([]time.Time, len(remotes))
	for i, r := range remotes {
		key := remoteKey(r)
		if _, ok := t.last[key]; !ok {
			t.last[key] = now
		}
		list[i] = t.last[key]
	}
	return list
}

// keep forgets all but these Remotes.
func (t *remoteTimes) keep(remotes []policy.Remote) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := map[string]time.Time{}
	for _, r := range remotes {
		key := remoteKey(r)
		left[key] = t.last[key]
	}
	t.last = left
}

// Class is a method of fleet.Table.
func (e *enforcer) Class(r policy.Remote) (class uint32, ok bool) {
	key := remoteKey(r)
	if class, ok = e.classes.of(key); ok {
		e.proven.note(key, e.now())
	}
	return class, ok
}

// Learn is a method of fleet.Table. The error is datapath.TooMany where there is no more room.
func (e *enforcer) Learn(ctx context.Context, r policy.Remote) (err error) {
	e.proven.note(remoteKey(r), e.now())
	ordered := e.order(ctx, func() { err = e.meet(r) })
	return errors.Join(ordered, err)
}

// Believe is a method of fleet.Table. A certificate that requires other labels changes every workload of this node, so
// all that runs is looked at again.
func (e *enforcer) Believe(ctx context.Context, node *pki.Node, trust *pki.Trust) (err error) {
	ordered := e.order(ctx, func() {
		before := e.identity
		e.adoptCredentials(node, trust)
		if !reflect.DeepEqual(before, e.identity) {
			e.state.close() // the next change is stored together with it
		}
		e.endRemotes()
		if err = e.reconcile(); err == nil && !reflect.DeepEqual(before, e.identity) {
			e.remember() // where the table stays as it is, nobody else does
		}
	})
	return errors.Join(ordered, err)
}

// Forget is a method of fleet.Table.
func (e *enforcer) Forget(ctx context.Context) { _ = e.order(ctx, e.sweepRemotes) } // it fails when the daemon stops

// Remotes is a method of fleet.Node.
func (e *enforcer) Remotes() int { return e.classes.len() }

// adoptCredentials has the enforcer use what this node's certificate says of its workloads, and whom it trusts. What
// is not known (nil) stays as it was.
func (e *enforcer) adoptCredentials(node *pki.Node, trust *pki.Trust) {
	if node != nil {
		e.identity = identityOf(node)
	}
	if trust != nil {
		e.vouches = trust.Vouches
	}
}

// meet has the table know what another node's workload proved.
func (e *enforcer) meet(r policy.Remote) error {
	if slices.ContainsFunc(e.remotes, func(known policy.Remote) bool { return sameRemote(&known, &r) }) {
		return e.catchUp() // it was not loaded the last time
	}
	if e.vouches != nil && !e.vouches(r.Certificate) {
		return fmt.Errorf("%w: the certificate of node %s, just now", pki.ErrRevoked, r.Node)
	}
	key := remoteKey(r)
	ended := slices.IndexFunc(e.remotes, func(known policy.Remote) bool { return remoteKey(known) == key })
	if ended < 0 {
		if err := e.makeRoom(r.Node); err != nil {
			return err
		}
	}
	before := e.remotes
	e.remotes = slices.Clone(before)
	if ended >= 0 { // its certificate is believed again
		e.remotes[ended] = r
	} else {
		e.remotes = append(e.remotes, r)
	}
	err := e.catchUp()
	if err != nil {
		e.remotes = before
	}
	return err
}

// makeRoom removes, where as many Remotes are known as there may be, some that nobody
// uses: the node's own where it has its share, else of the node that has most. The error
// is datapath.TooMany: connections use them all.
func (e *enforcer) makeRoom(node string) error {
	of := map[string]int{}
	for _, r := range e.remotes {
		of[r.Node]++
	}
	loses := node
	switch {
	case of[node] >= maxRemotesPerNode:
	case len(e.remotes) < maxRemotes:
		return nil
	default:
		for other, n := range of {
			if n > of[loses] {
				loses = other
			}
		}
	}
	removed, err := e.removeRemotes(remoteGrace, max(1, of[loses]/8), func(r policy.Remote) bool {
		return r.Node == loses
	})
	if err == nil && removed == 0 {
		err = fmt.Errorf("node %s: %w: %d are known, %d of node %s", node, refusal.TooMany, len(e.remotes), of[loses],
			loses)
	}
	return err
}

// removeRemotes removes up to most of those Remotes that nobody has proven for a time, or
// that have ended, and whose class no connection has: those used least recently. The
// table is changed with the next reconcile. Numbers are not used again before all others
// were (compiler.Numbers).
func (e *enforcer) removeRemotes(idle time.Duration, most int, which func(policy.Remote) bool) (int, error) {
	now, used := e.now(), e.proven.times(e.remotes, e.now())
	var unused []int
	for i, r := range e.remotes {
		if which(r) && (r.Ended || now.Sub(used[i]) >= idle) {
			unused = append(unused, i)
		}
	}
	if len(unused) == 0 {
		return 0, nil
	}
	live, err := e.liveRemotes()
	if err != nil {
		return 0, err
	}
	unused = slices.DeleteFunc(unused, func(i int) bool {
		class, ok := e.classes.byKey[remoteKey(e.remotes[i])]
		return !ok || live[class.number]
	})
	slices.SortStableFunc(unused, func(a, b int) int { return used[a].Compare(used[b]) })
	gone := map[int]bool{}
	for _, i := range unused[:min(most, len(unused))] {
		gone[i] = true
	}
	e.forget(gone)
	return len(gone), nil
}

// forget drops Remotes, by their place in the list.
func (e *enforcer) forget(gone map[int]bool) {
	if len(gone) == 0 {
		return
	}
	var left []policy.Remote
	for i, r := range e.remotes {
		if !gone[i] {
			left = append(left, r)
		}
	}
	e.remotes = left
	e.proven.keep(left)
}

// liveRemotes returns the classes of other nodes' workloads that connections have.
func (e *enforcer) liveRemotes() (map[uint32]bool, error) {
	live := map[uint32]bool{}
	mask, bits := mark.RemoteMarks()
	_, err := e.connections.Remark(mask, bits, func(ctMark uint32) uint32 {
		if class, ok := mark.IsRemote(ctMark); ok {
			live[class] = true
		}
		return ctMark // nothing changes
	})
	return live, err
}

// sweepRemotes removes what nobody uses.
func (e *enforcer) sweepRemotes() {
	n, err := e.removeRemotes(remoteIdle, len(e.remotes), func(policy.Remote) bool { return true })
	if err != nil {
		e.log.Warn("unused classes of other nodes cannot be removed", "error", err)
	}
	if n > 0 {
		e.log.Info("unused classes of other nodes are removed", "classes", n)
		e.attempt(e.reconcile)
	}
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
			e.log.Info("labels that a node proved are no longer believed",
				"node", r.Node, "address", r.Address, "labels", r.Labels.String())
		}
	}
}

// remoteKey names what was proven. A part has its length before it, so that no two
// Remotes have the same.
func remoteKey(r policy.Remote) string {
	var space [256]byte
	b := append(space[:0], r.Address.String()...)
	part := func(s string) {
		b = strconv.AppendInt(append(b, ' '), int64(len(s)), 10)
		b = append(append(b, ':'), s...)
	}
	part(r.Node)
	part(r.Certificate)
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		part(key)
		part(r.Labels[key])
	}
	b = append(b, " unsaid"...)
	for _, key := range r.Unsaid {
		part(key)
	}
	return string(b)
}

// sentLabels are a workload's labels that other nodes receive: a person's, whichever count on this node. Of a workload
// without any that counts, other nodes receive none.
func sentLabels(w policy.Workload) map[string]string {
	sent := map[string]string{}
	if len(w.Labels) == 0 {
		return sent
	}
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts} {
		for key, value := range labels {
			if policy.IsUserLabel(key) && value != policy.UnusableValue {
				sent[key] = value
			}
		}
	}
	return sent
}

// remoteClasses are the classes of Remotes in the loaded table. The enforcer changes them with the table; the datapath
// reads those that are believed.
type remoteClasses struct {
	mu       sync.RWMutex           // the enforcer's goroutine needs it to write only
	byKey    map[string]remoteClass // by remoteKey
	believed int                    // how many of them
}

type remoteClass struct {
	number   uint32
	believed bool
}

func (c *remoteClasses) of(key string) (class uint32, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	known := c.byKey[key]
	return known.number, known.believed
}

func (c *remoteClasses) len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.believed
}

// take takes over a plan that is loaded.
func (c *remoteClasses) take(p *plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := 0 // of p.remotes, that is not known
	if p.step != nil && c.byKey != nil {
		for _, r := range p.delta.forgotten {
			c.forget(remoteKey(r))
		}
		first = len(p.remotes) - len(p.delta.met)
	} else {
		c.byKey, c.believed = map[string]remoteClass{}, 0
	}
	for i := first; i < len(p.result.Remotes); i++ { // none without a fleet
		r := p.remotes[i]
		c.byKey[remoteKey(r)] = remoteClass{p.result.Remotes[i], !r.Ended}
		if !r.Ended {
			c.believed++
		}
	}
}

// forget removes a class. It needs the lock.
func (c *remoteClasses) forget(key string) {
	if c.byKey[key].believed {
		c.believed--
	}
	delete(c.byKey, key)
}

// sameRemote reports whether the same was proven, and is believed or is not.
func sameRemote(a, b *policy.Remote) bool {
	return a.Address == b.Address && a.Node == b.Node && a.Certificate == b.Certificate && a.Ended == b.Ended &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Unsaid, b.Unsaid)
}

// withoutRemotes returns a list without some.
func withoutRemotes(list, some []policy.Remote) []policy.Remote {
	if len(some) == 0 {
		return list
	}
	gone := map[string]bool{}
	for _, r := range some {
		gone[remoteKey(r)] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(r policy.Remote) bool { return gone[remoteKey(r)] })
}
