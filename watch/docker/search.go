package docker

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A search is one reading of the cgroup tree, or a look at single containers. It holds the lock of the containers.
type search struct {
	containers *containers
	root       cgroupfs.Root
	address    string                   // of the engine
	podman     bool                     // the engine is Podman
	waiting    map[string]policy.Cgroup // by id: of containers of which Podman has told nothing yet
	found      workload.Snapshot
}

// search returns the containers that have a cgroup, and apart from it the problems of those that no policy judges.
func (c *containers) search(
	address string, watch func(cgroup string),
) (found workload.Snapshot, notJudged []condition.Condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := search{containers: c, root: c.places.root, address: address, podman: c.places.ofPodman()}
	places, err := c.places.read(watch)
	if err != nil {
		s.problem(condition.CgroupsUnreadable, "", err.Error())
	}
	c.cgroups, c.reported, c.read = map[string]policy.Cgroup{}, map[string]bool{}, nil
	for _, p := range places {
		s.place(p)
	}
	s.share()
	if err == nil {
		notJudged = c.notJudged()
		c.read = map[string]*place{}
		for _, p := range places {
			c.read[p.path] = p
		}
	}
	return s.found, notJudged
}

// look looks at single containers, as search does at all. Each of them is in found, or its cgroup is Gone, unless no
// cgroup of it was seen. ok is false where only a search can tell, because what is said of a container may concern more
// than its own cgroup:
//
//   - the last search could not read the cgroup tree;
//   - the container has a problem, or had one at the last search: it is refused, unknown to the engine, or not judged;
//   - it shares a network namespace with another container, or did at the last search;
//   - it has two cgroups, or another place of containers is in its cgroup;
//   - it is the first one of its place, or was the last: then the place may become closed, or be so no more.
func (c *containers) look(ids []string) (found workload.Snapshot, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := search{containers: c, root: c.places.root, podman: c.places.ofPodman()}
	s.found.Partial = true
	for _, id := range ids {
		r := c.records[id]
		if c.read == nil || c.reported[id] || c.sharing[id] || r != nil && r.joined() != "" || !s.again(id) {
			return workload.Snapshot{}, false
		}
	}
	return s.found, true
}

// again looks at one container. It returns false where only a search can tell.
func (s *search) again(id string) bool {
	c := s.containers
	p, ok := c.placeOf(id)
	if !ok {
		return false
	}
	delete(c.cgroups, id)
	if p != nil && !s.againAt(p, id) {
		return false
	}
	return len(c.notJudgedOf(id)) == 0
}

// againAt looks at one container's cgroup in a place.
func (s *search) againAt(p *place, id string) bool {
	cgroup := policy.Cgroup{Path: cgroupfs.Join(p.path, p.ids[id])}
	for path := range s.containers.read {
		if strings.HasPrefix(path+"/", cgroup.Path+"/") {
			return false
		}
	}
	s.waiting = map[string]policy.Cgroup{}
	s.cgroup(p, id, cgroup.Path)
	switch {
	case p.confirmed[id]:
	case len(s.waiting) > 0 && !p.closed:
		return false
	case p.ids[id] != "" && s.containers.unknown[id]:
		return false
	default:
		s.found.Gone = append(s.found.Gone, cgroup.Path)
	}
	return p.claim() == p.claimed && len(s.found.Conditions)+len(s.found.Parents) == 0
}

// placeOf returns the place where a container's cgroup was seen; nil: nowhere. ok is false if it was seen twice. It
// needs the lock.
func (c *containers) placeOf(id string) (found *place, ok bool) {
	for _, p := range c.read {
		if p.ids[id] == "" {
			continue
		}
		if found != nil || p.ambiguous {
			return nil, false
		}
		found = p
	}
	return found, true
}

func (s *search) problem(code condition.Code, where, text string) {
	s.found.Conditions = append(s.found.Conditions, condition.Condition{Code: code, Where: where, Text: text})
}

// place adds the containers of one place, and the place itself if it belongs to containers alone.
func (s *search) place(p *place) {
	s.waiting = map[string]policy.Cgroup{}
	for _, id := range slices.Sorted(maps.Keys(p.ids)) {
		s.cgroup(p, id, cgroupfs.Join(p.path, p.ids[id]))
	}
	p.claimed = p.claim()
	p.closed = p.claimed.containers && s.exclusive(p)
	if p.closed {
		s.closePlace(p)
	} else {
		s.closeWaiting()
		s.ofAnotherEngine(p)
	}
}

// cgroup adds the container that has a cgroup in a place, if the cgroup exists and the engine has told that there is
// such a container.
func (s *search) cgroup(p *place, id, path string) {
	cgroup := policy.Cgroup{Path: path}
	delete(p.confirmed, id)
	var err error
	if cgroup.ID, err = s.root.ID(path); err != nil {
		delete(p.ids, id) // it disappeared
	} else if s.container(id, cgroup) {
		p.confirmed[id] = true
	}
}

// container adds one container. It returns false if the engine has none of that id, or has not answered yet.
func (s *search) container(id string, cgroup policy.Cgroup) bool {
	c := s.containers
	c.cgroups[id] = cgroup
	r := c.records[id]
	if r == nil {
		s.withoutRecord(id, cgroup)
		return false
	}
	if !r.complete(cgroup) {
		c.queues.inspect.add(id)
		// Podman says nothing of a container that is being started.
		if !r.withoutBridge() && r.joined() == "" && !s.podman {
			c.queues.starting.add(id)
		}
	}
	switch {
	case r.refused != "":
		c.reported[id] = true
		s.found.Parents = append(s.found.Parents, cgroup) // it holds one container alone, whose labels are not known
		s.problem(condition.ContainerRefused, "container "+r.name,
			r.refused+"; while a policy is enforced, it is closed")
	case len(r.labels) > 0:
		s.found.Workloads = append(s.found.Workloads, r.workload(cgroup))
	default:
		s.found.Unlabelled = append(s.found.Unlabelled, r.unlabelled(cgroup))
	}
	return true
}

// withoutRecord handles a cgroup with a container's name, of which the engine has told nothing yet, or that it has no
// such container. Podman tells nothing of a container until it runs: until then the cgroup must be closed.
func (s *search) withoutRecord(id string, cgroup policy.Cgroup) {
	c := s.containers
	switch {
	case c.unknown[id]:
	case s.podman:
		s.waiting[id] = cgroup
		fallthrough
	default:
		c.queues.created.add(id)
	}
}

// closeWaiting closes the cgroups of containers of which Podman has told nothing yet.
func (s *search) closeWaiting() {
	for _, id := range slices.Sorted(maps.Keys(s.waiting)) {
		s.containers.reported[id] = true
		s.found.Parents = append(s.found.Parents, s.waiting[id])
	}
}

// ofAnotherEngine adds the problems of containers that the engine does not have, and whose cgroup has a name that
// another engine gives, in a place that is not closed.
func (s *search) ofAnotherEngine(p *place) {
	for _, id := range slices.Sorted(maps.Keys(p.ids)) {
		cgroup := cgroupfs.Join(p.path, p.ids[id])
		if p.confirmed[id] || !s.containers.unknown[id] || isPodmanName(p.ids[id]) == s.podman {
			continue
		}
		s.containers.reported[id] = true
		if populated, err := s.root.Populated(cgroup); err == nil && !populated {
			continue // it has ended
		}
		other := map[bool]string{true: EngineDocker, false: EnginePodman}[s.podman]
		s.problem(condition.ContainerNotJudged, cgroup, fmt.Sprintf("this is a container of %s, and the engine at "+
			"%s has no such container: no policy protects or restricts it: see --docker of thole daemon", other,
			s.address))
	}
}

// exclusive reports whether a place belongs to containers alone.
func (s *search) exclusive(p *place) bool {
	mend := `: a container that starts while the daemon is down is unrestricted until the daemon is back. ` +
		`Give Docker a slice of its own, "cgroup-parent": "docker.slice" in /etc/docker/daemon.json; ` +
		`see "Install" in the README`
	if s.podman {
		mend = `: a container that starts while the daemon is down is unrestricted until the daemon is back. ` +
			`Give the containers a parent of their own: podman run --cgroup-parent, without --cgroups=split`
	}
	switch {
	case p.sharedWithServices():
		if p.claimed.shared {
			s.problem(condition.ContainerParentShared, p.path, "containers share this cgroup with services"+mend)
		}
		return false
	case len(p.others) > 0:
		s.problem(condition.ContainerParentShared, p.path,
			fmt.Sprintf("containers share this cgroup with %s%s", strings.Join(p.others, ", "), mend))
		return false
	}
	return true
}

// closePlace adds a place that belongs to containers alone: what is not known below it is closed. The cgroup of
// builds is known.
func (s *search) closePlace(p *place) {
	id, err := s.root.ID(p.path)
	if err != nil {
		return
	}
	s.found.Parents = append(s.found.Parents, policy.Cgroup{Path: p.path, ID: id})
	build := policy.Cgroup{Path: cgroupfs.Join(p.path, buildCgroup)}
	if build.ID, err = s.root.ID(build.Path); err == nil {
		s.found.Unlabelled = append(s.found.Unlabelled, policy.Unlabelled{Cgroup: build})
	}
	for _, id := range slices.Sorted(maps.Keys(p.ids)) {
		if !p.confirmed[id] && s.containers.unknown[id] {
			s.containers.reported[id] = true
			s.problem(condition.ContainerUnknown, cgroupfs.Join(p.path, p.ids[id]),
				"the engine at "+s.address+" has no such container: while a policy is enforced, this cgroup is closed")
		}
	}
}
