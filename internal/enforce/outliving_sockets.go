package enforce

import (
	"thole/compiler/policy"
)

// dropWithoutSockets removes from the workloads whose cgroup is gone those that no socket belongs to. A
// socket keeps its cgroup when it is passed on to a process elsewhere: the others keep
// their elements, since without them it would be unlabelled. What cannot be found out
// is taken as a yes. runs says which cgroups are those of other workloads.
func dropWithoutSockets(g Cgroups, dead map[uint64]policy.Workload, runs func(id uint64) bool) error {
	if len(dead) == 0 {
		return nil
	}
	sockets, err := g.Sockets()
	if err != nil {
		return err
	}
	orphan, err := youngestOrphan(g, sockets, func(id uint64) bool {
		_, is := dead[id]
		return is || runs(id)
	})
	if err != nil {
		return err
	}
	for id := range dead {
		if !sockets[id] && id > orphan {
			delete(dead, id)
		}
	}
	return nil
}

// youngestOrphan returns the highest of the cgroups that are gone, that are none of
// those that are known, and to which a socket belongs; 0 if there is none. Such a
// cgroup may have been below one of those that are known, but only below an older
// one, which has a lower id: the kernel gives ids to cgroups in ascending order. So a
// socket that lives for ever does not hold all that ends after it was made.
func youngestOrphan(g Cgroups, sockets map[uint64]bool, known func(id uint64) bool) (youngest uint64, err error) {
	for id := range sockets {
		if id <= youngest || known(id) {
			continue
		}
		lives, err := g.Lives(id)
		if err != nil {
			return 0, err
		}
		if !lives {
			youngest = id
		}
	}
	return youngest, nil
}
