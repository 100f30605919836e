package daemon

import (
	"fmt"
	"maps"
	"slices"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/internal/condition"
	"thole/watch/workload"
)

// An identity is what this node's certificate says of its workloads.
type identity struct {
	Node    string        `json:"node"`
	Require policy.Labels `json:"require,omitempty"`
}

func identityOf(node *pki.Node) *identity {
	return &identity{Node: node.Identity.Node, Require: node.Identity.Require}
}

// A carrier puts on what runs what this node's certificate says of it.
type carrier struct {
	scanner
	*enforcer
}

// Scan is a method of scanner.
func (c carrier) Scan(bindings []policy.Binding) workload.Snapshot {
	return c.carryAll(c.scanner.Scan(bindings))
}

func (c carrier) carryAll(s workload.Snapshot) workload.Snapshot {
	if c.identity == nil {
		return s
	}
	for i := range s.Unlabelled { // a policy may make them workloads; what is required is not theirs
		if u := &s.Unlabelled[i]; u.Doubtful != nil {
			u.Facts = withNode(c.identity, u.Facts)
		}
	}
	s.Workloads = slices.Clone(s.Workloads)
	for i := range s.Workloads {
		s.Conditions = append(s.Conditions, carry(c.identity, &s.Workloads[i])...)
	}
	return s
}

// Changes is a method of scanner. A problem, or the end of one, is for a Scan to tell.
func (c carrier) Changes(bindings []policy.Binding) workload.Snapshot {
	s := c.carryAll(c.scanner.Changes(bindings))
	if s.Partial && (len(s.Conditions) > 0 || c.contradicted(s)) {
		return c.Scan(bindings)
	}
	return s
}

// contradicted reports whether the last Scan found that a workload contradicts the certificate, and a Partial snapshot
// is about that workload.
func (c carrier) contradicted(s workload.Snapshot) bool {
	was := map[string]bool{} // names
	for _, found := range c.found {
		if found.Code == condition.CertificateContradicts || found.Code == condition.CertificateContradictsRun {
			was[found.Where] = true
		}
	}
	return len(was) > 0 && slices.ContainsFunc(cgroupsOf(s), func(cgroup string) bool {
		id, _ := c.enforced.named(cgroup)
		w, bound := c.enforced.of(id)
		return bound && was[w.Name]
	})
}

// carry puts on one workload what its node's certificate says of it.
func carry(id *identity, w *policy.Workload) (conditions []condition.Condition) {
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
	w.Labels = carried(id, w.Labels)
	maps.DeleteFunc(w.Labels, func(key, _ string) bool { _, is := doubtful[key]; return is })
	w.Doubtful = doubtful
	w.Facts = withNode(id, w.Facts)
	return conditions
}

// withNode adds this node's name to a workload's facts.
func withNode(id *identity, facts policy.Labels) policy.Labels {
	with := policy.Labels{policy.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// carried are a workload's labels with those that its node's certificate requires. A
// label of its own stays: who contradicts the certificate can prove nothing.
func carried(id *identity, labels policy.Labels) policy.Labels {
	if id == nil || len(id.Require) == 0 {
		return labels
	}
	all := maps.Clone(id.Require)
	maps.Copy(all, labels)
	return all
}

// requiredOf reports whether a workload has the labels that its node's certificate requires. An image's label of one of
// these keys contradicts the certificate: then nothing is said of the workload.
func (id *identity) requiredOf(w policy.Workload) bool {
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
func (v *view) local(cgroup uint64) (datapath.Workload, bool) {
	if known, ok := v.locals.Load(cgroup); ok {
		return known.(datapath.Workload), true
	}
	w, ok := v.roster.of(cgroup)
	if !ok {
		return datapath.Workload{}, false
	}
	local := datapath.Workload{Cgroup: cgroup, Class: v.result.ClassOf(&w).Number}
	if v.identity.requiredOf(w) {
		local.Labels = userLabels(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}
