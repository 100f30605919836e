package watch

import (
	"path/filepath"
	"strings"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// maxPending is how many single cgroups Changes looks at. Where more changed, a Scan costs little more.
const maxPending = 1000

// pendingEvents say where something changed in the tree since it was last read.
type pendingEvents struct {
	everything bool
	cgroups    map[string]bool
}

// Touch says that something may have changed at one cgroup.
func (c *Cgroups) Touch(cgroup string) {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	if c.pending.cgroups[cgroup] = true; len(c.pending.cgroups) > maxPending {
		c.pending.everything = true
	}
	c.signal()
}

// Wake says that something may have changed anywhere.
func (c *Cgroups) Wake() {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	c.pending.everything = true
	c.signal()
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
	c.pending = pendingEvents{cgroups: map[string]bool{}}
	return h
}

// Changes looks at those cgroups alone of which something was heard since the last Scan or Changes, and removes empty
// ones of thole run: the snapshot is Partial. Where only a Scan can tell, because something else was heard, or one
// cgroup's change may be another's, it returns a Scan's.
func (c *Cgroups) Changes(bindings []policy.Binding) workload.Snapshot {
	if s, ok := c.lookAtPending(); ok {
		return s
	}
	return c.Scan(bindings)
}

// lookAtPending returns a Partial snapshot; ok is false where only a Scan can tell.
func (c *Cgroups) lookAtPending() (s workload.Snapshot, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.takePending()
	if h.everything {
		return s, false
	}
	s.Partial = true
	for cgroup := range h.cgroups {
		if !c.lookAtScope(&s, cgroup) {
			return workload.Snapshot{}, false
		}
	}
	return s, true
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
	run, lives, problem := c.scopes.lookAt(strings.TrimPrefix(cgroup, cgroupfs.TholeSlice+"/"), watch)
	switch {
	case problem || failed:
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
