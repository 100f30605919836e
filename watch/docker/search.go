package docker

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A search is one reading of the cgroup tree. It holds the lock of the containers.
type search struct {
	containers *containers
	root       cgroupfs.Root
	address    string // of the engine
	found      workload.Snapshot
}

// search returns the containers that have a cgroup, and apart from it the problems of those that no policy judges.
func (c *containers) search(
	address string, watch func(cgroup string),
) (found workload.Snapshot, notJudged []condition.Condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := search{containers: c, root: c.places.root, address: address}
	places, err := c.places.read(watch)
	if err != nil {
		s.problem(condition.CgroupsUnreadable, "", err.Error())
	}
	c.cgroups = map[string]policy.Cgroup{}
	for _, p := range places {
		s.place(p)
	}
	if err == nil {
		notJudged = c.notJudged()
	}
	return s.found, notJudged
}

func (s *search) problem(code condition.Code, where, text string) {
	s.found.Conditions = append(s.found.Conditions, condition.Condition{Code: code, Where: where, Text: text})
}

// place adds the containers of one place, and the place itself if it belongs to containers alone.
func (s *search) place(p place) {
	hasContainers := p.named
	var unconfirmed []string // cgroups named like a container that the engine does not have, or has not told yet
	for _, id := range slices.Sorted(maps.Keys(p.ids)) {
		cgroup := policy.Cgroup{Path: cgroupfs.Join(p.path, p.ids[id])}
		var err error
		if cgroup.ID, err = s.root.ID(cgroup.Path); err != nil {
			continue // it disappeared
		}
		if s.container(id, cgroup) {
			hasContainers = true
		} else {
			unconfirmed = append(unconfirmed, cgroup.Path)
		}
	}
	if !hasContainers && p.path != defaultPlace {
		return
	}
	if s.exclusive(p) {
		s.closePlace(p, unconfirmed)
	}
}

// container adds one container. It returns false if the engine has none of that id, or has not answered yet.
func (s *search) container(id string, cgroup policy.Cgroup) bool {
	c := s.containers
	c.cgroups[id] = cgroup
	r := c.records[id]
	if r == nil {
		if !c.unknown[id] {
			c.queues.created.add(id)
		}
		return false
	}
	if !r.complete(cgroup) {
		c.queues.inspect.add(id)
		if !r.withoutBridge() {
			c.queues.starting.add(id)
		}
	}
	switch {
	case r.refused != "":
		s.found.Parents = append(s.found.Parents, cgroup) // it holds one container alone, whose labels are not known
		s.problem(condition.ContainerRefused, "container "+r.name, r.refused+"; it is closed")
	case len(r.labels) > 0:
		s.found.Workloads = append(s.found.Workloads, r.workload(cgroup))
	default:
		s.found.Unlabelled = append(s.found.Unlabelled, r.unlabelled(cgroup))
	}
	return true
}

// exclusive reports whether a place belongs to containers alone.
func (s *search) exclusive(p place) bool {
	const mend = `: a container that starts while the daemon is down is unrestricted until the daemon is back. ` +
		`Give Docker a slice of its own, "cgroup-parent": "docker.slice" in /etc/docker/daemon.json; ` +
		`see "systemd" in the README`
	switch {
	case slices.Contains(sharedPlaces, p.path):
		if len(p.ids) > 0 {
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
func (s *search) closePlace(p place, unconfirmed []string) {
	id, err := s.root.ID(p.path)
	if err != nil {
		return
	}
	s.found.Parents = append(s.found.Parents, policy.Cgroup{Path: p.path, ID: id})
	build := policy.Cgroup{Path: cgroupfs.Join(p.path, buildCgroup)}
	if build.ID, err = s.root.ID(build.Path); err == nil {
		s.found.Unlabelled = append(s.found.Unlabelled, policy.Unlabelled{Cgroup: build})
	}
	for _, cgroup := range unconfirmed {
		if id, _ := containerID(path.Base(cgroup)); s.containers.unknown[id] {
			s.problem(condition.ContainerUnknown, cgroup,
				"Docker at "+s.address+" has no such container: this cgroup is closed")
		}
	}
}
