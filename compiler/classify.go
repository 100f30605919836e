package compiler

import (
	"encoding/binary"
	"maps"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A workloadClass is a group of workloads that no policy of the set can tell apart.
// What is true of its first member is true of all.
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
func newClasses(policies []policy.Policy) *classes {
	cs := &classes{
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

// criteria are what a set of policies asks of a workload.
type criteria struct {
	selectors  []policy.Selector // the distinct ones
	index      map[*policy.Selector]int
	policies   [][]int        // by selector: the indexes of the policies whose own it is, ascending
	keys       map[string]int // of sameLabels, by their place in seen
	seen       []string       // all keys that are looked at
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
					q.keys[k] = 0
					q.seen = append(q.seen, k)
				}
				q.userLabels = q.userLabels || p.SameLabels.All
			}
		}
	}
	slices.Sort(q.seen)
	q.seen = slices.Compact(q.seen)
	for i, k := range q.seen {
		q.place[k] = i
		if _, ok := q.keys[k]; ok {
			q.keys[k] = i
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
		for _, r := range s.Requirements {
			q.seen = append(q.seen, r.Key)
		}
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
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts, w.Doubtful} {
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
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts, w.Doubtful} {
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
		_, doubtful := w.Doubtful[q.seen[at]]
		b = appendFlag(appendString(binary.AppendUvarint(b, uint64(at)), v), doubtful)
	}
	return b
}

// labels appends the user labels, where they are asked for.
func (q *criteria) labels(b []byte, w *policy.Workload) []byte {
	if !q.userLabels {
		return b
	}
	b = appendLabels(binary.AppendUvarint(b, uint64(len(w.Labels))), w.Labels)
	for _, k := range slices.Sorted(maps.Keys(w.Doubtful)) {
		if policy.IsUserLabel(k) {
			b = appendString(appendString(b, k), w.Doubtful[k])
		}
	}
	return b
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

// identity names a workload uniquely among those of one node; of another, by its labels
// and address.
func identity(w *policy.Workload) string {
	if w.Cgroup.Path == "" {
		return w.Name + " " + w.Labels.String()
	}
	return w.Cgroup.Path
}

// NamedKeys returns all label keys that policies name.
func NamedKeys(policies []policy.Policy) map[string]bool {
	named := map[string]bool{}
	for _, key := range newCriteria(policies).seen {
		named[key] = true
	}
	return named
}
