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

// identified is what was found to run, as the documents of a set and this node's certificate say who it is.
func (e *enforcer) identified(set policySet, found workload.Snapshot) workload.Snapshot {
	s := found
	s.Workloads, s.Unlabelled = set.docs.Identify(found.Workloads, found.Unlabelled)
	if e.identity == nil {
		return s
	}
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Workloads {
		s.Conditions = append(s.Conditions, carry(e.identity, &set.docs.Settings, &s.Workloads[i])...)
	}
	return s
}

// carry puts on one workload what its node's certificate says of it. A label of its own stays: who contradicts the
// certificate can prove nothing. A workload without a label that counts is a stranger to other nodes.
func carry(id *identity, settings *policy.Settings, w *policy.Workload) (conditions []condition.Condition) {
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
func withNode(id *identity, facts policy.Labels) policy.Labels {
	with := policy.Labels{policy.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// requiredOf reports whether a workload has the labels that its node's certificate requires. An image's label of one of
// these keys contradicts the certificate: then nothing is said of the workload.
func (id *identity) requiredOf(w policy.Workload) bool {
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
		local.Labels = sentLabels(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}
