package compiler

import (
	"encoding/binary"
	"maps"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A workloadClass is a group of workloads that no policy of the set can tell apart.
// So policies treat all its members like the first one.
type workloadClass struct {
	id     int // as a peer (classes.peers)
	number uint32
	first  *policy.Workload // the first member, also when that has ended
	size   int              // how many members there are

	// A class that may not reach itself is divided: each member has a number of its own,
	// by which the kernel knows it from the others, since each may reach itself.
	divided bool

	policies   []*policy.Policy // those that select it, at least to restrict it, by name
	permits    []bool           // which of these also permit it something
	selected   string           // policies and permits as a key: equal for classes with equal rule lists
	remote     *policy.Remote   // on another node; policies is nil
	ruleLists  [2]*ruleList
	sameLabels [2][]exception // by direction: the peers that sameLabels adds to the rule list's, by peer
	lead       [2]int         // by direction: of the peers that no rule names over all others (lead)

	labelKey, matchKey string // by which classes finds it
}

// classes are everything that the table speaks of: who, whence, and on what port.
type classes struct {
	workloads []*workloadClass
	remotes   []*workloadClass // of other nodes; in the order of Input.Remotes
	addresses *partition.AddressClasses
	ports     *partition.PortClasses

	peers []peer // by their id; those of free are nobody
	free  []int  // ids that were given back

	policies               []policy.Policy // by name
	settings               *policy.Settings
	criteria               criteria
	byLabelKey, byMatchKey map[string]*workloadClass

	remotesAt [][]int // by class of addresses: the peers on other nodes that speak from there, ascending

	doubtful     []int      // the classes of which nobody knows whether they have labels, as peers, ascending
	matched      [2][][]int // by use and selector (criteria.selectors): the peers that it matches, ascending
	matchers     map[*policy.Rule]*matcher
	ruleLists    [2]map[string]*ruleList // by workloadClass.selected
	labelIndexes map[string]*labelIndex
	uses         usesOfMatchers
}

// newClasses divides addresses and ports. There is no workload yet.
func newClasses(policies []policy.Policy, settings *policy.Settings) *classes {
	cs := &classes{
		settings:     settings,
		policies:     policies,
		addresses:    partition.Addresses(policies),
		ports:        partition.Ports(policies),
		criteria:     newCriteria(policies),
		byLabelKey:   map[string]*workloadClass{},
		byMatchKey:   map[string]*workloadClass{},
		ruleLists:    [2]map[string]*ruleList{{}, {}},
		matchers:     map[*policy.Rule]*matcher{},
		labelIndexes: map[string]*labelIndex{},
	}
	for u := range cs.matched {
		cs.matched[u] = make([][]int, len(cs.criteria.selectors))
	}
	cs.uses.bySelector = [2][][]*matcher{make([][]*matcher, len(cs.criteria.selectors)),
		make([][]*matcher, len(cs.criteria.selectors))}
	cs.uses.byList = make([][]*matcher, len(cs.addresses.Lists))
	cs.remotesAt = make([][]int, len(cs.addresses.Classes))
	cs.peers = append(cs.peers, peer{}) // what is unlabelled
	for i := range cs.addresses.Classes {
		cs.peers = append(cs.peers, peer{addresses: &cs.addresses.Classes[i]})
	}
	return cs
}

// enter makes c a peer: it notes which policies select it, and which selectors match it.
func (cs *classes) enter(c *workloadClass) {
	if n := len(cs.free); n > 0 {
		c.id, cs.free = cs.free[n-1], cs.free[:n-1]
	} else {
		c.id = len(cs.peers)
		cs.peers = append(cs.peers, peer{})
	}
	cs.peers[c.id] = peer{workloads: c}
	if c.first.OnlyDoubtful() && c.remote == nil {
		cs.doubtful = with(cs.doubtful, c.id)
	}
	for u, list := range cs.matching(c) {
		for _, s := range list {
			cs.matched[u][s] = with(cs.matched[u][s], c.id)
		}
	}
	if c.remote != nil {
		at := cs.addresses.Of(c.remote.Address).Index
		cs.remotesAt[at] = with(cs.remotesAt[at], c.id)
	}
}

// remove takes back what enter did.
func (cs *classes) remove(c *workloadClass) {
	cs.doubtful = without(cs.doubtful, c.id)
	for u, list := range cs.matching(c) {
		for _, s := range list {
			cs.matched[u][s] = without(cs.matched[u][s], c.id)
		}
	}
	if c.remote != nil {
		at := cs.addresses.Of(c.remote.Address).Index
		cs.remotesAt[at] = without(cs.remotesAt[at], c.id)
	}
	cs.peers[c.id] = peer{}
	cs.free = append(cs.free, c.id)
}

// with returns an ascending list with n in it, and without the list without n. Both may change the list.
func with(list []int, n int) []int {
	at, found := slices.BinarySearch(list, n)
	if found {
		return list
	}
	return slices.Insert(list, at, n)
}

func without(list []int, n int) []int {
	at, found := slices.BinarySearch(list, n)
	if !found {
		return list
	}
	return slices.Delete(list, at, at+1)
}

// matching returns, by use, the selectors that match c as a peer, ascending.
func (cs *classes) matching(c *workloadClass) (by [2][]int) {
	if c.remote != nil {
		for _, s := range cs.criteria.candidates(c.first) {
			for u := range by {
				if c.remote.Selected(c.first, &cs.criteria.selectors[s], policy.Use(u)) {
					by[u] = append(by[u], s)
				}
			}
		}
		return by
	}
	for _, a := range cs.criteria.matchesOf(c.first) {
		if a.matches[policy.Restricting] {
			by[policy.Restricting] = append(by[policy.Restricting], a.selector)
		}
		// A workload that only doubtful labels make one may be unlabelled, which no allow rule for workloads means.
		if a.matches[policy.Permitting] && !c.first.OnlyDoubtful() {
			by[policy.Permitting] = append(by[policy.Permitting], a.selector)
		}
	}
	return by
}

// newClass makes a class of a workload that is in none.
func (cs *classes) newClass(w *policy.Workload, answers []selectorMatch) *workloadClass {
	first := *w
	c := &workloadClass{first: &first}
	type selection struct {
		policy  int
		permits bool
	}
	var selections []selection
	for _, a := range answers {
		if a.matches[policy.Restricting] {
			for _, p := range cs.criteria.policies[a.selector] {
				selections = append(selections, selection{p, a.matches[policy.Permitting]})
			}
		}
	}
	slices.SortFunc(selections, func(a, b selection) int { return a.policy - b.policy })
	var key []byte
	for _, s := range selections {
		c.policies = append(c.policies, &cs.policies[s.policy])
		c.permits = append(c.permits, s.permits)
		key = appendFlag(binary.AppendUvarint(key, uint64(s.policy)), s.permits)
	}
	c.selected = string(key)
	return c
}

// classFor returns the class of a workload, and makes it, without entering it, if there is none.
func (cs *classes) classFor(w *policy.Workload) (c *workloadClass, made bool) {
	view := cs.criteria.labelKey(w)
	if c = cs.byLabelKey[string(view)]; c != nil {
		return c, false
	}
	answers := cs.criteria.matchesOf(w)
	key := cs.criteria.matchKey(w, answers)
	if c = cs.byMatchKey[key]; c != nil {
		return c, false
	}
	c = cs.newClass(w, answers)
	c.labelKey, c.matchKey = string(view), key
	cs.byLabelKey[c.labelKey], cs.byMatchKey[c.matchKey] = c, c
	cs.workloads = append(cs.workloads, c)
	return c, true
}

// classOf returns a workload's class, nil if there is none of such workloads.
func (cs *classes) classOf(w *policy.Workload) *workloadClass {
	if cs == nil {
		return nil
	}
	if c := cs.byLabelKey[string(cs.criteria.labelKey(w))]; c != nil {
		return c
	}
	return cs.byMatchKey[cs.criteria.matchKey(w, cs.criteria.matchesOf(w))]
}

// identity names a workload uniquely among those of one node; of another, by its labels
// and address.
func identity(w *policy.Workload) string {
	if w.Cgroup.Path == "" {
		return w.Name + " " + given(w).String()
	}
	return w.Cgroup.Path
}

// given returns the labels of a workload of another node, those that do not count on this one as well: all that its
// node proved, by which it is told from others.
func given(w *policy.Workload) policy.Labels {
	all := maps.Clone(w.Labels)
	for key, value := range w.Facts {
		if key != policy.NodeFact {
			all[key] = value
		}
	}
	return all
}
