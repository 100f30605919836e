package enforce

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// An ending is what the enforcer knows of workloads that ended: their cgroup is gone. A socket keeps the labels of the
// cgroup in which it was made, whichever process has it now, and whether or not the kernel lists it: a socket that is
// neither bound nor connected is in no list. So a workload that ended stays in the table until the kernel proves that
// nothing holds its cgroup. Where too many wait for that, the oldest become unknown: packets of their sockets are
// discarded.
type ending struct {
	checked time.Time       // when it was last looked for a proof
	wait    time.Duration   // until the next look
	before  uint64          // that look is about the workloads that ended before the last one: so many
	unknown []policy.Cgroup // in the table, the oldest first
	dropped int             // how many unknown ones left the table without a proof
}

// conditions say where a socket may have become unlabelled.
func (g *ending) conditions() []condition.Condition {
	if g.dropped == 0 {
		return nil
	}
	return []condition.Condition{{Code: condition.EndedDropped, Text: fmt.Sprintf(
		"%d cgroups of workloads that ended are not in the table any more, although the kernel still holds removed "+
			"cgroups: more than %d of them are unknown. A socket that outlived one of the %[1]d is unlabelled. "+
			"Have the kernel release what only its caches hold (`sync; sysctl vm.drop_caches=3`), "+
			"or restart the machine",
		g.dropped, maxUnknown)}}
}

// compareEnded finds out which workloads ended, and of which of those that ended before nothing is left. A cgroup that
// still lives is no workload any more. checked is false where it was not looked for a proof, and nothing failed.
func (e *Enforcer) compareEnded(d *delta, died map[uint64]policy.Workload, partial bool) (checked bool, failed error) {
	for id, w := range died {
		if e.loaded.workloads.ended[id] {
			continue
		}
		lives, err := e.cgroups.Lives(id)
		switch {
		case err != nil:
			failed = err
			d.disconnect(w)
		case lives:
			d.ended, d.takes = append(d.ended, w), true // it is unlabelled now
		default:
			d.outlived = append(d.outlived, id)
			d.disconnect(w)
		}
	}
	slices.Sort(d.outlived) // the older first
	waiting := e.loaded.workloads.endedCount()
	if e.now().Sub(e.ending.checked) >= e.ending.wait && waiting+len(e.ending.unknown) > 0 {
		checked = true
		released, err := e.release(d, partial)
		if waiting -= released; err != nil {
			failed = err
		}
		e.ending.looked(e.now(), e.loaded.workloads.ends, released)
	}
	if len(d.outlived) > 0 {
		e.ending.wait = endedFirst
	}
	e.limitEnded(d, waiting+len(d.outlived))
	e.limitUnknown(d)
	return checked || failed != nil, failed
}

// looked notes a look for a proof, at which so many had ended.
func (g *ending) looked(now time.Time, ends uint64, released int) {
	if released == 0 && g.before == ends { // nothing is new
		g.wait = min(max(2*g.wait, endedFirst), endedPoll)
	}
	g.checked, g.before = now, ends
}

// release removes from the table what ended before the last look and is held by nothing now. What ended later can wait:
// the kernel counts a removed cgroup a moment after the cgroup is gone. A change of the table has to stay short,
// because a thole run may wait for it; so some of them wait for the next look, too.
func (e *Enforcer) release(d *delta, partial bool) (released int, failed error) {
	p := cgroupfs.Proof{Dying: e.cgroups.Dying}
	for id := range e.loaded.workloads.ended {
		if e.loaded.workloads.order[id] > e.ending.before {
			continue
		}
		w := e.loaded.workloads.workloads[id]
		free, err := p.Frees(w.Cgroup.Path, w.Cgroup.ID)
		if err != nil {
			return released, err
		}
		if !free {
			continue
		}
		d.ended = append(d.ended, w)
		if released++; released == releasedAtOnce {
			return released, nil
		}
	}
	if partial { // those that are unknown are many, and nobody waits for them
		return released, nil
	}
	for _, c := range e.ending.unknown {
		free, err := p.Frees(c.Path, c.ID)
		if err != nil {
			return released, err
		}
		if free && len(d.opened) < openedAtOnce {
			d.opened = append(d.opened, c.ID)
		}
	}
	held, err := p.HoldsAny()
	if err == nil && !held {
		d.dropped = -e.ending.dropped
	}
	return released, err
}

// limitEnded makes the oldest workloads that ended unknown where there are too many, of one user or in all.
func (e *Enforcer) limitEnded(d *delta, waiting int) {
	leaves := map[uint64]bool{}
	for _, w := range d.ended {
		leaves[w.Cgroup.ID] = true
	}
	r := e.loaded.workloads
	var all []uint64
	ofUser := map[string][]uint64{} // runs, by the uid of who started them; not root's
	for id := range r.ended {
		if leaves[id] {
			continue
		}
		all = append(all, id)
		w := r.workloads[id]
		if uid := w.Facts[workload.FactUID]; w.Kind == policy.KindRun && uid != "0" {
			ofUser[uid] = append(ofUser[uid], id)
		}
	}
	if waiting > maxEnded {
		e.makeUnknown(d, all, waiting-maxEnded+lostAtOnce)
		return
	}
	for _, list := range ofUser {
		if len(list) > maxEndedOfUser {
			e.makeUnknown(d, list, len(list)-maxEndedOfUser/2)
		}
	}
}

// makeUnknown makes so many of a list unknown: first those of which the kernel lists no socket, the older first.
func (e *Enforcer) makeUnknown(d *delta, list []uint64, n int) {
	r := e.loaded.workloads
	listed, _ := e.cgroups.Sockets() // if it fails, the order alone is another
	rank := func(id uint64) int {
		if listed[id] {
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b uint64) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(r.order[a], r.order[b]))
	})
	for _, id := range list[:min(len(list), n)] {
		w := r.workloads[id]
		d.ended, d.takes = append(d.ended, w), true
		if !e.isBelowRuns(w.Cgroup) {
			d.closed = append(d.closed, w.Cgroup)
		}
	}
}

// isBelowRuns reports whether a cgroup that is gone was one of thole run's, below the slice that is there now. What is
// below it and not in the table is discarded in any case. The kernel gives ids to cgroups in ascending order, so an
// older cgroup of that name is the one that was above it.
func (e *Enforcer) isBelowRuns(c policy.Cgroup) bool {
	return path.Dir(c.Path) == cgroupfs.TholeSlice &&
		slices.ContainsFunc(e.loaded.containers.Parents, func(p policy.Cgroup) bool {
			return p.Path == cgroupfs.TholeSlice && p.ID < c.ID
		})
}

// closeParents has parents of containers stay closed that are gone: sockets may have outlived what was below them.
func (e *Enforcer) closeParents(d *delta, now []policy.Cgroup) {
	for _, p := range e.loaded.containers.Parents {
		if is := func(c policy.Cgroup) bool { return c.ID == p.ID }; slices.ContainsFunc(now, is) ||
			slices.ContainsFunc(e.ending.unknown, is) {
			continue
		}
		if lives, err := e.cgroups.Lives(p.ID); err != nil || !lives {
			d.closed = append(d.closed, p)
		}
	}
}

// limitUnknown drops the oldest unknown cgroups where there are too many.
func (e *Enforcer) limitUnknown(d *delta) {
	over := len(e.ending.unknown) - len(d.opened) + len(d.closed) - maxUnknown
	if over <= 0 {
		return
	}
	opened := map[uint64]bool{}
	for _, id := range d.opened {
		opened[id] = true
	}
	for _, c := range e.ending.unknown {
		if over == 0 {
			return
		}
		if !opened[c.ID] {
			d.opened = append(d.opened, c.ID)
			d.dropped++
			over--
		}
	}
}

// unknownAfter returns what the unknown cgroups become by a delta.
func (e *Enforcer) unknownAfter(d *delta) []policy.Cgroup {
	if len(d.closed)+len(d.opened) == 0 {
		return e.ending.unknown
	}
	opened := map[uint64]bool{}
	for _, id := range d.opened {
		opened[id] = true
	}
	after := make([]policy.Cgroup, 0, len(e.ending.unknown)+len(d.closed))
	for _, c := range slices.Concat(e.ending.unknown, d.closed) {
		if !opened[c.ID] {
			after = append(after, c)
		}
	}
	return after
}

// adoptEnding makes a plan what is known of workloads that ended.
func (e *Enforcer) adoptEnding(p *plan) {
	e.ending.unknown = p.unknown
	e.ending.dropped += p.delta.dropped
	if p.delta.dropped > 0 {
		e.log.Warn("unknown cgroups of workloads that ended left the table: sockets that outlived them are unlabelled",
			"cgroups", p.delta.dropped)
	}
}

// closedCgroups returns the cgroups whose sockets' packets are discarded, unless the table knows a deeper cgroup of the
// socket: the parents of containers, and what is unknown.
func (p *plan) closedCgroups() []policy.Cgroup {
	if len(p.unknown) == 0 {
		return p.containers.Parents
	}
	unknown := make(map[uint64]bool, len(p.unknown))
	for _, c := range p.unknown {
		unknown[c.ID] = true
	}
	is := func(c policy.Cgroup) bool { return unknown[c.ID] }
	return append(slices.DeleteFunc(slices.Clone(p.containers.Parents), is), p.unknown...)
}
