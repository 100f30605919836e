package enforce

import (
	"fmt"
	"maps"
	"slices"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/internal/condition"
	"thole/internal/state"
	"thole/watch/workload"
)

func identityOf(node *pki.Node) *state.Identity {
	return &state.Identity{Node: node.Identity.Node, Require: node.Identity.Require}
}

// A certifiedScanner puts on what runs what this node's certificate says of it.
type certifiedScanner struct {
	scanner Scanner
	*Enforcer
}

// Recall is a method of Scanner.
func (c certifiedScanner) Recall(loaded workload.Snapshot) { c.scanner.Recall(loaded) }

// Scan is a method of Scanner.
func (c certifiedScanner) Scan(bindings []policy.Binding) workload.Snapshot {
	return certifyAll(c.identity, c.scanner.Scan(bindings))
}

// Changes is a method of Scanner. A problem, or the end of one, is for a Scan to tell.
func (c certifiedScanner) Changes(bindings []policy.Binding) workload.Snapshot {
	s := certifyAll(c.identity, c.scanner.Changes(bindings))
	if s.Partial && (len(s.Conditions) > 0 || c.contradicted(s)) {
		return c.Scan(bindings)
	}
	return s
}

func certifyAll(id *state.Identity, s workload.Snapshot) workload.Snapshot {
	if id == nil {
		return s
	}
	for i := range s.Unlabelled { // a policy may make them workloads; what is required is not theirs
		if u := &s.Unlabelled[i]; u.Doubtful != nil {
			u.Facts = withNode(id, u.Facts)
		}
	}
	s.Workloads = slices.Clone(s.Workloads)
	for i := range s.Workloads {
		s.Conditions = append(s.Conditions, certify(id, &s.Workloads[i])...)
	}
	return s
}

// contradicted reports whether the last Scan found that a workload contradicts the certificate, and a Partial snapshot
// is about that workload.
func (c certifiedScanner) contradicted(s workload.Snapshot) bool {
	was := map[string]bool{} // names
	for _, found := range c.conditions {
		if found.Code == condition.CertificateContradicts || found.Code == condition.CertificateContradictsRun {
			was[found.Where] = true
		}
	}
	return len(was) > 0 && slices.ContainsFunc(cgroupsOf(s), func(cgroup string) bool {
		id, _ := c.loaded.workloads.named(cgroup)
		w, bound := c.loaded.workloads.of(id)
		return bound && was[w.Name]
	})
}

// certify puts on one workload what its node's certificate says of it.
func certify(id *state.Identity, w *policy.Workload) (conditions []condition.Condition) {
	code := condition.CertificateContradicts
	if w.Kind == policy.KindRun {
		code = condition.CertificateContradictsRun // a user's thole run suffices
	}
	doubtful := maps.Clone(w.Doubtful)
	for key, value := range id.Require {
		has, ok := w.Labels[key]
		if doubt, is := w.Doubtful[key]; is && doubt == value {
			delete(doubtful, key) // the certificate says so, whoever else does
		} else if is {
			has, ok = doubt, true
		}
		if ok && has != value {
			conditions = append(conditions, condition.Condition{Code: code, Where: w.Name, Text: fmt.Sprintf(
				"its label %s=%s contradicts this node's certificate, which requires %[1]s=%[3]s: other nodes "+
					"receive no labels of this workload", key, has, value)})
		}
	}
	w.Labels = withRequired(id, w.Labels)
	maps.DeleteFunc(w.Labels, func(key, _ string) bool { _, is := doubtful[key]; return is })
	w.Doubtful = doubtful
	w.Facts = withNode(id, w.Facts)
	return conditions
}

// withNode adds this node's name to a workload's facts.
func withNode(id *state.Identity, facts policy.Labels) policy.Labels {
	with := policy.Labels{policy.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// withRequired returns a workload's labels with those that its node's certificate requires. A
// label of its own stays: who contradicts the certificate can prove nothing.
func withRequired(id *state.Identity, labels policy.Labels) policy.Labels {
	if id == nil || len(id.Require) == 0 {
		return labels
	}
	all := maps.Clone(id.Require)
	maps.Copy(all, labels)
	return all
}

// hasRequired reports whether a workload has the labels that its node's certificate requires. An image's label of one
// of these keys contradicts the certificate: then nothing is said of the workload.
func hasRequired(id *state.Identity, w policy.Workload) bool {
	if id == nil {
		return true
	}
	for key := range id.Require {
		if _, ok := w.Labels[key]; !ok {
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
		local.Labels = userLabels(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}

// userLabels are those that are sent.
func userLabels(w policy.Workload) map[string]string {
	labels := map[string]string{}
	for key, value := range w.Labels {
		if policy.IsUserLabel(key) {
			labels[key] = value
		}
	}
	return labels
}
