package reference

import (
	"strings"

	"thole/compiler/policy"
)

// Owner returns the workload to which a socket in cgroup belongs, or nil if it
// is unlabelled.
//
// "A socket belongs to the workload whose cgroup is the deepest bound one that
// contains the socket's cgroup. Two bindings on one cgroup: container before run
// before unit, user, cgroup." "An unlabelled container in a bound slice is that
// slice's."
func Owner(workloads []*policy.Workload, cgroup string) *policy.Workload {
	var owner *policy.Workload
	for _, w := range workloads {
		if w.Kind == policy.KindAddress || !within(cgroup, w.Cgroup.Path) {
			continue
		}
		if owner == nil || before(w, owner) {
			owner = w
		}
	}
	return owner
}

// within reports whether the cgroup path is ancestor or lies below it.
func within(path, ancestor string) bool {
	return path == ancestor || strings.HasPrefix(path, ancestor+"/")
}

// before reports whether a is preferred to b, both of which contain one socket's
// cgroup: of two such paths the longer one is the deeper one.
func before(a, b *policy.Workload) bool {
	if len(a.Cgroup.Path) != len(b.Cgroup.Path) {
		return len(a.Cgroup.Path) > len(b.Cgroup.Path)
	}
	return a.Kind < b.Kind
}
