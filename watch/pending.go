package watch

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// maxPending is how many single cgroups and containers may wait for a look at them alone. If more wait, the next look
// is a Scan, which costs little more than so many single looks.
const maxPending = 1000

// pendingEvents say where something changed in the tree since it was last read.
type pendingEvents struct {
	everything bool            // then containers is empty
	dropped    bool            // with everything: cgroups of thole run are missing here, because they were too many
	cgroups    map[string]bool // of thole run
	containers map[string]bool // by id
}

// Touch says that something may have changed at one cgroup of thole run.
func (c *Cgroups) Touch(cgroup string) {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	c.pending.add(&c.pending.cgroups, cgroup)
	c.signal()
}

// touchContainers says that something may have changed at single containers.
func (c *Cgroups) touchContainers(ids ...string) {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	for _, id := range ids {
		c.pending.add(&c.pending.containers, id)
	}
	c.signal()
}

// Wake says that something may have changed anywhere.
func (c *Cgroups) Wake() {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	c.pending.everything, c.pending.containers = true, nil
	c.signal()
}

// allPending reports whether a look at all cgroups is to come.
func (c *Cgroups) allPending() bool {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	return c.pending.everything
}

// add adds a name to one of the sets. Where too many wait, everything does. Cgroups of thole run are named also if
// everything waits: see Runs.
func (p *pendingEvents) add(to *map[string]bool, name string) {
	switch {
	case p.everything && (p.dropped || to != &p.cgroups), (*to)[name]:
	case len(p.cgroups)+len(p.containers) >= maxPending:
		*p = pendingEvents{everything: true, dropped: true}
	default:
		if *to == nil {
			*to = map[string]bool{}
		}
		(*to)[name] = true
	}
}

// signal makes Changed receive.
func (c *Cgroups) signal() {
	select {
	case c.changed <- struct{}{}:
	default: // one wake-up is waiting already
	}
}

// takePending returns the pending events and removes them: the scan that follows sees what they are about.
func (c *Cgroups) takePending() pendingEvents {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	h := c.pending
	c.pending = pendingEvents{}
	return h
}

// takeRuns is takePending for the cgroups of thole run alone. ok is false if not all are named.
func (c *Cgroups) takeRuns() (cgroups map[string]bool, ok bool) {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	if c.pending.dropped {
		return nil, false
	}
	cgroups, c.pending.cgroups = c.pending.cgroups, nil
	if c.pending.everything {
		c.signal() // the rest still waits
	}
	return cgroups, true
}

// Runs is Changes for a caller who waits for a cgroup of thole run that was made: if all cgroups are to be looked at,
// it looks at those of thole run alone of which there was an event, and leaves the rest to the next Changes. So nobody
// waits for the looks that other users cause (patterns).
func (c *Cgroups) Runs(bindings []policy.Binding) workload.Snapshot {
	if !c.allPending() {
		return c.Changes(bindings)
	}
	if s, ok := c.lookAtRuns(); ok {
		return s
	}
	return c.Scan(bindings)
}

// lookAtRuns returns a Partial snapshot; ok is false where only a Scan can tell.
func (c *Cgroups) lookAtRuns() (s workload.Snapshot, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cgroups, ok := c.takeRuns()
	if !ok {
		return s, false
	}
	s.Partial = true
	for cgroup := range cgroups {
		if !c.lookAtScope(&s, cgroup) {
			return workload.Snapshot{}, false
		}
	}
	sortByPath(&s)
	return s, true
}

// Changes looks at those cgroups and containers alone of which an event was received since the last Scan or Changes,
// and removes empty cgroups of thole run: the snapshot is Partial. If only a Scan can tell what changed, Changes
// returns the snapshot of a Scan. That is so
//
//   - for the first look, and for each that follows a Wake: events were lost, resyncInterval is over, a cgroup came or
//     went that is no container's, or the engine's connection, places or bridges changed;
//   - if more than maxPending cgroups and containers wait;
//   - if the parent of thole run's cgroups is another one, or is read for a binding or for containers, too; if a cgroup
//     of thole run has a problem, or cannot be watched, or if its command was moved out of it;
//   - if a binding names the cgroup of a container, or one in it: the binding's workload changes with it;
//   - if two bindings name one container, or did at the last Scan;
//   - if the engine cannot tell: see docker's look.
func (c *Cgroups) Changes(bindings []policy.Binding) workload.Snapshot {
	if s, ok := c.lookAtPending(bindings); ok {
		return s
	}
	return c.Scan(bindings)
}

// lookAtPending returns a Partial snapshot; ok is false where only a Scan can tell.
func (c *Cgroups) lookAtPending(bindings []policy.Binding) (s workload.Snapshot, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pending := c.takePending()
	if pending.everything {
		return s, false
	}
	s.Partial = true
	for cgroup := range pending.cgroups {
		if !c.lookAtScope(&s, cgroup) {
			return workload.Snapshot{}, false
		}
	}
	if len(pending.containers) > 0 && !c.lookAtContainers(&s, slices.Sorted(maps.Keys(pending.containers)), bindings) {
		return workload.Snapshot{}, false
	}
	sortByPath(&s)
	return s, true
}

// lookAtContainers looks at single containers. It needs the lock.
func (c *Cgroups) lookAtContainers(s *workload.Snapshot, ids []string, bindings []policy.Binding) bool {
	found, ok := c.engine.Find(ids, func(string) {}) // what is watched already suffices
	if !ok || c.overlap || len(bindContainers(bindings, &found)) > 0 {
		return false
	}
	cgroups := slices.Clone(found.Gone)
	for i := range found.Workloads {
		cgroups = append(cgroups, found.Workloads[i].Cgroup.Path)
	}
	for i := range found.Unlabelled {
		cgroups = append(cgroups, found.Unlabelled[i].Cgroup.Path)
	}
	for _, cgroup := range cgroups {
		if slices.ContainsFunc(bindings, func(b policy.Binding) bool { return dependsOn(b, cgroup) }) {
			return false
		}
	}
	s.Workloads = append(s.Workloads, found.Workloads...)
	s.Unlabelled, s.Gone = found.Unlabelled, append(s.Gone, found.Gone...)
	return true
}

// lookAtScope looks at one cgroup of thole run. It needs the lock.
func (c *Cgroups) lookAtScope(s *workload.Snapshot, cgroup string) bool {
	if id, err := c.root.ID(cgroupfs.TholeSlice); err != nil || id != c.slice || c.bound {
		return false
	}
	failed := false
	watch := func(cgroup string) {
		if err := c.follow(cgroup, map[string]bool{}); err != nil {
			failed = true
		}
	}
	run, lives, tell := c.scopes.lookAt(strings.TrimPrefix(cgroup, cgroupfs.TholeSlice+"/"), watch)
	switch {
	case tell || failed:
		return false
	case lives:
		s.Workloads = append(s.Workloads, run.workload())
	default:
		s.Gone = append(s.Gone, cgroup)
		if path := c.root.Path(cgroup + "/" + cgroupfs.EventsFile); c.watched[path] != 0 {
			c.drop(path)
		}
	}
	return true
}

// scopeOf returns the cgroup of thole run that an event is about.
func (c *Cgroups) scopeOf(path string) (cgroup string, ok bool) {
	path = strings.TrimSuffix(path, "/"+cgroupfs.EventsFile)
	name, ok := strings.CutPrefix(path, c.root.Path(cgroupfs.TholeSlice)+"/")
	return cgroupfs.TholeSlice + "/" + name, ok && filepath.Base(name) == name
}
