package daemon

import (
	"fmt"

	"thole/compiler/policy"
)

// A graveyard knows which cgroups are gone, and which of these still have sockets.
type graveyard interface {
	Lives(cgroup uint64) (bool, error)
	Sockets() (map[uint64]bool, error) // ids of the cgroups that sockets were born in
}

// outlived returns those of the enforced workloads whose cgroup is gone and to
// which a socket may still belong.
func outlived(g graveyard, enforced, running []policy.Workload) (map[uint64]policy.Workload, error) {
	dead, runs := map[uint64]policy.Workload{}, map[uint64]bool{}
	for _, w := range enforced {
		dead[w.Cgroup.ID] = w
	}
	for _, w := range running {
		runs[w.Cgroup.ID] = true
		delete(dead, w.Cgroup.ID)
	}
	for id := range dead {
		lives, err := g.Lives(id)
		if err != nil {
			return dead, err
		}
		if lives {
			delete(dead, id) // it is no workload any more
		}
	}
	err := bury(g, dead, func(id uint64) bool { return runs[id] })
	return dead, err
}

// bury takes from the workloads whose cgroup is gone those that no socket belongs to. A
// socket keeps its cgroup when it is passed on to a process elsewhere: the others keep
// their elements, since without them it would be unlabelled. What cannot be found out
// is taken as a yes. runs says which cgroups are those of other workloads.
func bury(g graveyard, dead map[uint64]policy.Workload, runs func(id uint64) bool) error {
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
func youngestOrphan(g graveyard, sockets map[uint64]bool, known func(id uint64) bool) (youngest uint64, err error) {
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

// withEnded adds the ended workloads to those that run. Where a new cgroup has the
// path of an old one, the old one's is told apart by its id: to the compiler the
// path is the identity.
func withEnded(running []policy.Workload, ended map[uint64]policy.Workload) []policy.Workload {
	all := append([]policy.Workload(nil), running...)
	taken := map[string]bool{}
	for _, w := range running {
		taken[w.Cgroup.Path] = true
	}
	for id, w := range ended {
		w.Own = nil // its addresses may be another's by now
		if taken[w.Cgroup.Path] {
			w.Cgroup.Path += fmt.Sprintf("#%d", id)
		}
		taken[w.Cgroup.Path] = true
		all = append(all, w)
	}
	return all
}
