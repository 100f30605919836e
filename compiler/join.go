package compiler

import (
	"slices"
)

// A class that comes is named by the rule lists whose rules match it, and is one more of those whom others do not name.
// So what is written of most classes stays as it is: those of which it may not are written anew.

// A saying is what one class says in one direction.
type saying struct {
	*workloadClass
	direction
}

// join enters a class, and writes what it says and what others say of it. Its number is there if it is of another node.
func (s *Step) join(c *workloadClass) {
	l := s.result.lowering
	s.classes = true
	named := l.naming(c)
	relatives := l.relatives(c)
	affected := l.affected(c, named, relatives, 1)
	s.writing(true, func() { l.writeAll(affected) })
	l.enter(c)
	for _, x := range l.labelIndexes {
		x.enter(c)
	}
	for m := range named.matchers {
		m.peers = with(m.peers, c.id)
	}
	for m := range named.byAddress {
		m.remotes++
	}
	for rl, which := range named.ruleLists {
		if len(which) == 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(rl.named, c.id, func(e exception, id int) int { return e.peer - id })
		rl.named = slices.Insert(rl.named, at, exception{c.id, rl.row(which)})
	}
	l.forgetRanks()
	if c.remote == nil {
		l.fillRuleListsOf(c, make([][]int, len(l.peers)))
		c.divided = !l.reachesItself(c)
		c.number = s.nextNumber()
	}
	l.findSameLabels(relatives)
	s.writing(false, func() {
		l.writeAll(affected)
		l.writeClass(c)
	})
}

// part removes a class, what it says and what others say of it.
func (s *Step) part(c *workloadClass) {
	l := s.result.lowering
	s.classes = true
	named := l.naming(c)
	relatives := l.relatives(c)
	affected := l.affected(c, named, relatives, -1)
	s.writing(true, func() {
		l.writeAll(affected)
		l.writeClass(c)
	})
	for rl := range named.ruleLists {
		rl.named = slices.DeleteFunc(rl.named, func(e exception) bool { return e.peer == c.id })
	}
	for m := range named.matchers {
		m.peers = without(m.peers, c.id)
	}
	for m := range named.byAddress {
		m.remotes--
	}
	for _, x := range l.labelIndexes {
		x.remove(c)
	}
	l.remove(c)
	is := func(o *workloadClass) bool { return o == c }
	if c.remote == nil {
		l.workloads = slices.DeleteFunc(l.workloads, is)
		delete(l.byLabelKey, c.labelKey)
		delete(l.byMatchKey, c.matchKey)
		l.dropRuleLists(c)
		delete(s.result.taken, c.number)
	} else {
		l.remotes = slices.DeleteFunc(l.remotes, is)
	}
	s.Numbers.Freed = append(s.Numbers.Freed, c.number)
	l.forgetRanks()
	l.findSameLabels(relatives)
	s.writing(false, func() { l.writeAll(affected) })
}

// A naming is where a class is named.
type naming struct {
	matchers  map[*matcher]bool
	byAddress map[*matcher]bool   // of these: those that match it, on another node, by its address
	ruleLists map[*ruleList][]int // the entries of each that match it, ascending; none where all match everybody
}

// naming finds what matches a class, which may be entered or not.
func (cs *classes) naming(c *workloadClass) naming {
	n := naming{map[*matcher]bool{}, map[*matcher]bool{}, map[*ruleList][]int{}}
	for u, list := range cs.matching(c) {
		for _, s := range list {
			for _, m := range cs.uses.bySelector[u][s] {
				n.matchers[m] = true
			}
		}
	}
	if c.remote != nil {
		for _, list := range cs.addresses.Of(c.remote.Address).Lists {
			for _, m := range cs.uses.byList[list] {
				n.matchers[m], n.byAddress[m] = true, true
			}
		}
	} else if c.first.OnlyDoubtful() {
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
func (cs *classes) relatives(c *workloadClass) map[*workloadClass]bool {
	list := map[*workloadClass]bool{}
	for _, x := range cs.labelIndexes {
		for _, id := range x.relatives(c.first) {
			if o := cs.peers[id].workloads; o != c && o.remote == nil {
				list[o] = true
			}
		}
	}
	return list
}

// findSameLabels finds anew whom sameLabels matches for some classes.
func (cs *classes) findSameLabels(list map[*workloadClass]bool) {
	for c := range list {
		for d, rl := range c.ruleLists {
			if len(rl.same) > 0 {
				c.sameLabels[d] = cs.sameLabelsPeers(c, rl)
			}
		}
	}
}

// affected returns what others say that may have to be written anew, where there is one peer more (1) or less (-1). Of
// all else it counts that peer.
func (l *lowering) affected(c *workloadClass, named naming, relatives map[*workloadClass]bool, more int) []saying {
	var list []saying
	for _, o := range l.workloads {
		if o == c {
			continue
		}
		for d, rl := range o.ruleLists {
			_, names := named.ruleLists[rl]
			mayTip := min(o.lead[d], o.lead[d]+more) <= 0
			if names || mayTip || relatives[o] && len(rl.same) > 0 {
				list = append(list, saying{o, direction(d)})
			} else {
				o.lead[d] += more
			}
		}
	}
	return list
}

func (l *lowering) writeAll(list []saying) {
	for _, w := range list {
		l.write(w.workloadClass, w.direction)
	}
}

// writeClass writes what a class says, but for its members.
func (l *lowering) writeClass(c *workloadClass) {
	if c.remote != nil {
		l.believe(c)
		return
	}
	l.write(c, ingress)
	l.write(c, egress)
	l.leaving(c)
}

// dropRuleLists gives back what a class is judged by.
func (l *lowering) dropRuleLists(c *workloadClass) {
	for d, rl := range c.ruleLists {
		if rl.classes--; rl.classes > 0 {
			continue
		}
		delete(l.ruleLists[d], c.selected)
		delete(l.destinations, rl)
		for _, e := range rl.entries {
			e.in = slices.DeleteFunc(e.in, func(u useOfMatcher) bool { return u.ruleList == rl })
		}
	}
}
