package enforce

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/internal/condition"
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
		s.Conditions = append(s.Conditions, certify(e.identity, &set.Docs.Settings, &s.Workloads[i])...)
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

// certify puts on one workload what its node's certificate says of it. A label of its own stays: who contradicts the
// certificate can prove nothing. A workload without a label that counts is a stranger to other nodes.
func certify(id *state.Identity, settings *policy.Settings, w *policy.Workload) (conditions []condition.Condition) {
	code := condition.CertificateContradicts
	if w.Kind == policy.KindRun {
		code = condition.CertificateContradictsRun // a user's thole run suffices
	}
	w.Facts = withNode(id, w.Facts)
	if len(w.Labels) == 0 {
		return nil // other nodes hear nothing of it
	}
	w.Labels, w.Doubtful, w.DoubtfulFacts = maps.Clone(w.Labels), maps.Clone(w.Doubtful), maps.Clone(w.DoubtfulFacts)
	for key, value := range id.Require {
		has, ok := w.Label(key)
		if w.Doubts(key) && has == value {
			delete(w.Doubtful, key) // the certificate says so, whoever else does
			delete(w.DoubtfulFacts, key)
			ok = false
		}
		switch {
		case ok && has != value:
			conditions = append(conditions, condition.Condition{Code: code, Where: w.Name, Text: fmt.Sprintf(
				"its label %s=%s contradicts this node's certificate, which requires %[1]s=%[3]s: other nodes "+
					"receive no labels of this workload", key, has, value)})
		case !ok && settings.Counts(key):
			w.Labels[key] = value
		case !ok:
			w.Facts[key] = value
		}
	}
	return conditions
}

// withNode adds this node's name to a workload's facts.
func withNode(id *state.Identity, facts policy.Labels) policy.Labels {
	with := policy.Labels{policy.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// hasRequired reports whether a workload has the labels that its node's certificate requires. An image's label of one
// of these keys contradicts the certificate: then nothing is said of the workload.
func hasRequired(id *state.Identity, w policy.Workload) bool {
	if id == nil {
		return true
	}
	for key := range id.Require {
		if _, ok := w.Certain(key); !ok {
			return false
		}
	}
	return true
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
	if hasRequired(v.identity, w) {
		local.Labels = sentLabels(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}

// sentLabels are a workload's labels that other nodes receive: a person's, whichever count on this node. Of a workload
// without any that counts, other nodes receive none.
func sentLabels(w policy.Workload) map[string]string {
	sent := map[string]string{}
	if len(w.Labels) == 0 {
		return sent
	}
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts} {
		for key, value := range labels {
			if policy.IsUserLabel(key) && value != policy.UnusableValue {
				sent[key] = value
			}
		}
	}
	return sent
}
