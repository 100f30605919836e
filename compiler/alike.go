package compiler

import (
	"strings"

	"thole/compiler/policy"
)

// A labelIndex finds the peers that sameLabels may match, without asking all of them.
type labelIndex struct {
	of  *policy.SameLabels
	use policy.Use

	// Peers match only if they have equal keys (key), or, where doubtful labels may be there and may not, only if they
	// have a label in common.
	byKey   map[string][]int
	byLabel map[label][]int
}

// index returns that of a peer sameLabels in a use.
func (cs *classes) index(s *policy.SameLabels, u policy.Use) *labelIndex {
	name := string(appendFlag(nil, s.All)) + string(rune('0'+u)) + strings.Join(s.Keys, "\x00")
	if x := cs.labelIndexes[name]; x != nil {
		return x
	}
	x := &labelIndex{of: s, use: u, byKey: map[string][]int{}, byLabel: map[label][]int{}}
	cs.labelIndexes[name] = x
	for _, list := range [][]workloadClass{cs.workloads, cs.remotes} {
		for i := range list {
			x.enter(&list[i])
		}
	}
	return x
}

func (x *labelIndex) enter(c *workloadClass) {
	w := c.members[0]
	if x.of.All && x.use == policy.Restricting {
		for _, labels := range [...]policy.Labels{w.Labels, w.Doubtful} {
			for k, v := range labels {
				if policy.IsUserLabel(k) {
					x.byLabel[label{k, v}] = append(x.byLabel[label{k, v}], c.id())
				}
			}
		}
	} else if key, ok := x.key(w); ok {
		x.byKey[key] = append(x.byKey[key], c.id())
	}
}

// key returns what must be equal; ok is false if w matches nothing.
func (x *labelIndex) key(w *policy.Workload) (key string, ok bool) {
	if x.of.All {
		return string(appendLabels(nil, w.Labels)), len(w.Labels) > 0
	}
	value := (*policy.Workload).Certain
	if x.use == policy.Restricting {
		value = (*policy.Workload).Label
	}
	var b []byte
	for _, k := range x.of.Keys {
		v, is := value(w, k)
		if !is {
			return "", false
		}
		b = appendString(b, v)
	}
	return string(b), true
}

// candidates returns all peers that match w, and perhaps others.
func (x *labelIndex) candidates(w *policy.Workload) []int {
	if !x.of.All || x.use == policy.Permitting {
		key, ok := x.key(w)
		if !ok {
			return nil
		}
		return x.byKey[key]
	}
	var fewest []int
	some := false
	for k, v := range w.Labels { // each is there in every reading, so that a peer must have it
		if list := x.byLabel[label{k, v}]; policy.IsUserLabel(k) && (!some || len(list) < len(fewest)) {
			fewest, some = list, true
		}
	}
	if some {
		return fewest
	}
	var all []int
	for k, v := range w.Doubtful {
		all = append(all, x.byLabel[label{k, v}]...)
	}
	return all
}
