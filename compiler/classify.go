package compiler

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
)

// A workloadClass are the workloads that no policy of the set can tell apart.
// What is true of its first member is true of all.
type workloadClass struct {
	number  uint32
	members []*Workload

	// A class that may not reach itself is divided: each member has a number of its own,
	// by which the kernel knows it from the others, since each may reach itself.
	numbers []uint32 // of the members; nil: it is not divided

	policies []*Policy // those that select it, at least to restrict it, by name
	index    int       // in classes.workloads, and behind them classes.remotes
	remote   *Remote   // on another node: its first member; policies is nil
	dockets  [2]*docket
}

// classes are everything that the table speaks of: who, whence, and on what port.
type classes struct {
	workloads []workloadClass
	remotes   []workloadClass // of other nodes
	addresses *addressClasses
	ports     *portClasses

	ask               questionnaire
	byView, byAnswers map[string]int // in workloads

	remoteClass []int // of Input.Remotes, in remotes

	matchers map[*Rule]*matcher
}

// classifyWorkloads groups workloads by all that the policies ask of them.
func (cs *classes) classifyWorkloads(policies []Policy, workloads []Workload) {
	cs.ask, cs.byView, cs.byAnswers = questions(policies), map[string]int{}, map[string]int{}
	for i := range workloads {
		w := &workloads[i]
		view := cs.ask.view(w)
		at, known := cs.byView[view]
		if !known {
			answers := cs.ask.answers(w)
			if at, known = cs.byAnswers[answers]; !known {
				at = len(cs.workloads)
				cs.byAnswers[answers] = at
				cs.workloads = append(cs.workloads, workloadClass{policies: selecting(policies, w), index: at})
			}
			cs.byView[view] = at
		}
		cs.workloads[at].members = append(cs.workloads[at].members, w)
	}
}

// classOf returns the index of a workload's class, if there is one of such workloads.
func (cs *classes) classOf(w *Workload) (at int, ok bool) {
	if cs == nil {
		return 0, false
	}
	if at, ok = cs.byView[cs.ask.view(w)]; !ok {
		at, ok = cs.byAnswers[cs.ask.answers(w)]
	}
	return at, ok
}

// A questionnaire is what a set of policies asks of a workload.
type questionnaire struct {
	selectors  []Selector
	keys       []string // of sameLabels
	seen       []string // all keys that are looked at
	userLabels bool     // sameLabels: all
}

func questions(policies []Policy) questionnaire {
	var q questionnaire
	seen := map[string]bool{}
	add := func(s Selector) {
		if id := fmt.Sprintf("%q", s); !seen[id] {
			seen[id] = true
			q.selectors = append(q.selectors, s)
			for _, r := range s.Requirements {
				q.seen = append(q.seen, r.Key)
			}
		}
	}
	for _, p := range policies {
		add(p.Selector)
	}
	for r := range allRules(policies) {
		for _, p := range r.Peers {
			switch {
			case p.Workloads != nil:
				add(*p.Workloads)
			case p.SameLabels != nil:
				q.keys = append(q.keys, p.SameLabels.Keys...)
				q.userLabels = q.userLabels || p.SameLabels.All
			}
		}
	}
	slices.Sort(q.keys)
	q.keys = slices.Compact(q.keys)
	q.seen = append(q.seen, q.keys...)
	slices.Sort(q.seen)
	q.seen = slices.Compact(q.seen)
	return q
}

// view returns all of w that q looks at: equal views give equal answers. Most
// workloads share their view with many, and it is found out sooner than the answers.
func (q questionnaire) view(w *Workload) string {
	b := strconv.AppendBool(nil, w.onlyDoubtful())
	b = q.values(b, q.seen, w)
	return string(q.labels(b, w))
}

// answers returns one string for all that q asks of w: equal strings, equal answers.
func (q questionnaire) answers(w *Workload) string {
	b := strconv.AppendBool(nil, w.onlyDoubtful())
	for _, s := range q.selectors {
		b = strconv.AppendBool(b, s.matches(w, permitting))
		b = strconv.AppendBool(b, s.matches(w, restricting))
	}
	b = q.values(b, q.keys, w)
	return string(q.labels(b, w))
}

// values appends what w has for the keys.
func (q questionnaire) values(b []byte, keys []string, w *Workload) []byte {
	for _, k := range keys {
		if v, ok := w.Label(k); ok {
			b = strconv.AppendQuote(b, v)
		}
		if _, ok := w.Doubtful[k]; ok {
			b = append(b, '?')
		}
		b = append(b, ',')
	}
	return b
}

// labels appends the user labels, where they are asked for.
func (q questionnaire) labels(b []byte, w *Workload) []byte {
	if !q.userLabels {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(w.Labels)) {
		b = strconv.AppendQuote(b, k)
		b = strconv.AppendQuote(b, w.Labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(w.Doubtful)) {
		if IsUserLabel(k) {
			b = strconv.AppendQuote(append(b, '?'), k)
			b = strconv.AppendQuote(b, w.Doubtful[k])
		}
	}
	return b
}

func selecting(policies []Policy, w *Workload) []*Policy {
	var list []*Policy
	for i := range policies {
		if policies[i].Selector.MayMatch(w) {
			list = append(list, &policies[i])
		}
	}
	return list
}

// identity names a workload uniquely among those of one node; of another, by its labels
// and address.
func (w *Workload) identity() string {
	if w.Cgroup.Path == "" {
		return w.Name + " " + w.Labels.String()
	}
	return w.Cgroup.Path
}

// allRules visits every rule of every policy.
func allRules(policies []Policy) iter.Seq[*Rule] {
	return func(yield func(*Rule) bool) {
		for i := range policies {
			p := &policies[i]
			for _, rules := range [][]Rule{p.Ingress.Allow, p.Ingress.Deny, p.Egress.Allow, p.Egress.Deny} {
				for j := range rules {
					if !yield(&rules[j]) {
						return
					}
				}
			}
		}
	}
}
