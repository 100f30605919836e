package classes

import "slices"

// A class that comes is named by the rule lists whose rules match it, and is one more of those that others do not name.
// So what is said by most classes stays as it is. A Naming finds those of which it may not, before and after.

// A Naming is where the rules of a set name a class, which is a peer or not.
type Naming struct {
	matchers  map[*matcher]bool
	byAddress map[*matcher]bool   // of these: those that match it, on another node, by its address
	ruleLists map[*RuleList][]int // the entries of each that match it, ascending; none where all match everybody
	relatives map[*Class]bool     // the other classes of this node for which sameLabels may match it
}

// Concerns reports whether what c says in a direction may be something else with the named class than without it, apart
// from the number of peers.
func (n *Naming) Concerns(c *Class, d Direction) bool {
	_, names := n.ruleLists[c.RuleLists[d]]
	return names || len(c.RuleLists[d].same) > 0 && n.relatives[c]
}

// Naming finds where the rules name a class.
func (cs *Set) Naming(c *Class) Naming {
	n := Naming{map[*matcher]bool{}, map[*matcher]bool{}, map[*RuleList][]int{}, cs.relatives(c)}
	for u, list := range cs.matching(c) {
		for _, s := range list {
			for _, m := range cs.uses.bySelector[u][s] {
				n.matchers[m] = true
			}
		}
	}
	if c.Remote != nil {
		for _, list := range cs.Addresses.Of(c.Remote.Address).Lists {
			for _, m := range cs.uses.byList[list] {
				n.matchers[m], n.byAddress[m] = true, true
			}
		}
	} else if c.First.OnlyDoubtful() {
		for _, m := range cs.uses.doubtful {
			n.matchers[m] = true
		}
	}
	for m := range n.matchers {
		for _, in := range m.in {
			which := n.ruleLists[in.ruleList]
			if !m.everybody {
				which = append(which, in.entry)
			}
			n.ruleLists[in.ruleList] = which
		}
	}
	for rl, which := range n.ruleLists {
		slices.Sort(which)
		n.ruleLists[rl] = slices.Compact(which)
	}
	return n
}

// relatives returns the other classes of this node for which sameLabels may match c.
func (cs *Set) relatives(c *Class) map[*Class]bool {
	list := map[*Class]bool{}
	for _, x := range cs.labelIndexes {
		for _, id := range x.relatives(c.First) {
			if o := cs.Peers[id].Class; o != c && o.Remote == nil {
				list[o] = true
			}
		}
	}
	return list
}

// Enter makes a new class a peer, which the rules name so, and finds what it is judged by.
func (cs *Set) Enter(c *Class, n Naming) {
	cs.enter(c)
	for _, x := range cs.labelIndexes {
		x.enter(c)
	}
	for m := range n.matchers {
		m.peers = with(m.peers, c.ID)
	}
	for m := range n.byAddress {
		m.remotes++
	}
	for rl, which := range n.ruleLists {
		if len(which) == 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(rl.Named, c.ID, func(e Exception, id int) int { return e.Peer - id })
		rl.Named = slices.Insert(rl.Named, at, Exception{c.ID, rl.row(which)})
	}
	if c.Remote == nil {
		cs.fillRuleListsOf(c, make([][]int, len(cs.Peers)))
	}
	cs.findSameLabels(n.relatives)
}

// Leave takes back what Enter did, or New. It returns the rule lists by which no class is judged any more.
func (cs *Set) Leave(c *Class, n Naming) (unused []*RuleList) {
	for rl := range n.ruleLists {
		rl.Named = slices.DeleteFunc(rl.Named, func(e Exception) bool { return e.Peer == c.ID })
	}
	for m := range n.matchers {
		m.peers = without(m.peers, c.ID)
	}
	for m := range n.byAddress {
		m.remotes--
	}
	for _, x := range cs.labelIndexes {
		x.remove(c)
	}
	cs.remove(c)
	is := func(o *Class) bool { return o == c }
	if c.Remote == nil {
		cs.Workloads = slices.DeleteFunc(cs.Workloads, is)
		delete(cs.byLabelKey, c.labelKey)
		delete(cs.byMatchKey, c.matchKey)
		unused = cs.dropRuleLists(c)
	} else {
		cs.Remotes = slices.DeleteFunc(cs.Remotes, is)
	}
	cs.findSameLabels(n.relatives)
	return unused
}

// dropRuleLists gives back what a class is judged by. It returns those that no other is judged by.
func (cs *Set) dropRuleLists(c *Class) (unused []*RuleList) {
	for d, rl := range c.RuleLists {
		if rl.classes--; rl.classes > 0 {
			continue
		}
		unused = append(unused, rl)
		delete(cs.ruleLists[d], c.selected)
		for _, e := range rl.entries {
			e.in = slices.DeleteFunc(e.in, func(u useOfMatcher) bool { return u.ruleList == rl })
		}
	}
	return unused
}

// findSameLabels finds anew which peers sameLabels matches for some classes.
func (cs *Set) findSameLabels(list map[*Class]bool) {
	for c := range list {
		for d, rl := range c.RuleLists {
			if len(rl.same) > 0 {
				c.SameLabels[d] = cs.sameLabelsPeers(c, rl)
			}
		}
	}
}
