package compiler

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// A workloadClass are the workloads that no policy of the set can tell apart.
// What is true of its first member is true of all.
type workloadClass struct {
	number   uint32
	members  []*Workload
	policies []*Policy // those that select it, by name
}

// classes are everything that the table speaks of: who, whence, and on what port.
type classes struct {
	workloads []workloadClass
	addresses *addressClasses
	ports     *portClasses

	masks map[*Rule][]bool // which classes of ports a rule names
}

// classifyWorkloads groups workloads by all that the policies ask of them. Those
// of which alone says so get a class of their own.
func classifyWorkloads(policies []Policy, workloads []Workload, alone func(*Workload) bool) []workloadClass {
	ask := questions(policies)
	groups := map[string]*workloadClass{}
	var order []string
	for i := range workloads {
		w := &workloads[i]
		key := ask.answers(w)
		if alone(w) {
			key = w.identity()
		}
		g, ok := groups[key]
		if !ok {
			g = &workloadClass{policies: selecting(policies, w)}
			groups[key] = g
			order = append(order, key)
		}
		g.members = append(g.members, w)
	}
	list := make([]workloadClass, len(order))
	for i, key := range order {
		list[i] = *groups[key]
	}
	return list
}

// A questionnaire is what a set of policies asks of a workload.
type questionnaire struct {
	selectors  []Selector
	keys       []string // of sameLabels
	userLabels bool     // sameLabels: all
}

func questions(policies []Policy) questionnaire {
	var q questionnaire
	seen := map[string]bool{}
	add := func(s Selector) {
		if id := fmt.Sprintf("%q", s); !seen[id] {
			seen[id] = true
			q.selectors = append(q.selectors, s)
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
	return q
}

// answers returns one string for all that q asks of w: equal strings, equal answers.
func (q questionnaire) answers(w *Workload) string {
	var b strings.Builder
	for _, s := range q.selectors {
		b.WriteString(strconv.FormatBool(s.Matches(w.Label)) + ",")
	}
	for _, k := range q.keys {
		if v, ok := w.Label(k); ok {
			b.WriteString(strconv.Quote(v))
		}
		b.WriteByte(',')
	}
	if q.userLabels {
		fmt.Fprintf(&b, "%q", map[string]string(w.Labels))
	}
	return b.String()
}

func selecting(policies []Policy, w *Workload) []*Policy {
	var list []*Policy
	for i := range policies {
		if policies[i].Selector.Matches(w.Label) {
			list = append(list, &policies[i])
		}
	}
	return list
}

// identity names a workload uniquely among those of one node.
func (w *Workload) identity() string { return w.Cgroup.Path }

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
