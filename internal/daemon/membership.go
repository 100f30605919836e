package daemon

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A delta is what differs between what is in the table and what is to be: of workloads, of containers beside them, and
// of what other nodes proved.
type delta struct {
	began, ended []policy.Workload // what became another workload is in both
	renamed      []policy.Workload // of which only what no policy sees is another
	outlived     []uint64          // of those in the table: whose cgroup is gone now, and left a socket

	containers *containers // nil: as they were

	met, forgotten []policy.Remote
	remotesAnew    bool // what is to be said of remotes is more than that

	// takes says that something living may lose an allowance, so that connections must be decided again. It is false
	// only where all that changes is that cgroups begin that had no connections, or that workloads ended and left no
	// socket.
	takes bool
}

func (d *delta) empty() bool { return len(d.outlived) == 0 && !d.concernsMemory() }

// concernsMemory reports whether a memory says something else after it.
func (d *delta) concernsMemory() bool {
	return len(d.began)+len(d.ended)+len(d.renamed)+len(d.met)+len(d.forgotten) > 0 || d.containers != nil ||
		d.remotesAnew
}

// containers are what a table knows of containers beside the workloads (compiler.Input).
type containers struct {
	Unlabelled []policy.Unlabelled `json:"unlabelled,omitempty"`
	Parents    []policy.Cgroup     `json:"parents,omitempty"`
	Bridges    []policy.Bridge     `json:"bridges,omitempty"`
}

// differs compares what runs with what the table knows. found is what is to be said of what runs. Where it is not known
// which workloads that ended left a socket, they stay in the table, and found says why.
func (e *enforcer) differs(set policySet, running workload.Snapshot) (d delta, found []condition.Condition) {
	var died map[uint64]policy.Workload // those that ended, and whose cgroup may be gone
	if running.Partial {
		died, found = e.differsAt(&d, running), e.found
	} else {
		died, found = e.differsInAll(&d, set, running)
	}
	asked, err := e.bury(&d, died, running.Partial)
	if asked {
		found = slices.DeleteFunc(slices.Clone(found), func(c condition.Condition) bool {
			return c.Code == condition.EndedUnknown // of the last time
		})
	}
	if err != nil {
		found = append(found, condition.Condition{
			Code: condition.EndedUnknown, Text: fmt.Sprintf("workloads that ended stay in the table: %v", err),
		})
	}
	e.makeWay(&d, died)
	e.differsInRemotes(&d)
	return d, found
}

// differsAt compares single cgroups.
func (e *enforcer) differsAt(d *delta, running workload.Snapshot) (died map[uint64]policy.Workload) {
	died = map[uint64]policy.Workload{}
	for _, w := range running.Workloads {
		if id, known := e.enforced.named(w.Cgroup.Path); known && id != w.Cgroup.ID {
			if old, bound := e.enforced.of(id); bound {
				died[id] = old
			}
		}
		before, known := e.enforced.of(w.Cgroup.ID)
		e.differsIn(d, before, known, w)
	}
	for _, cgroup := range running.Gone {
		if id, known := e.enforced.named(cgroup); known {
			if w, bound := e.enforced.of(id); bound {
				died[id] = w
			}
		}
	}
	return died
}

// differsInAll compares all that runs.
func (e *enforcer) differsInAll(
	d *delta, set policySet, running workload.Snapshot,
) (died map[uint64]policy.Workload, found []condition.Condition) {
	workloads, unlabelled := running.Workloads, running.Unlabelled
	found = slices.Concat(running.Conditions, doubts(&set.docs, workloads, unlabelled))
	workloads = append(workloads, e.unresolved(set, workloads)...)
	died = maps.Clone(e.enforced.workloads)
	for _, w := range workloads {
		before, known := e.enforced.of(w.Cgroup.ID)
		delete(died, w.Cgroup.ID)
		e.differsIn(d, before, known, w)
	}
	now := containers{Unlabelled: unlabelled, Parents: running.Parents, Bridges: running.Bridges}
	if !reflect.DeepEqual(now, e.around) {
		d.containers = &now
		d.takes = d.takes || e.closes(now)
	}
	return died, found
}

// differsIn compares one workload that runs with what the table knows of its cgroup.
func (e *enforcer) differsIn(d *delta, before policy.Workload, known bool, w policy.Workload) {
	switch {
	case !known:
		d.began = append(d.began, w)
		d.takes = d.takes || !e.beginsAlone(w)
	case !sameIdentity(before, w) || before.Cgroup != w.Cgroup || !reflect.DeepEqual(before.Own, w.Own):
		d.ended, d.began = append(d.ended, before), append(d.began, w)
		d.takes = d.takes || !sameIdentity(before, w) || missing(before.Own, w.Own)
	case before.Name != w.Name || before.Namespace != w.Namespace || before.Kind != w.Kind ||
		before.Position != w.Position:
		d.renamed = append(d.renamed, w)
	}
}

// bury finds out which of the workloads whose cgroup is gone left a socket. Those that did stay in the table. What
// lives is a workload no more. asked is false where there was nothing to find out, or it is too soon to ask again.
func (e *enforcer) bury(d *delta, died map[uint64]policy.Workload, partial bool) (asked bool, failed error) {
	dead := map[uint64]policy.Workload{}
	for id, w := range died {
		lives, err := e.dead.Lives(id)
		switch {
		case err != nil:
			failed = err
			d.disconnect(w)
		case lives && !e.enforced.ended[id]:
			d.ended, d.takes = append(d.ended, w), true // it is unlabelled now
		default:
			dead[id] = w
		}
	}
	if partial && len(dead) == 0 && (e.enforced.gone() == 0 || e.now().Sub(e.buried) < endedPoll) {
		return failed != nil, failed
	}
	for id := range e.enforced.ended {
		dead[id] = e.enforced.workloads[id]
	}
	e.buried = e.now()
	left := maps.Clone(dead)
	if failed == nil {
		failed = bury(e.dead, left, e.isRunning(d, died))
	}
	for id, w := range dead {
		d.takes = d.takes || len(w.Own) > 0 // its addresses may be another's now
		if _, stays := left[id]; !stays {
			d.ended = append(d.ended, w)
		} else if !e.enforced.ended[id] {
			d.outlived = append(d.outlived, id)
			d.disconnect(w)
		}
	}
	return true, failed
}

// disconnect keeps a workload without its addresses, which may be another's now.
func (d *delta) disconnect(w policy.Workload) {
	if len(w.Own) == 0 {
		return
	}
	d.ended, d.takes = append(d.ended, w), true
	w.Own = nil
	d.began = append(d.began, w)
}

// isRunning returns whether a cgroup is that of a workload that runs.
func (e *enforcer) isRunning(d *delta, died map[uint64]policy.Workload) func(id uint64) bool {
	begins := map[uint64]bool{}
	for _, w := range d.began {
		begins[w.Cgroup.ID] = true
	}
	return func(id uint64) bool {
		_, known := e.enforced.of(id)
		_, dead := died[id]
		return begins[id] || known && !dead && !e.enforced.ended[id]
	}
}

// makeWay gives another path to workloads that ended, where a new cgroup has theirs. To the compiler the path is the
// identity; the kernel knows the old one by its id.
func (e *enforcer) makeWay(d *delta, died map[uint64]policy.Workload) {
	stays := func(w policy.Workload) bool { _, is := died[w.Cgroup.ID]; return is } // though it does not run
	taken := map[string]bool{}
	changes := map[uint64]bool{}
	for _, w := range d.ended {
		changes[w.Cgroup.ID] = true
	}
	for _, w := range d.began {
		changes[w.Cgroup.ID] = true
		if !stays(w) {
			taken[w.Cgroup.Path] = true
		}
	}
	for i := range d.began {
		if w := &d.began[i]; stays(*w) && taken[w.Cgroup.Path] {
			w.Cgroup.Path = pathOfEnded(w.Cgroup)
		}
	}
	for path := range taken {
		id, _ := e.enforced.named(path)
		if old, bound := e.enforced.of(id); bound && !changes[id] {
			d.ended = append(d.ended, old)
			old.Cgroup.Path = pathOfEnded(old.Cgroup)
			d.began = append(d.began, old)
		}
	}
}

// pathOfEnded tells the cgroup of a workload that ended from a new one of its path.
func pathOfEnded(c policy.Cgroup) string { return fmt.Sprintf("%s#%d", c.Path, c.ID) }

// differsInRemotes compares what other nodes proved with what the table knows of it: new ones are at the end.
func (e *enforcer) differsInRemotes(d *delta) {
	if len(e.remotes) == len(e.met) && (len(e.met) == 0 || &e.remotes[0] == &e.met[0]) {
		return
	}
	rest := e.remotes
	for _, r := range e.met {
		switch {
		case len(rest) > 0 && sameRemote(&rest[0], &r):
			rest = rest[1:]
		case len(rest) > 0 && remoteKey(rest[0]) == remoteKey(r):
			d.remotesAnew, rest = true, rest[1:]
		default:
			d.forgotten = append(d.forgotten, r)
		}
	}
	d.met = rest
}

// beginsAlone reports whether a new workload had no connections: cgroups of thole run
// are empty until they are in the table, and a container below a parent that the
// table knows was closed.
func (e *enforcer) beginsAlone(w policy.Workload) bool {
	if w.Kind == policy.KindRun {
		return true
	}
	_, free := e.enforced.free[w.Cgroup.ID]
	return !free && slices.ContainsFunc(e.around.Parents, func(p policy.Cgroup) bool {
		return p.Path == path.Dir(w.Cgroup.Path)
	})
}

// closes reports whether containers that were free may be closed now, whatever they
// are: below another parent, on another bridge, or no more known to be unlabelled.
func (e *enforcer) closes(now containers) bool {
	if missing(others(now.Parents), e.around.Parents) || missing(now.Bridges, e.around.Bridges) {
		return true
	}
	free := map[uint64]policy.Unlabelled{}
	for _, u := range now.Unlabelled {
		free[u.Cgroup.ID] = u
	}
	for _, before := range e.around.Unlabelled {
		u, ok := free[before.Cgroup.ID]
		if ok && !missing(before.Own, u.Own) {
			continue
		}
		if len(before.Own) > 0 {
			return true // its addresses may be another's now
		}
		if lives, err := e.dead.Lives(before.Cgroup.ID); err != nil || lives {
			return true
		}
	}
	return false
}

// others are the parents but that of thole run's scopes, which is empty when it is made.
func others(parents []policy.Cgroup) []policy.Cgroup {
	return slices.DeleteFunc(slices.Clone(parents), func(p policy.Cgroup) bool {
		return p.Path == cgroupfs.TholeSlice
	})
}

// missing reports whether something of one list is not in the other.
func missing[T any](of, in []T) bool {
	return slices.ContainsFunc(of, func(a T) bool {
		return !slices.ContainsFunc(in, func(b T) bool { return reflect.DeepEqual(a, b) })
	})
}

// sameIdentity reports whether no policy can tell two states of a cgroup apart.
func sameIdentity(a, b policy.Workload) bool {
	return maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Facts, b.Facts) && maps.Equal(a.Doubtful, b.Doubtful) &&
		maps.Equal(a.DoubtfulFacts, b.DoubtfulFacts) && a.Named == b.Named
}
