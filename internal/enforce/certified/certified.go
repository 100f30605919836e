package certified

import (
	"fmt"
	"maps"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/state"
)

// Certify puts on one workload what its node's certificate says of it. A label of its own stays: who contradicts the
// certificate can prove nothing. A workload without a label that counts is a stranger to other nodes.
func Certify(id *state.Identity, settings *policy.Settings, w *policy.Workload) (conditions []condition.Condition) {
	code := condition.CertificateContradicts
	if w.Kind == policy.KindRun {
		code = condition.CertificateContradictsRun // a user's thole run suffices
	}
	w.Facts = withNode(id, w.Facts)
	if len(w.Labels) == 0 {
		return nil // other nodes hear nothing of it
	}
	before := *w
	var given []string
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
			given = append(given, key)
		case !ok:
			w.Facts[key] = value
			given = append(given, key)
		}
	}
	w.NoteGiven(&before, given...)
	return conditions
}

// withNode adds this node's name to a workload's facts.
func withNode(id *state.Identity, facts policy.Labels) policy.Labels {
	with := policy.Labels{policy.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// HasRequired reports whether a workload has the labels that its node's certificate requires. An image's label of one
// of these keys contradicts the certificate: then nothing is said of the workload.
func HasRequired(id *state.Identity, w policy.Workload) bool {
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

// Sent are a workload's labels that other nodes receive: a person's, whichever count on this node. Of a workload
// without any that counts, other nodes receive none.
func Sent(w policy.Workload) map[string]string {
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
