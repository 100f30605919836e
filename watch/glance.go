package watch

import (
	"path/filepath"
	"strings"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
)

// A Glance is what is at single cgroups now, of which something was heard.
type Glance struct {
	Workloads []policy.Workload
	Gone      []string // cgroups that are no workload, or not any more
}

// maxHeard is how many cgroups a Glance looks at. Where more changed, a Scan costs little more.
const maxHeard = 1000

// heard is what was heard of the tree since it was last looked at.
type heard struct {
	everything bool
	cgroups    map[string]bool
}

// Touch says that something may have changed at one cgroup.
func (c *Cgroups) Touch(cgroup string) {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	if c.heard.cgroups[cgroup] = true; len(c.heard.cgroups) > maxHeard {
		c.heard.everything = true
	}
	c.signal()
}

// Wake says that something may have changed anywhere.
func (c *Cgroups) Wake() {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	c.heard.everything = true
	c.signal()
}

// signal makes Changed receive.
func (c *Cgroups) signal() {
	select {
	case c.changed <- struct{}{}:
	default: // one wake-up is waiting already
	}
}

// listen returns what was heard, and forgets it: who looks now sees it.
func (c *Cgroups) listen() heard {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	h := c.heard
	c.heard = heard{cgroups: map[string]bool{}}
	return h
}

// Glance looks at those cgroups alone of which something was heard since the last Scan
// or Glance, and removes empty ones of thole run. What it says completes that Scan. ok is
// false where only a Scan can tell: something else was heard, or one cgroup's change may
// be another's.
func (c *Cgroups) Glance() (g Glance, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.listen()
	if h.everything {
		return g, false
	}
	for cgroup := range h.cgroups {
		if !c.glanceScope(&g, cgroup) {
			return Glance{}, false
		}
	}
	return g, true
}

// glanceScope looks at one cgroup of thole run. It needs the lock.
func (c *Cgroups) glanceScope(g *Glance, cgroup string) bool {
	if id, err := c.root.ID(cgroupfs.TholeSlice); err != nil || id != c.slice || c.bound {
		return false
	}
	failed := false
	watch := func(cgroup string) {
		if err := c.follow(cgroup, map[string]bool{}); err != nil {
			failed = true
		}
	}
	run, lives, problem := c.scopes.glance(strings.TrimPrefix(cgroup, cgroupfs.TholeSlice+"/"), watch)
	switch {
	case problem || failed:
		return false
	case lives:
		g.Workloads = append(g.Workloads, run.workload())
	default:
		g.Gone = append(g.Gone, cgroup)
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
