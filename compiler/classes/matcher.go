package classes

import (
	"slices"

	"thole/compiler/policy"
)

// A matcher is a rule, with all whom it matches.
type matcher struct {
	rule      *policy.Rule
	use       policy.Use
	everybody bool
	byLabel   bool  // it matches workloads by their labels
	peers     []int // that it matches, but for addresses and sameLabels, ascending
	same      []*policy.SameLabels
	list      int   // of partition.AddressClasses.Lists; -1: none
	everyPort bool  // it names no ports
	ports     []int // by the index of their class, ascending

	remotes int            // how many peers are on other nodes, and match by their addresses
	in      []useOfMatcher // the rule lists that have it as an entry
}

// A useOfMatcher is the place of a matcher in a rule list.
type useOfMatcher struct {
	ruleList *RuleList
	entry    int
}

// usesOfMatchers finds the matchers that a new peer may concern.
type usesOfMatchers struct {
	bySelector [2][][]*matcher // by use
	byList     [][]*matcher    // by list of partition.AddressClasses
	doubtful   []*matcher      // that match all of whom nobody knows whether they have labels
}

// matcher returns that of a rule, which allows or denies. The classes must be there.
func (cs *Set) matcher(r *policy.Rule, deny bool) *matcher {
	if m := cs.matchers[r]; m != nil {
		return m
	}
	m := &matcher{
		rule: r, use: policy.UseOf(deny), everybody: r.Peers == nil, everyPort: r.Ports == nil,
		list: cs.Addresses.ListOf(r),
	}
	cs.matchers[r] = m
	if r.Ports != nil {
		m.ports = cs.Ports.Of(r.Ports)
	}
	for _, p := range r.Peers {
		switch {
		case p.Any:
			m.everybody = true
		case p.Unlabelled:
			m.peers = append(m.peers, 0)
			if deny { // who has doubtful labels alone may be unlabelled
				m.byLabel = true
				m.peers = append(m.peers, cs.doubtful...)
				cs.uses.doubtful = append(cs.uses.doubtful, m)
			}
		case p.SameLabels != nil:
			m.same = append(m.same, p.SameLabels)
		case p.Workloads != nil:
			m.byLabel = true
			s := cs.criteria.index[p.Workloads]
			m.peers = append(m.peers, cs.matched[m.use][s]...)
			cs.uses.bySelector[m.use][s] = append(cs.uses.bySelector[m.use][s], m)
		}
	}
	if m.list >= 0 {
		for _, class := range cs.Addresses.Matched[m.list] {
			m.remotes += len(cs.remotesAt[class])
			m.peers = append(m.peers, cs.remotesAt[class]...)
		}
		cs.uses.byList[m.list] = append(cs.uses.byList[m.list], m)
	}
	slices.Sort(m.peers)
	m.peers = slices.Compact(m.peers)
	return m
}
