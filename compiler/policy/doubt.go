package policy

import (
	"maps"
)

// A label of a container that its image has too, with the same value, is doubtful: nobody can tell whether the person
// who started the container gave it, or whoever built the image. So each requirement on such a label is evaluated
// twice, as if the label were there and as if it were not, and what is to be decided says which reading counts
// (docs/POLICY.md, "Labels of images").

// A Use is what a match decides.
type Use uint8

// The uses of a match.
const (
	Permitting  Use = iota // a match allows a connection: both readings must match
	Restricting            // a match isolates a workload or denies a connection: either reading suffices
)

// UseOf returns the use of a rule's peers.
func UseOf(deny bool) Use {
	if deny {
		return Restricting
	}
	return Permitting
}

// Selects reports whether w meets every requirement, in the given use.
func (s Selector) Selects(w *Workload, u Use) bool {
	for _, r := range s.Requirements {
		value, ok := w.Label(r.Key)
		met := r.met(value, ok)
		if w.Doubts(r.Key) && met == (u == Permitting) {
			met = r.met("", false)
		}
		if value == UnusableValue && r.Operator == NotIn && u == Permitting {
			met = false // nobody knows whether it is one of them
		}
		if !met {
			return false
		}
	}
	return true
}

// OnlyDoubtful reports whether w is a workload only because of doubtful labels.
func (w *Workload) OnlyDoubtful() bool {
	return len(w.Labels) == 0 && !w.Named && len(w.Doubtful)+len(w.DoubtfulFacts) > 0
}

// AllDoubtful returns the doubtful labels, also those that would not count.
func (w *Workload) AllDoubtful() Labels {
	if len(w.DoubtfulFacts) == 0 {
		return w.Doubtful
	}
	all := maps.Clone(w.DoubtfulFacts)
	maps.Copy(all, w.Doubtful)
	return all
}

// Doubts reports whether w's label with the key is doubtful.
func (w *Workload) Doubts(key string) bool {
	_, counts := w.Doubtful[key]
	_, fact := w.DoubtfulFacts[key]
	return counts || fact
}

// Certain returns a label whose origin and value are known.
func (w *Workload) Certain(key string) (string, bool) {
	v, ok := w.Labels[key]
	if !ok {
		v, ok = w.Facts[key]
	}
	return v, ok && v != UnusableValue
}

// Match reports whether two workloads have the labels with equal values. An absent label equals nothing, and who has
// no label that counts equals nobody.
func (s *SameLabels) Match(a, b *Workload, u Use) bool {
	switch {
	case s.All && u == Permitting:
		return len(a.Labels) > 0 && maps.Equal(a.Labels, b.Labels)
	case s.All:
		return mayEqual(a, b)
	}
	value := (*Workload).Certain
	if u == Restricting {
		value = (*Workload).Label
	}
	for _, k := range s.Keys {
		v, ok := value(a, k)
		if w, has := value(b, k); !ok || !has || v != w {
			return false
		}
	}
	return true
}

// mayEqual reports whether some reading of both workloads' doubtful labels gives them equal labels that count, at least
// one.
func mayEqual(a, b *Workload) bool {
	common := false
	for _, side := range [2]*Workload{a, b} {
		for _, labels := range [2]Labels{side.Labels, side.Doubtful} {
			for k := range labels {
				v, inA := a.mayCount(k)
				w, inB := b.mayCount(k)
				_, certainA := a.Labels[k]
				_, certainB := b.Labels[k]
				switch {
				case inA && inB && v == w:
					common = true
				case certainA || certainB:
					return false // it is there in every reading, and the other has not the same
				}
			}
		}
	}
	return common
}

// mayCount returns a label that counts in some reading.
func (w *Workload) mayCount(key string) (string, bool) {
	if v, ok := w.Labels[key]; ok {
		return v, true
	}
	v, ok := w.Doubtful[key]
	return v, ok
}
