package watch

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// resyncInterval bounds for how long a change can go unnoticed that inotify did
// not tell, for example because the system's limit of watches is reached.
const resyncInterval = time.Minute

// Cgroups watches the cgroup tree for the workloads that run: those of thole run,
// those that Workload documents name, and the containers of an engine.
type Cgroups struct {
	root    cgroupfs.Root
	scopes  *Scopes
	engine  Engine        // nil: no containers are looked for
	changed chan struct{} // size 1: something changed since the last Scan began

	patterns *patterns

	pendingMu sync.Mutex // guards pending
	pending   pendingEvents

	mu      sync.Mutex // guards what follows and makes scans one after the other
	inotify *fsnotify.Watcher
	watched map[string]uint64 // path → id of what is watched
	slice   uint64            // the id of the parent of thole run's, at the last Scan
	bound   bool              // something else is looked for below it
	units   knownUnits
	overlap bool // at the last Scan, two bindings named one container
}

// NewCgroups watches below root. It must be run (Run) or closed (Close); the
// engine may be nil, and is run by the caller if it has to be.
func NewCgroups(root cgroupfs.Root, scopes *Scopes, engine Engine) (*Cgroups, error) {
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching the cgroup tree: %v: see `sysctl fs.inotify.max_user_instances`", err)
	}
	c := &Cgroups{
		root:    root,
		scopes:  scopes,
		engine:  engine,
		changed: make(chan struct{}, 1),
		inotify: inotify,
		watched: map[string]uint64{},
		pending: pendingEvents{everything: true},
	}
	scopes.touch = c.Touch
	c.patterns = newPatterns(root, scopes.ledger, c.Wake)
	if engine != nil {
		engine.OnChange(c.engineChanged)
	}
	return c, nil
}

// Changed receives when a new Scan is worth while. Wake-ups are coalesced.
func (c *Cgroups) Changed() <-chan struct{} { return c.changed }

// Scan looks at the tree, removes empty cgroups of thole run, and returns what
// runs. From then on, Changed tells what happens to these bindings.
func (c *Cgroups) Scan(bindings []policy.Binding) workload.Snapshot { return c.scan(bindings, true) }

// Look is Scan without removing anything.
func (c *Cgroups) Look(bindings []policy.Binding) workload.Snapshot { return c.scan(bindings, false) }

func (c *Cgroups) scan(bindings []policy.Binding, sweep bool) workload.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takePending()
	c.slice, c.bound = 0, false
	seen := map[string]bool{}
	var unwatched error
	watch := func(cgroup string) {
		if err := c.follow(cgroup, seen); err != nil {
			unwatched = err
		}
	}
	runs, conditions := c.scopes.list(sweep, watch)
	var workloads []policy.Workload
	for _, run := range runs {
		workloads = append(workloads, run.workload())
	}
	watchOther := func(cgroup string) {
		c.bound = c.bound || cgroup == cgroupfs.TholeSlice || strings.HasPrefix(cgroup, cgroupfs.TholeSlice+"/")
		watch(cgroup)
	}
	c.units.refresh(bindings, time.Now())
	patterns := c.patterns.look()
	resolver := resolver{root: c.root, lookupUser: user.Lookup, watch: watchOther, patterns: patterns,
		known: &c.units, bindings: bindings, ran: map[string]bool{}, withoutEngine: c.engine == nil}
	for _, b := range bindings {
		found, err := resolver.resolve(b)
		if err != nil {
			conditions = append(conditions, condition.Condition{
				Code: condition.BindingUnresolved, Where: b.Position.String(), Text: err.Error(),
			})
		}
		workloads = append(workloads, found...)
	}
	conditions = append(conditions, c.units.conditions(bindings, resolver.ran)...)
	var containers workload.Snapshot
	if c.engine != nil {
		containers, _ = c.engine.Find(nil, watchOther)
		overlaps := bindContainers(bindings, &containers)
		c.overlap = len(overlaps) > 0
		conditions = append(conditions, overlaps...)
		workloads = append(workloads, containers.Workloads...)
		conditions = append(conditions, containers.Conditions...)
	}
	c.forget(seen)
	if unwatched != nil {
		conditions = append(conditions, condition.Condition{Code: condition.CgroupsUnwatched, Text: fmt.Sprintf(
			"some cgroups cannot be watched; Thole reads them every %v only: %v: "+
				"see `sysctl fs.inotify.max_user_watches`", resyncInterval, unwatched)})
	}
	snapshot := settle(workloads)
	containers.Parents = withParents(containers.Parents, patterns.end())
	addContainers(&snapshot, containers)
	snapshot.Unasked = containers.Unasked
	if id, err := c.root.ID(cgroupfs.TholeSlice); err == nil {
		// A scope is in the table before its first process is in it. What is below the
		// slice and not in the table is a socket that outlived its scope, or no scope of ours.
		snapshot.Parents = append(snapshot.Parents, policy.Cgroup{Path: cgroupfs.TholeSlice, ID: id})
		c.slice = id
	}
	snapshot.Conditions = slices.Concat(conditions, patterns.conditions, snapshot.Conditions)
	return snapshot
}

// follow watches a directory, or a file in it, and remembers that this scan needs
// it. inotify does not tell when a cgroup that it watches is removed, and keeps the
// watch: so it is known by the id whether there is a new one of the same name.
func (c *Cgroups) follow(cgroup string, seen map[string]bool) error {
	path := c.root.Path(cgroup)
	if seen[path] {
		return nil
	}
	id, err := c.root.ID(cgroup)
	if cgroupfs.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	seen[path] = true
	switch was, ok := c.watched[path]; {
	case ok && was == id:
		return nil
	case ok:
		c.drop(path)
	}
	err = c.inotify.Add(path)
	switch {
	case cgroupfs.Gone(err), errors.Is(err, fsnotify.ErrClosed):
		return nil
	case err != nil:
		return err
	}
	c.watched[path] = id
	return nil
}

// drop ends a watch. It fails where the path was moved away, and the watch with it.
func (c *Cgroups) drop(path string) {
	_ = c.inotify.Remove(path)
	delete(c.watched, path)
}

// forget ends the watches that the last scan did not need.
func (c *Cgroups) forget(seen map[string]bool) {
	for path := range c.watched {
		if !seen[path] {
			c.drop(path)
		}
	}
}

// Run passes the tree's events on until the context ends, and closes the watch.
func (c *Cgroups) Run(ctx context.Context) error {
	defer c.Close()
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-resync.C:
			c.Wake()
		case event, ok := <-c.inotify.Events:
			if !ok {
				return errors.New("watching the cgroup tree: inotify was closed")
			}
			c.handle(event)
		case _, ok := <-c.inotify.Errors:
			if !ok {
				return errors.New("watching the cgroup tree: inotify was closed")
			}
			c.Wake() // an overflow: events were lost
		}
	}
}

// handle takes an event that can change a snapshot: a cgroup came or went, or the last
// process left a scope.
func (c *Cgroups) handle(e fsnotify.Event) {
	changes := e.Has(fsnotify.Create | fsnotify.Remove | fsnotify.Rename)
	if dir, is := c.patterns.in(strings.TrimPrefix(e.Name, c.root.Path("")+"/"), changes); is {
		if c.patterns.event(dir, changes, c.allPending()) {
			c.Wake()
		}
		return
	}
	if e.Op == fsnotify.Chmod {
		return // its labels were stored
	}
	if cgroup, ok := c.scopeOf(e.Name); ok {
		c.Touch(cgroup)
	} else if changes {
		c.handleOther(e)
	}
}

// handleOther takes an event of a cgroup that is not thole run's. If the engine has to be asked first, a look is worth
// while when it has answered.
func (c *Cgroups) handleOther(e fsnotify.Event) {
	if e.Has(fsnotify.Create) {
		c.units.cgroupCreated(e.Name)
	}
	if c.engine == nil || e.Has(fsnotify.Rename) {
		c.Wake()
		return
	}
	cgroup := strings.TrimPrefix(e.Name, c.root.Path("")+"/")
	switch container, pending := c.engine.CgroupChanged(cgroup, e.Has(fsnotify.Create)); {
	case pending:
	case container == "":
		c.Wake()
	default:
		c.touchContainers(container)
	}
}

// engineChanged says that something may have changed at single containers; at none: anywhere.
func (c *Cgroups) engineChanged(containers ...string) {
	if len(containers) == 0 {
		c.Wake()
		return
	}
	c.touchContainers(containers...)
}

// AskUnits has systemd asked about units. It is called before the first Scan, or never where there is no systemd.
func (c *Cgroups) AskUnits(units Units) { c.units.from = units }

// Recall takes over what was known when the loaded table was made, for what cannot
// be asked at once.
func (c *Cgroups) Recall(s workload.Snapshot) {
	c.scopes.recall(s.Workloads)
	s.Parents = slices.DeleteFunc(slices.Clone(s.Parents), func(p policy.Cgroup) bool {
		_, users, _ := c.root.Writer(p.Path)
		return users // it was closed for a pattern, not for containers
	})
	c.units.recall(s.Workloads)
	if c.engine != nil {
		c.engine.Recall(s)
	}
}

// Close ends the watch of one that is not run.
func (c *Cgroups) Close() error {
	c.patterns.stop()
	return c.inotify.Close()
}

// PatternUse says how near users are to the limits of what they make where patterns look.
func (c *Cgroups) PatternUse() PatternUse { return c.patterns.use() }
