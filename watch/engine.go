package watch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/internal/condition"
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

// bindContainers gives the labels of bindings to the containers that they name. A container keeps its own labels; where
// it has the same key, the binding's value counts. Of several bindings that name one container, the first by its name
// that names the container itself counts, else the first one.
func bindContainers(bindings []policy.Binding, found *workload.Snapshot) (overlaps []condition.Condition) {
	bindings = slices.DeleteFunc(slices.Clone(bindings), func(b policy.Binding) bool {
		return b.Container == "" && b.Compose == policy.Compose{}
	})
	if len(bindings) == 0 {
		return nil
	}
	slices.SortStableFunc(bindings, func(a, b policy.Binding) int {
		return cmp.Compare(len(b.Container), 0) - cmp.Compare(len(a.Container), 0)
	})
	bind := func(w *policy.Workload) (bound bool) {
		var by *policy.Binding
		for i := range bindings {
			b := &bindings[i]
			switch {
			case !b.BindsContainer(w.Name, w.Label):
			case by == nil:
				by = b
			default:
				overlaps = append(overlaps, condition.Condition{
					Code: condition.BindingOverlap, Where: b.Position.String(), Text: fmt.Sprintf(
						"workload %q has no effect on the container %s: it has the labels of %q", b.Name, w.Name,
						by.Name),
				})
			}
		}
		if by == nil {
			return false
		}
		give(w, by)
		return true
	}
	found.Workloads = slices.Clone(found.Workloads)
	for i := range found.Workloads {
		bind(&found.Workloads[i])
	}
	var rest []policy.Unlabelled
	for _, u := range found.Unlabelled {
		switch w := u.Workload(); {
		case bind(&w) && len(w.Labels) > 0:
			found.Workloads = append(found.Workloads, w)
		default:
			u.Doubtful, u.Given = w.Doubtful, w.Given
			rest = append(rest, u)
		}
	}
	found.Unlabelled = rest
	return overlaps
}

// give gives a container the labels of a binding that names it. A container whose Compose labels are its image's may be
// somebody else's: then the labels are as doubtful as those.
func give(w *policy.Workload, b *policy.Binding) {
	before := *w
	w.Labels, w.Facts, w.Doubtful = maps.Clone(w.Labels), maps.Clone(w.Facts), maps.Clone(w.Doubtful)
	into := &w.Labels
	if !b.BindsContainer(w.Name, w.Certain) {
		into = &w.Doubtful
	}
	if *into == nil {
		*into = policy.Labels{}
	}
	var given []string
	for key, value := range b.Labels {
		if into == &w.Labels {
			delete(w.Facts, key)
			delete(w.Doubtful, key)
		} else if _, certain := w.Certain(key); certain {
			continue
		}
		(*into)[key] = value
		given = append(given, key)
	}
	w.NoteGiven(&before, given...)
	w.Namespace, w.Position = b.Namespace, b.Position
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
