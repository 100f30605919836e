package enforce

import (
	"path"
	"slices"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/internal/condition"
	"thole/internal/enforce/certified"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch/workload"
)

func identityOf(node *pki.Node) *state.Identity {
	return &state.Identity{Node: node.Identity.Node, Require: node.Identity.Require}
}

// identified is what was found to run, as the documents of a set and this node's certificate say who it is. A Partial
// snapshot is held against what is around it in the loaded table.
func (e *Enforcer) identified(set policyset.Set, found workload.Snapshot) workload.Snapshot {
	s := found
	around := e.around(found)
	s.Workloads, s.Unlabelled = set.Docs.Identify(slices.Concat(found.Workloads, around), found.Unlabelled)
	s.Workloads = slices.DeleteFunc(s.Workloads, func(w policy.Workload) bool {
		return slices.ContainsFunc(around, func(other policy.Workload) bool { return other.Cgroup == w.Cgroup })
	})
	if e.identity == nil {
		return s
	}
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Workloads {
		s.Conditions = append(s.Conditions, certified.Certify(e.identity, &set.Docs.Settings, &s.Workloads[i])...)
	}
	return s
}

// around returns the workloads of the loaded table in whose cgroups the containers of a Partial snapshot are, and which
// it does not name: such a container may have their labels.
func (e *Enforcer) around(found workload.Snapshot) (list []policy.Workload) {
	if !found.Partial {
		return nil
	}
	anew, seen := cgroupsOf(found), map[string]bool{}
	look := func(cgroup string) {
		for at := path.Dir(cgroup); at != "." && !seen[at]; at = path.Dir(at) {
			seen[at] = true
			if _, is := slices.BinarySearch(anew, at); !is {
				list = append(list, e.running(e.knownAt([]string{at}))...)
			}
		}
	}
	for _, w := range found.Workloads {
		if w.Kind == policy.KindContainer {
			look(w.Cgroup.Path)
		}
	}
	for _, u := range found.Unlabelled {
		if u.Selectable() {
			look(u.Cgroup.Path)
		}
	}
	return list
}

// contradicted reports whether the last Scan found that a workload contradicts the certificate, and a Partial snapshot
// is about that workload.
func (e *Enforcer) contradicted(s workload.Snapshot) bool {
	was := map[string]bool{} // names
	for _, found := range e.conditions {
		if found.Code == condition.CertificateContradicts || found.Code == condition.CertificateContradictsRun {
			was[found.Where] = true
		}
	}
	return len(was) > 0 && slices.ContainsFunc(cgroupsOf(s), func(cgroup string) bool {
		id, _ := e.loaded.workloads.named(cgroup)
		w, bound := e.loaded.workloads.of(id)
		return bound && was[w.Name]
	})
}

// local is a workload of this node, as the datapath sees it. It is asked at each packet
// of a handshake.
func (v *View) local(cgroup uint64) (datapath.Workload, bool) {
	if known, ok := v.locals.Load(cgroup); ok {
		return known.(datapath.Workload), true
	}
	w, ok := v.roster.of(cgroup)
	if !ok {
		return datapath.Workload{}, false
	}
	local := datapath.Workload{Cgroup: cgroup, Class: v.result.ClassOf(&w).Number}
	if certified.HasRequired(v.identity, w) {
		local.Labels = certified.Sent(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}
