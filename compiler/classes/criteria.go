package classes

import (
	"encoding/binary"
	"maps"
	"slices"

	"thole/compiler/policy"
)

// criteria are what a set of policies asks of a workload.
type criteria struct {
	selectors  []policy.Selector // the distinct ones
	index      map[*policy.Selector]int
	policies   [][]int        // by selector: the indexes of the policies whose own it is, ascending
	keys       map[string]int // of sameLabels, by their place in seen
	seen       []string       // all keys that policies name
	place      map[string]int // in seen
	userLabels bool           // sameLabels: all

	// A selector that requires a value, or else a key, can match no workload without it.
	byValue map[label][]int
	byKey   map[string][]int
	others  []int // of selectors: those that require neither
}

// A label is a key with its value.
type label struct{ key, value string }

// A selectorMatch says in which use a selector matches a workload; in one at least.
type selectorMatch struct {
	selector int
	matches  [2]bool // by use
}

func newCriteria(policies []policy.Policy) criteria {
	q := criteria{
		index: map[*policy.Selector]int{}, keys: map[string]int{}, place: map[string]int{},
		byValue: map[label][]int{}, byKey: map[string][]int{},
		seen: slices.Sorted(maps.Keys(policy.NamedKeys(policies))),
	}
	for i, k := range q.seen {
		q.place[k] = i
	}
	at := map[string]int{}
	for i := range policies {
		s := q.add(&policies[i].Selector, at)
		q.policies[s] = append(q.policies[s], i)
	}
	for r := range policy.Rules(policies) {
		for _, p := range r.Peers {
			switch {
			case p.Workloads != nil:
				q.add(p.Workloads, at)
			case p.SameLabels != nil:
				for _, k := range p.SameLabels.Keys {
					q.keys[k] = q.place[k]
				}
				q.userLabels = q.userLabels || p.SameLabels.All
			}
		}
	}
	return q
}

// add enters a selector and returns its index: that of an equal one, if there is one in at.
func (q *criteria) add(s *policy.Selector, at map[string]int) int {
	var key []byte
	for _, r := range s.Requirements {
		key = appendString(appendString(key, r.Key), string(r.Operator))
		key = binary.AppendUvarint(key, uint64(len(r.Values)))
		for _, v := range r.Values {
			key = appendString(key, v)
		}
	}
	i, known := at[string(key)]
	if !known {
		i = len(q.selectors)
		at[string(key)] = i
		q.selectors, q.policies = append(q.selectors, *s), append(q.policies, nil)
		q.enter(i, s)
	}
	q.index[s] = i
	return i
}

// enter puts a selector where matchesOf finds it.
func (q *criteria) enter(i int, s *policy.Selector) {
	requirement := func(o policy.Operator) int {
		return slices.IndexFunc(s.Requirements, func(r policy.Requirement) bool { return r.Operator == o })
	}
	if at := requirement(policy.In); at >= 0 {
		r := s.Requirements[at]
		for _, v := range slices.Compact(slices.Sorted(slices.Values(r.Values))) {
			q.byValue[label{r.Key, v}] = append(q.byValue[label{r.Key, v}], i)
		}
	} else if at := requirement(policy.Exists); at >= 0 {
		key := s.Requirements[at].Key
		q.byKey[key] = append(q.byKey[key], i)
	} else {
		q.others = append(q.others, i)
	}
}

// candidates returns the selectors that may match a workload, ascending. A label that a workload lacks in every reading
// of its doubtful labels meets neither In nor Exists.
func (q *criteria) candidates(w *policy.Workload) []int {
	list := slices.Clone(q.others)
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts, w.Doubtful, w.DoubtfulFacts} {
		for k, v := range labels {
			if _, ok := q.place[k]; ok {
				list = append(append(list, q.byValue[label{k, v}]...), q.byKey[k]...)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// matchesOf returns the selectors that match a workload, ascending.
func (q *criteria) matchesOf(w *policy.Workload) []selectorMatch {
	var list []selectorMatch
	for _, i := range q.candidates(w) {
		a := selectorMatch{selector: i}
		for u := range a.matches {
			a.matches[u] = q.selectors[i].Selects(w, policy.Use(u))
		}
		if a.matches != [2]bool{} {
			list = append(list, a)
		}
	}
	return list
}

// labelKey returns all of w that q looks at: equal views give equal answers. Most
// workloads share their view with many, and it is found out sooner than the answers.
func (q *criteria) labelKey(w *policy.Workload) []byte {
	b := appendFlag(nil, w.OnlyDoubtful())
	return q.labels(q.values(b, q.place, w), w)
}

// matchKey returns one string for all that q asks of w, whose answers are given: equal strings, equal answers.
func (q *criteria) matchKey(w *policy.Workload, given []selectorMatch) string {
	b := appendFlag(nil, w.OnlyDoubtful())
	b = binary.AppendUvarint(b, uint64(len(given)))
	for _, a := range given {
		b = binary.AppendUvarint(b, uint64(a.selector))
		b = appendFlag(appendFlag(b, a.matches[policy.Permitting]), a.matches[policy.Restricting])
	}
	return string(q.labels(q.values(b, q.keys, w), w))
}

// values appends what w has for the keys, of which places holds the places in q.seen.
func (q *criteria) values(b []byte, places map[string]int, w *policy.Workload) []byte {
	var few [16]int // on the stack, for most
	has := few[:0]
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts, w.Doubtful, w.DoubtfulFacts} {
		for k := range labels {
			if at, ok := places[k]; ok {
				has = append(has, at)
			}
		}
	}
	slices.Sort(has)
	has = slices.Compact(has)
	b = binary.AppendUvarint(b, uint64(len(has)))
	for _, at := range has {
		v, _ := w.Label(q.seen[at])
		b = appendFlag(appendString(binary.AppendUvarint(b, uint64(at)), v), w.Doubts(q.seen[at]))
	}
	return b
}

// labels appends the labels that count, where they are asked for.
func (q *criteria) labels(b []byte, w *policy.Workload) []byte {
	if !q.userLabels {
		return b
	}
	return appendLabels(appendLabels(binary.AppendUvarint(b, uint64(len(w.Labels))), w.Labels), w.Doubtful)
}

// appendLabels appends labels by their keys: equal labels give equal bytes.
func appendLabels(b []byte, l policy.Labels) []byte {
	for _, k := range slices.Sorted(maps.Keys(l)) {
		b = appendString(appendString(b, k), l[k])
	}
	return b
}

// appendString appends a string behind its length, so that what follows cannot be taken for a part of it.
func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendFlag(b []byte, is bool) []byte {
	if is {
		return append(b, 1)
	}
	return append(b, 0)
}
