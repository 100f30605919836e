package docker

import (
	"path"

	"thole/compiler/policy"
)

// share says of the containers that were found which of them share a network namespace ("--network container:X"). What
// only the engine can tell is known before the first instruction of a container: which container it joins. But after
// the owner of a namespace was restarted, the owner has another one, and the containers that joined it still have the
// old one. This is known when both were inspected.
func (s *search) share() {
	c := s.containers
	c.sharing = map[string]bool{}
	with := map[string][]string{} // owner → those that joined it; ids
	for id := range c.cgroups {
		owner := c.owner(id)
		if owner == "" {
			continue
		}
		c.sharing[id], c.sharing[owner] = true, true
		if _, runs := c.cgroups[owner]; runs {
			with[owner] = append(with[owner], id)
		}
	}
	of := map[string]policy.Sharing{}
	closed := map[string]bool{}
	for owner, joined := range with {
		for _, id := range append(joined, owner) {
			of[id] = policy.Sharing{Namespace: c.cgroups[owner].Path, Infra: c.records[id].infra}
			closed[owner] = closed[owner] || c.records[id].refused != ""
		}
	}
	if len(of) > 0 {
		s.noteSharing(of, closed)
	}
}

// noteSharing completes the containers that were found. A namespace in which there is a container of unknown labels is
// closed: its addresses belong to nobody who is known.
func (s *search) noteSharing(of map[string]policy.Sharing, closed map[string]bool) {
	for i := range s.found.Workloads {
		w := &s.found.Workloads[i]
		id, _ := containerID(path.Base(w.Cgroup.Path))
		if w.Sharing = of[id]; closed[id] {
			w.Own = nil
		}
	}
	for i := range s.found.Unlabelled {
		u := &s.found.Unlabelled[i]
		id, _ := containerID(path.Base(u.Cgroup.Path))
		if u.Sharing = of[id]; closed[id] {
			u.Own = nil
		}
		if r := s.containers.records[id]; r != nil && u.Sharing.Namespace != "" {
			u.Name = r.name
		}
	}
}

// owner returns the id of the container whose network namespace another one has joined, directly or through others; "":
// it has joined none, or it is on the host network like that one. It needs the lock.
func (c *containers) owner(id string) string {
	at := id
	for range c.records { // however they refer to each other
		r := c.records[at]
		if r == nil {
			return ""
		}
		next := c.resolve(r)
		if next == "" {
			if at == id || r.withoutBridge() {
				return ""
			}
			return at
		}
		if c.apart(at, next) {
			return ""
		}
		at = next
	}
	return ""
}

// resolve returns the id of the container that one has joined; "": none, or one that the engine does not have.
func (c *containers) resolve(r *record) string {
	joined := r.joined()
	switch {
	case joined == "":
		return c.recalledOwner(r)
	case c.records[joined] != nil:
		return joined
	}
	for id, other := range c.records {
		if other.name == joined {
			return id
		}
	}
	return ""
}

// recalledOwner returns the owner that an earlier daemon found.
func (c *containers) recalledOwner(r *record) string {
	id, ok := containerID(path.Base(r.sharing.Namespace))
	if !ok || c.records[id] == r {
		return ""
	}
	return id
}

// apart reports whether two containers are known to have different network namespaces now.
func (c *containers) apart(a, b string) bool {
	namespace := func(id string) uint64 {
		at := c.records[id].attached
		if at.cgroup != c.cgroups[id].ID {
			return 0 // of an earlier run
		}
		return at.namespace
	}
	x, y := namespace(a), namespace(b)
	return x != 0 && y != 0 && x != y
}
