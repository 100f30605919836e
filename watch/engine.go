package watch

import (
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// An Engine is a container engine, for example docker.Docker. All methods may be called by several goroutines at once,
// but for OnChange.
type Engine interface {
	// OnChange sets what is called when Find may return something else than before: with the ids of the containers
	// that changed, or with none if anything may have changed. OnChange is called once, before the engine runs.
	OnChange(changed func(containers ...string))

	// CgroupChanged is called with each cgroup that was created or removed. It returns the id of the container whose
	// cgroup this is; "": the cgroup may be anything. It returns pending if a look at the cgroup has to wait for the
	// engine, which has to say first what the container is. The function of OnChange is called when it has.
	CgroupChanged(cgroup string, created bool) (container string, pending bool)

	// Find returns the containers that have a cgroup now. The function watch is called for each cgroup before it is
	// read, so that no later change is missed.
	//
	// If only is not nil, the containers with these ids alone are looked at, and the snapshot is Partial. ok is false
	// where only a look at all containers can tell; then that look must follow.
	Find(only []string, watch func(cgroup string)) (found workload.Snapshot, ok bool)

	// Recall takes over the containers of a snapshot that an earlier daemon made. They count until the engine answers.
	Recall(workload.Snapshot)
}

// addContainers completes a snapshot with what an engine found beside the workloads, which are in the snapshot
// already. If a Workload document gives labels to the cgroup of an unlabelled container, the container has these
// labels, and its own that do not count or are doubtful.
func addContainers(snapshot *workload.Snapshot, found workload.Snapshot) {
	byCgroup := map[string]*policy.Workload{}
	for i := range snapshot.Workloads {
		byCgroup[snapshot.Workloads[i].Cgroup.Path] = &snapshot.Workloads[i]
	}
	snapshot.Unlabelled = slices.DeleteFunc(found.Unlabelled, func(u policy.Unlabelled) bool {
		w := byCgroup[u.Cgroup.Path]
		if w != nil {
			*w = w.With(u)
		}
		return w != nil
	})
	snapshot.Parents, snapshot.Bridges = found.Parents, found.Bridges
	sortByPath(snapshot)
}

// sortByPath sorts what a snapshot has of cgroups.
func sortByPath(s *workload.Snapshot) {
	slices.SortStableFunc(s.Workloads, func(a, b policy.Workload) int {
		return strings.Compare(a.Cgroup.Path, b.Cgroup.Path)
	})
	slices.SortFunc(s.Unlabelled, func(a, b policy.Unlabelled) int {
		return strings.Compare(a.Cgroup.Path, b.Cgroup.Path)
	})
	slices.SortFunc(s.Parents, func(a, b policy.Cgroup) int { return strings.Compare(a.Path, b.Path) })
	slices.Sort(s.Gone)
}
