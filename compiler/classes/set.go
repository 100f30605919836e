package classes

import (
	"encoding/binary"
	"iter"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A Set is all that a table distinguishes: classes of workloads, of addresses and of ports.
type Set struct {
	Workloads []*Class // of this node, in the order of their first members
	Remotes   []*Class // of other nodes, in the order in which they came
	// Namespaces are those of network namespaces that several classes share.
	Namespaces []*Class
	Addresses  *partition.AddressClasses
	Ports      *partition.PortClasses

	// Peers are by their id: 0 is what is unlabelled on this node; then come the classes of addresses; then those of
	// workloads, of this node and of others, as they came. Of a class that left there is an empty one.
	Peers []Peer
	free  []int // ids that were given back

	settings               *policy.Settings
	policies               []policy.Policy // by name
	criteria               criteria
	byLabelKey, byMatchKey map[string]*Class
	byShared               map[string]*Class // of Namespaces

	remotesAt [][]int // by class of addresses: the peers on other nodes that speak from there, ascending

	doubtful     []int      // the classes of which nobody knows whether they have labels, as peers, ascending
	matched      [2][][]int // by use and selector (criteria.selectors): the peers that it matches, ascending
	matchers     map[*policy.Rule]*matcher
	ruleLists    [2]map[string]*RuleList // by Class.selected
	labelIndexes map[labelIndexKey]*labelIndex
	uses         usesOfMatchers
}

// New divides addresses, ports and workloads by what policies can tell apart, and finds what each class is judged by.
// It returns the class of each workload, too. The policies are sorted by name, and must not change. The settings say
// which labels of other nodes' workloads count.
func New(
	policies []policy.Policy, settings *policy.Settings, workloads []*policy.Workload, remotes []policy.Remote,
) (*Set, []*Class) {
	cs := newSet(policies, settings)
	of := make([]*Class, len(workloads))
	for i, w := range workloads {
		c, made := cs.ClassFor(w)
		if made {
			cs.enter(c)
		}
		c.Size++
		of[i] = c
	}
	for i := range remotes {
		cs.enter(cs.ClassForRemote(&remotes[i]))
	}
	buffer := make([][]int, len(cs.Peers))
	for _, c := range cs.Workloads {
		cs.fillRuleListsOf(c, buffer)
	}
	return cs, of
}

// newSet divides addresses and ports. There is no workload yet.
func newSet(policies []policy.Policy, settings *policy.Settings) *Set {
	cs := &Set{
		settings:     settings,
		policies:     policies,
		Addresses:    partition.Addresses(policies),
		Ports:        partition.Ports(policies),
		criteria:     newCriteria(policies),
		byLabelKey:   map[string]*Class{},
		byMatchKey:   map[string]*Class{},
		byShared:     map[string]*Class{},
		ruleLists:    [2]map[string]*RuleList{{}, {}},
		matchers:     map[*policy.Rule]*matcher{},
		labelIndexes: map[labelIndexKey]*labelIndex{},
	}
	for u := range cs.matched {
		cs.matched[u] = make([][]int, len(cs.criteria.selectors))
		cs.uses.bySelector[u] = make([][]*matcher, len(cs.criteria.selectors))
	}
	cs.uses.byList = make([][]*matcher, len(cs.Addresses.Lists))
	cs.remotesAt = make([][]int, len(cs.Addresses.Classes))
	cs.Peers = append(cs.Peers, Peer{}) // what is unlabelled
	for i := range cs.Addresses.Classes {
		cs.Peers = append(cs.Peers, Peer{Addresses: &cs.Addresses.Classes[i]})
	}
	return cs
}

// PeerOf returns what another node proved as the peer that selectors see.
func (cs *Set) PeerOf(r *policy.Remote) *policy.Workload { return r.Workload(cs.settings) }

// enter makes c a peer, and puts it into the lists of the peers that selectors and addresses match.
func (cs *Set) enter(c *Class) {
	if n := len(cs.free); n > 0 {
		c.ID, cs.free = cs.free[n-1], cs.free[:n-1]
	} else {
		c.ID = len(cs.Peers)
		cs.Peers = append(cs.Peers, Peer{})
	}
	cs.Peers[c.ID] = Peer{Class: c}
	for list := range cs.listsWith(c) {
		*list = with(*list, c.ID)
	}
}

// remove takes back what enter did.
func (cs *Set) remove(c *Class) {
	for list := range cs.listsWith(c) {
		*list = without(*list, c.ID)
	}
	cs.Peers[c.ID] = Peer{}
	cs.free = append(cs.free, c.ID)
}

// listsWith visits the lists of peers in which c is, as long as it is a peer.
func (cs *Set) listsWith(c *Class) iter.Seq[*[]int] {
	return func(yield func(*[]int) bool) {
		if c.First.OnlyDoubtful() && c.Remote == nil && !yield(&cs.doubtful) {
			return
		}
		for u, selectors := range cs.matching(c) {
			for _, s := range selectors {
				if !yield(&cs.matched[u][s]) {
					return
				}
			}
		}
		if c.Remote != nil {
			yield(&cs.remotesAt[cs.Addresses.Of(c.Remote.Address).Index])
		}
	}
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
func (cs *Set) matching(c *Class) (by [2][]int) {
	if c.Remote != nil {
		for _, s := range cs.criteria.candidates(c.First) {
			for u := range by {
				if c.Remote.Selected(c.First, &cs.criteria.selectors[s], policy.Use(u)) {
					by[u] = append(by[u], s)
				}
			}
		}
		return by
	}
	for _, a := range cs.criteria.matchesOf(c.First) {
		if a.matches[policy.Restricting] {
			by[policy.Restricting] = append(by[policy.Restricting], a.selector)
		}
		// A workload that only doubtful labels make one may be unlabelled, which no allow rule for workloads means.
		if a.matches[policy.Permitting] && !c.First.OnlyDoubtful() {
			by[policy.Permitting] = append(by[policy.Permitting], a.selector)
		}
	}
	return by
}

// newClass makes a class of a workload that is in none.
func (cs *Set) newClass(w *policy.Workload, answers []selectorMatch) *Class {
	first := *w
	c := &Class{First: &first}
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
		c.Policies = append(c.Policies, &cs.policies[s.policy])
		c.permits = append(c.permits, s.permits)
		key = appendFlag(binary.AppendUvarint(key, uint64(s.policy)), s.permits)
	}
	c.selected = string(key)
	return c
}

// ClassFor returns the class of a workload, and makes it if there is none: then Enter is to make it a peer.
func (cs *Set) ClassFor(w *policy.Workload) (c *Class, made bool) {
	labels := cs.criteria.labelKey(w)
	if c = cs.byLabelKey[string(labels)]; c != nil {
		return c, false
	}
	answers := cs.criteria.matchesOf(w)
	key := cs.criteria.matchKey(w, answers)
	if c = cs.byMatchKey[key]; c != nil {
		return c, false
	}
	c = cs.newClass(w, answers)
	c.labelKey, c.matchKey = string(labels), key
	cs.byLabelKey[c.labelKey], cs.byMatchKey[c.matchKey] = c, c
	cs.Workloads = append(cs.Workloads, c)
	return c, true
}

// ClassForRemote makes a class of what another node proved, also where no policy tells two of them apart: the
// connections of today keep its number when the policies of tomorrow do. Enter is to make it a peer.
func (cs *Set) ClassForRemote(r *policy.Remote) *Class {
	c := &Class{Remote: r, First: cs.PeerOf(r), Size: 1}
	cs.Remotes = append(cs.Remotes, c)
	return c
}

// ClassOf returns a workload's class, nil if there is none of such workloads.
func (cs *Set) ClassOf(w *policy.Workload) *Class {
	if c := cs.byLabelKey[string(cs.criteria.labelKey(w))]; c != nil {
		return c
	}
	return cs.byMatchKey[cs.criteria.matchKey(w, cs.criteria.matchesOf(w))]
}

// Selects reports whether a policy of the set selects a workload of this node.
func (cs *Set) Selects(p *policy.Policy) bool {
	return slices.ContainsFunc(cs.matched[policy.Restricting][cs.criteria.index[&p.Selector]], func(id int) bool {
		return !cs.Peers[id].IsRemote()
	})
}
