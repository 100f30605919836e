package classes

import (
	"iter"
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

// A labelIndexKey is equal for equal peers sameLabels in equal uses.
type labelIndexKey struct {
	all  bool
	keys string // one in each line
	use  policy.Use
}

// index returns that of a peer sameLabels in a use.
func (cs *Set) index(s *policy.SameLabels, u policy.Use) *labelIndex {
	key := labelIndexKey{s.All, strings.Join(s.Keys, "\n"), u}
	if x := cs.labelIndexes[key]; x != nil {
		return x
	}
	x := &labelIndex{of: s, use: u, byKey: map[string][]int{}, byLabel: map[label][]int{}}
	cs.labelIndexes[key] = x
	for _, list := range [][]*Class{cs.Workloads, cs.Remotes} {
		for _, c := range list {
			x.enter(c)
		}
	}
	return x
}

func (x *labelIndex) enter(c *Class) {
	if key, ok := x.key(c.First); !x.byAnyLabel() && ok {
		x.byKey[key] = with(x.byKey[key], c.ID)
	}
	for l := range x.labels(c.First) {
		x.byLabel[l] = with(x.byLabel[l], c.ID)
	}
}

// remove takes back what enter did.
func (x *labelIndex) remove(c *Class) {
	if key, ok := x.key(c.First); !x.byAnyLabel() && ok {
		removeFrom(x.byKey, key, c.ID)
	}
	for l := range x.labels(c.First) {
		removeFrom(x.byLabel, l, c.ID)
	}
}

func removeFrom[K comparable](from map[K][]int, key K, id int) {
	if from[key] = without(from[key], id); len(from[key]) == 0 {
		delete(from, key)
	}
}

// byAnyLabel says that peers are found by any label that they have in common.
func (x *labelIndex) byAnyLabel() bool { return x.of.All && x.use == policy.Restricting }

// labels visits the labels by which a workload is found.
func (x *labelIndex) labels(w *policy.Workload) iter.Seq[label] {
	return func(yield func(label) bool) {
		if !x.byAnyLabel() {
			return
		}
		for _, labels := range [...]policy.Labels{w.Labels, w.Doubtful} {
			for k, v := range labels {
				if !yield(label{k, v}) {
					return
				}
			}
		}
	}
}

// relatives returns all peers of which w may be a candidate, and perhaps others.
func (x *labelIndex) relatives(w *policy.Workload) []int {
	if key, ok := x.key(w); !x.byAnyLabel() {
		if !ok {
			return nil
		}
		return x.byKey[key]
	}
	var all []int
	for l := range x.labels(w) {
		all = append(all, x.byLabel[l]...)
	}
	return all
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
		if list := x.byLabel[label{k, v}]; !some || len(list) < len(fewest) {
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
