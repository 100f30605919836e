package enforce

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A delta is what differs between what is in the table and what is to be: of workloads, of containers beside them, and
// of what other nodes proved.
type delta struct {
	began, ended []policy.Workload // what became another workload is in both
	renamed      []policy.Workload // of which only what no policy sees is another
	outlived     []uint64          // of those in the table: whose cgroup is gone now

	// what is unknown from now on, and what of it leaves the table; how many more of these left it without a proof
	closed  []policy.Cgroup
	opened  []uint64
	dropped int

	containers *state.Containers // nil: as they were

	learned, forgotten []policy.Remote
	remotesAnew        bool // what is to be said of remotes is more than that

	// takes says that something living may lose an allowance, so that connections must be decided again. It is false
	// only where all that changes is that cgroups begin that had no connections, or that workloads ended and nothing is
	// left of them.
	takes bool
}

func (d *delta) empty() bool { return len(d.outlived) == 0 && !d.concernsState() }

// concernsState reports whether the stored state of the table is another one after it.
func (d *delta) concernsState() bool {
	return len(d.began)+len(d.ended)+len(d.renamed)+len(d.learned)+len(d.forgotten) > 0 || d.containers != nil ||
		d.remotesAnew || len(d.closed)+len(d.opened) > 0 || d.dropped != 0
}

// deltaTo compares what runs with what the table knows. found is what is to be said of what runs. Where it cannot be
// found out whether something is left of workloads that ended, they stay in the table, and found says why.
func (e *Enforcer) deltaTo(set policyset.Set, running workload.Snapshot) (d delta, found []condition.Condition) {
	var died map[uint64]policy.Workload // those that do not run, and whose cgroup may be gone
	if running.Partial {
		died, found = e.compareSome(&d, set, running)
	} else {
		died, found = e.compareAll(&d, set, running)
	}
	checked, err := e.compareEnded(&d, died, running.Partial)
	if checked {
		found = slices.DeleteFunc(slices.Clone(found), func(c condition.Condition) bool {
			return c.Code == condition.EndedUnknown // of the last time
		})
	}
	if err != nil {
		found = append(found, condition.Condition{
			Code: condition.EndedUnknown, Text: fmt.Sprintf("workloads that ended stay in the table: %v", err),
		})
	}
	e.freePaths(&d, died)
	e.compareRemotes(&d)
	return d, found
}

// compareSome compares single cgroups.
func (e *Enforcer) compareSome(
	d *delta, set policyset.Set, running workload.Snapshot,
) (died map[uint64]policy.Workload, found []condition.Condition) {
	workloads, unlabelled := running.Workloads, running.Unlabelled
	before := e.knownAt(cgroupsOf(running))
	died = maps.Clone(before.workloads)
	for _, w := range workloads {
		delete(died, w.Cgroup.ID)
		known, is := e.loaded.workloads.of(w.Cgroup.ID)
		e.compareWorkload(d, known, is, w)
	}
	if len(before.unlabelled)+len(unlabelled) > 0 && !reflect.DeepEqual(before.unlabelled, unlabelled) {
		now := e.loaded.containers
		now.Unlabelled = replaced(now.Unlabelled, before.unlabelled, unlabelled)
		d.containers = &now
		d.takes = d.takes || e.closesContainers(now)
	}
	return died, e.foundAfter(before, doubts(set, workloads, unlabelled), set)
}

// known is what the table knows of some cgroups.
type known struct {
	workloads  map[uint64]policy.Workload // by the cgroup's id; also those that ended
	unlabelled []policy.Unlabelled        // by path
}

// knownAt returns what the table knows of cgroups, which are given by their paths in ascending order.
func (e *Enforcer) knownAt(cgroups []string) known {
	k := known{workloads: map[uint64]policy.Workload{}}
	for _, cgroup := range cgroups {
		id, named := e.loaded.workloads.named(cgroup)
		if w, bound := e.loaded.workloads.of(id); named && bound {
			k.workloads[id] = w
		}
		if at, is := slices.BinarySearchFunc(e.loaded.containers.Unlabelled, cgroup, comparePath); is {
			k.unlabelled = append(k.unlabelled, e.loaded.containers.Unlabelled[at])
		}
	}
	return k
}

// running returns the workloads that have not ended.
func (e *Enforcer) running(k known) (list []policy.Workload) {
	for id, w := range k.workloads {
		if !e.loaded.workloads.ended[id] {
			list = append(list, w)
		}
	}
	return list
}

func comparePath(u policy.Unlabelled, path string) int { return strings.Compare(u.Cgroup.Path, path) }

// cgroupsOf returns the paths of the cgroups that a Partial snapshot is about, in ascending order.
func cgroupsOf(s workload.Snapshot) []string {
	paths := slices.Clone(s.Gone)
	for i := range s.Workloads {
		paths = append(paths, s.Workloads[i].Cgroup.Path)
	}
	for i := range s.Unlabelled {
		paths = append(paths, s.Unlabelled[i].Cgroup.Path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// replaced returns a list by path, without some of it and with others.
func replaced(list, without, with []policy.Unlabelled) []policy.Unlabelled {
	list = slices.Clone(list)
	for _, u := range without {
		if at, is := slices.BinarySearchFunc(list, u.Cgroup.Path, comparePath); is {
			list = slices.Delete(list, at, at+1)
		}
	}
	for _, u := range with {
		at, _ := slices.BinarySearchFunc(list, u.Cgroup.Path, comparePath)
		list = slices.Insert(list, at, u)
	}
	if len(list) == 0 {
		return nil // as a snapshot has it
	}
	return list
}

// foundAfter returns what is to be said after a look at single cgroups: instead of the doubts about what the table knew
// of them, the doubts about what is there now.
func (e *Enforcer) foundAfter(before known, now []condition.Condition, set policyset.Set) []condition.Condition {
	obsolete := doubts(set, e.running(before), before.unlabelled)
	if len(obsolete)+len(now) == 0 {
		return e.conditions
	}
	found := slices.Clone(e.conditions)
	for _, c := range obsolete {
		if at := slices.Index(found, c); at >= 0 {
			found = slices.Delete(found, at, at+1)
		}
	}
	return append(found, now...)
}

// compareAll compares all that runs.
func (e *Enforcer) compareAll(
	d *delta, set policyset.Set, running workload.Snapshot,
) (died map[uint64]policy.Workload, found []condition.Condition) {
	workloads, unlabelled := running.Workloads, running.Unlabelled
	found = slices.Concat(running.Conditions, doubts(set, workloads, unlabelled))
	workloads = append(workloads, e.unresolved(set, workloads)...)
	died = maps.Clone(e.loaded.workloads.workloads)
	for _, w := range workloads {
		before, known := e.loaded.workloads.of(w.Cgroup.ID)
		delete(died, w.Cgroup.ID)
		e.compareWorkload(d, before, known, w)
	}
	now := state.Containers{Unlabelled: unlabelled, Parents: running.Parents, Bridges: running.Bridges}
	if !reflect.DeepEqual(now, e.loaded.containers) {
		d.containers = &now
		d.takes = d.takes || e.closesContainers(now)
		e.closeParents(d, now.Parents)
	}
	return died, found
}

// compareWorkload compares one workload that runs with what the table knows of its cgroup.
func (e *Enforcer) compareWorkload(d *delta, before policy.Workload, known bool, w policy.Workload) {
	switch {
	case !known:
		d.began = append(d.began, w)
		d.takes = d.takes || !e.hadNoConnections(w) || w.Sharing.Namespace != ""
	case !sameIdentity(before, w) || before.Cgroup != w.Cgroup || !reflect.DeepEqual(before.Own, w.Own) ||
		before.Sharing != w.Sharing:
		d.ended, d.began = append(d.ended, before), append(d.began, w)
		d.takes = d.takes || !sameIdentity(before, w) || missing(before.Own, w.Own) || before.Sharing != w.Sharing
	case before.Name != w.Name || before.Namespace != w.Namespace || before.Kind != w.Kind ||
		before.Position != w.Position || !reflect.DeepEqual(before.Given, w.Given):
		d.renamed = append(d.renamed, w)
	}
}

// disconnect keeps a workload without its addresses, which may be another's now.
func (d *delta) disconnect(w policy.Workload) {
	if len(w.Own) == 0 && w.Sharing.Namespace == "" {
		return
	}
	d.ended, d.takes = append(d.ended, w), true
	w.Own, w.Sharing = nil, policy.Sharing{}
	d.began = append(d.began, w)
}

// freePaths gives another path to workloads that ended, where a new cgroup has theirs. To the compiler the path is the
// identity; the kernel knows the old one by its id.
func (e *Enforcer) freePaths(d *delta, died map[uint64]policy.Workload) {
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
		id, _ := e.loaded.workloads.named(path)
		if old, bound := e.loaded.workloads.of(id); bound && !changes[id] {
			d.ended = append(d.ended, old)
			old.Cgroup.Path = pathOfEnded(old.Cgroup)
			d.began = append(d.began, old)
		}
	}
}

// pathOfEnded tells the cgroup of a workload that ended from a new one of its path.
func pathOfEnded(c policy.Cgroup) string { return fmt.Sprintf("%s#%d", c.Path, c.ID) }

// compareRemotes compares what other nodes proved with what the table knows of it: new ones are at the end.
func (e *Enforcer) compareRemotes(d *delta) {
	if e.remotes.Changed() {
		d.learned, d.forgotten, d.remotesAnew = e.remotes.Difference()
	}
}

// hadNoConnections reports whether a new workload had no connections: cgroups of thole run
// are empty until they are in the table, and a container was closed whose cgroup or parent the table closes.
func (e *Enforcer) hadNoConnections(w policy.Workload) bool {
	if w.Kind == policy.KindRun {
		return true
	}
	_, free := e.loaded.workloads.unlabelled[w.Cgroup.ID]
	return !free && slices.ContainsFunc(e.loaded.containers.Parents, func(p policy.Cgroup) bool {
		return p.Path == path.Dir(w.Cgroup.Path) || p.ID == w.Cgroup.ID
	})
}

// closesContainers reports whether containers that were free may be closed now, whatever they
// are: below another parent, on another bridge, or no more known to be unlabelled.
func (e *Enforcer) closesContainers(now state.Containers) bool {
	if missing(others(now.Parents), e.loaded.containers.Parents) || missing(now.Bridges, e.loaded.containers.Bridges) {
		return true
	}
	free, had := map[uint64]policy.Unlabelled{}, map[uint64]policy.Sharing{}
	for _, before := range e.loaded.containers.Unlabelled {
		had[before.Cgroup.ID] = before.Sharing
	}
	for _, u := range now.Unlabelled {
		free[u.Cgroup.ID] = u
		if u.Sharing != had[u.Cgroup.ID] {
			return true // others share its network namespace, or do no more
		}
	}
	for _, before := range e.loaded.containers.Unlabelled {
		u, ok := free[before.Cgroup.ID]
		if ok && !missing(before.Own, u.Own) {
			continue
		}
		if len(before.Own) > 0 || before.Sharing.Namespace != "" {
			return true // its addresses may be another's now
		}
		if lives, err := e.cgroups.Lives(before.Cgroup.ID); err != nil || lives {
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
