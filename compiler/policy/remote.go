package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// A Remote is what a workload of another node proved of itself. Policies of this node
// do not select it; it is a peer, whose class is in compiler.Result.Remotes.
type Remote struct {
	Labels  Labels     // those that its node proved
	Node    string     // thole/node
	Address netip.Addr // from which it speaks, or at which it is spoken to

	// Unsaid are the keys that its node may assert and of which it said nothing: they are
	// not absent, but unknown, as are thole/* and tools' labels.
	Unsaid []string

	// Certificate names the one that it was proven with: what is proven with another is
	// another Remote. Ended says that it is not believed any more; its connections are
	// refused at their next packet. It keeps its number as long as it is in the input.
	Certificate string `json:",omitempty"`
	Ended       bool   `json:",omitempty"`
}

// Workload returns r as the peer that selectors see; the settings of this node say which of its labels count here. Its
// name and labels tell it from all others.
func (r *Remote) Workload(settings *Settings) *Workload {
	name := strings.Join(append([]string{r.Node, r.Address.String(), r.Certificate}, r.Unsaid...), " ")
	w := &Workload{Name: name, Labels: r.Labels, Facts: Labels{NodeFact: r.Node}}
	settings.divider().divide(w)
	return w
}

// NodeFact is the key of the fact on which node a workload runs.
const NodeFact = "thole/node"

// unknown reports whether it is not known if r has a label with the key.
func (r *Remote) unknown(key string) bool {
	if _, ok := r.Labels[key]; ok || key == NodeFact {
		return false
	}
	return !IsUserLabel(key) || slices.Contains(r.Unsaid, key)
}

// Selected reports whether a selector of an allow rule, or of a deny rule, matches r, which is w as a peer: an allow
// rule asks for nothing that is not known.
func (r *Remote) Selected(w *Workload, s *Selector, u Use) bool {
	if u == Permitting && slices.ContainsFunc(s.Requirements, func(q Requirement) bool { return r.unknown(q.Key) }) {
		return false
	}
	return s.Matches(w.Label)
}
