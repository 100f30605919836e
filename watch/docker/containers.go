package docker

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// containers are the records of an engine's containers, and which of them have a cgroup.
type containers struct {
	places  *places
	queues  queues
	changed func(ids ...string) // is called without the lock, with the ids of the containers that changed

	mu       sync.Mutex               // guards what follows; search holds it while it reads the cgroup tree
	records  map[string]*record       // by id; a record is replaced, and never changed
	unknown  map[string]bool          // ids in the names of cgroups, of which the engine has no container
	cgroups  map[string]policy.Cgroup // by id: of the containers that had one when they were looked at last
	reported map[string]bool          // ids of the containers of which the last search has a problem
	sharing  map[string]bool          // ids of those that shared, or may have shared, a network namespace then
	read     map[string]*place        // by path: what the last search read, and look changed since; nil: it failed
}

func newContainers(places *places, queues queues, changed func(ids ...string)) *containers {
	return &containers{
		places: places, queues: queues, changed: changed,
		records: map[string]*record{}, unknown: map[string]bool{}, cgroups: map[string]policy.Cgroup{},
	}
}

// created stores that a container's cgroup was created. It reports whether the container has a record, and whether the
// cgroup is in a place that is closed.
func (c *containers) created(id, cgroup string) (known, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	parent, name := path.Split(cgroup)
	if p := c.read[strings.TrimSuffix(parent, "/")]; p != nil {
		p.add(id, name)
		closed = p.closed
	}
	return c.records[id] != nil, closed
}

func (c *containers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.records)
}

// anyRuns reports whether a container had a cgroup when it was looked at last.
func (c *containers) anyRuns() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.cgroups) > 0
}

// cgroup returns the cgroup that a container had when it was looked at last; the zero cgroup if it had none.
func (c *containers) cgroup(id string) policy.Cgroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cgroups[id]
}

// get returns a container's record, or nil, and its cgroup.
func (c *containers) get(id string) (*record, policy.Cgroup) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records[id], c.cgroups[id]
}

// all returns a copy of the records.
func (c *containers) all() map[string]*record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.records)
}

// recall adds records of the containers of a snapshot.
func (c *containers) recall(s workload.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add := func(w policy.Workload) {
		if id, ok := containerID(path.Base(w.Cgroup.Path)); ok && c.records[id] == nil {
			c.records[id] = recalled(w)
		}
	}
	for _, w := range s.Workloads {
		// A document may have named the cgroup of a container. (An older daemon did not store more of such a container
		// than its doubtful labels.)
		if w.Kind == policy.KindContainer || w.Facts[workload.FactContainer] != "" || len(w.AllDoubtful()) > 0 {
			add(w)
		}
	}
	for _, u := range s.Unlabelled {
		add(u.Workload())
	}
}

// recalled is a container of a snapshot, with its own labels alone: documents give theirs again.
func recalled(w policy.Workload) *record {
	if w.Kind != policy.KindContainer && w.Facts[workload.FactContainer] == "" {
		return &record{name: w.Name, doubtful: w.AllDoubtful()}
	}
	w = w.WithoutGiven()
	labels, facts := asFound(w.Labels, w.Facts)
	delete(facts, policy.NodeFact)
	if w.Kind != policy.KindContainer {
		w.Name, facts[workload.FactKind] = facts[workload.FactContainer], policy.KindContainer.String()
	}
	return &record{name: w.Name, labels: labels, facts: facts, doubtful: w.AllDoubtful(),
		attached: attachment{cgroup: w.Cgroup.ID, networks: w.Own}, sharing: w.Sharing, infra: w.Sharing.Infra}
}

// storeListed stores the engine's answer to a question about some containers. Those that it did not list do not exist.
func (c *containers) storeListed(ids []string, list []container) {
	c.mu.Lock()
	for _, id := range ids {
		c.unknown[id] = true
	}
	for _, listed := range list {
		c.listed(listed)
	}
	c.mu.Unlock()
	c.notify(ids)
}

// notify calls changed, unless no container changed.
func (c *containers) notify(ids []string) {
	if len(ids) > 0 {
		c.changed(ids...)
	}
}

// storeAll stores a listing of all containers. The records before it that it does not list are removed; those that
// were stored while the engine answered stay.
func (c *containers) storeAll(before map[string]*record, list []container) {
	c.mu.Lock()
	changed := slices.Collect(maps.Keys(c.unknown)) // the engine is asked about them again
	clear(c.unknown)
	for _, listed := range list {
		if c.listed(listed) {
			changed = append(changed, listed.id)
		}
		delete(before, listed.id)
	}
	for id := range before {
		changed = append(changed, id)
		delete(c.records, id)
	}
	c.forgetPlaces()
	c.mu.Unlock()
	c.notify(changed)
}

// listed stores one container of a listing, and reports whether a search can return something else. It needs the lock.
func (c *containers) listed(listed container) (changed bool) {
	id := listed.id
	before := c.records[id]
	r := newRecord(listed)
	r.completeFrom(before)
	c.records[id] = r
	delete(c.unknown, id)
	_, hasCgroup := c.cgroups[id]
	if hasCgroup || !r.running {
		r.listingsWithoutCgroup = 0
	} else {
		r.listingsWithoutCgroup = min(r.listingsWithoutCgroup+1, maxListingsWithoutCgroup)
	}
	if !r.inspected || hasCgroup && !maps.Equal(before.endpoints, r.endpoints) {
		c.queues.inspect.add(id)
	}
	return !before.same(r) || c.notJudgedMayChange(id, before, r)
}

// forgetPlaces removes the places that are gone and that no container names any more. It needs the lock.
func (c *containers) forgetPlaces() {
	named := map[string]bool{}
	for _, r := range c.records {
		for _, p := range r.places {
			named[p] = true
		}
	}
	c.places.forget(named)
}

// store replaces a record after an inspection; nil: there is no such container.
func (c *containers) store(id string, r *record) {
	c.mu.Lock()
	before := c.records[id]
	if r == nil {
		delete(c.records, id)
	} else {
		if before != nil {
			r.endpoints = before.endpoints
		}
		if before != nil && before.process == r.process {
			r.listingsWithoutCgroup = before.listingsWithoutCgroup
		}
		if before != nil && r.inspectedAs != c.cgroups[id].ID {
			r.attached = before.attached // the inspection began before this start of the container
		}
		c.records[id] = r
		delete(c.unknown, id)
	}
	changed := !before.same(r) || before != nil && r != nil && c.notJudgedMayChange(id, before, r)
	c.mu.Unlock()
	if changed {
		c.changed(id)
	}
}

// markIncomplete says that a container has to be inspected again.
func (c *containers) markIncomplete(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		incomplete := *r
		incomplete.inspected = false
		c.records[id] = &incomplete
	}
}

// attach stores how a container that is being started is connected, unless its record r was replaced meanwhile.
func (c *containers) attach(id string, r *record, cgroup policy.Cgroup, networks []policy.Network) {
	c.mu.Lock()
	changed := c.records[id] == r && !reflect.DeepEqual(r.networks(cgroup), networks)
	if changed {
		attached := *r
		attached.attached = attachment{cgroup: cgroup.ID, networks: networks}
		c.records[id] = &attached
	}
	c.mu.Unlock()
	if changed {
		c.changed(id)
	}
}
