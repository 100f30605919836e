package compiler

import (
	"cmp"
	"encoding/binary"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A direction is a side of a policy: what comes in or what goes out.
type direction uint8

const (
	ingress direction = iota
	egress
)

func policySide(p *policy.Policy, d direction) *policy.Side {
	if d == ingress {
		return &p.Ingress
	}
	return &p.Egress
}

// A peer is the other end of a connection: one class of workloads, one class of
// addresses outside this node, or (both nil) what is unlabelled on this node.
type peer struct {
	workloads *workloadClass
	addresses *partition.AddressClass
}

// A peer's id is its place in classes.peers: 0 is what is unlabelled on this node; then come the classes of addresses;
// then those of workloads, of this node and of others, as they came.

// addressID is the id of a class of addresses, by its index.
func addressID(class int) int { return 1 + class }

// isRemote reports whether p is a workload of another node.
func (p peer) isRemote() bool { return p.workloads != nil && p.workloads.remote != nil }

func (p peer) number() uint32 {
	switch {
	case p.workloads != nil:
		return p.workloads.number
	case p.addresses != nil:
		return p.addresses.Number
	default:
		return 0
	}
}

// A ruling is what one side of a connection says of it.
type ruling uint8

const (
	allow ruling = iota
	deny
	wouldDeny // allowed; denied if the audit policies were enforced
)

// A judgement is a ruling with its reason.
type judgement struct {
	ruling ruling
	policy *policy.Policy // wouldDeny: the audit policy that is recorded
	why    reason

	// unsaid: egress is isolated, and no rule speaks of this peer. What was called, if that is
	// another address, may still be allowed.
	unsaid bool
}

// same says whether the table would treat both alike.
func (j judgement) same(o judgement) bool {
	return j.ruling == o.ruling && j.policy == o.policy && j.unsaid == o.unsaid
}

// A reason is the rule, or the policy as a whole (Position is that of its name),
// from which a judgement follows; the zero reason is that nothing isolates.
type reason struct {
	policy   *policy.Policy
	position policy.Position
}

// A ruleList is what one side of the connections of some classes is judged by: those of which the same policies speak.
type ruleList struct {
	of                direction
	entries           []entry
	general           []int           // of entries: those that match everybody
	isolated, audited *policy.Policy  // the first that isolates the classes: enforced, audited
	rows              map[string]*row // by which of the other entries match
	others            *row            // of those whom no other entry matches

	// named are the peers that some other entry matches by what it says of them, ascending, with what is said to them.
	// What sameLabels adds depends on the class.
	named []exception
	same  []int // of entries: those with sameLabels

	classes int // that are judged by it
}

// An exception is a peer to which something else may be said than to most.
type exception struct {
	peer int
	row  *row
}

// An entry is a rule of a policy that selects the class.
type entry struct {
	*matcher
	policy *policy.Policy
	kind   ruleKind
}

// A ruleKind: enforced or audited, allow or deny.
type ruleKind uint8

const (
	allows ruleKind = iota
	denies
	auditAllows
	auditDenies
	ruleKinds
)

// A row says of connections with one peer whether they are allowed: on ports that no entry names that matches the peer,
// and on those that one names.
type row struct {
	which      []int       // the entries that match, but for those that match everybody; ascending
	ports      []int       // the classes of ports, by their index, ascending
	judgements []judgement // of all others, and then of each of ports
	signature  string      // equal for rows that the table would treat alike
	uniform    bool        // all ports are judged alike
}

func (r *row) allowsAll() bool { return r.uniform && r.judgements[0].ruling == allow }

// fillRuleLists finds out what all classes are judged by.
func (cs *classes) fillRuleLists() {
	buffer := make([][]int, len(cs.peers))
	for _, c := range cs.workloads {
		cs.fillRuleListsOf(c, buffer)
	}
}

// fillRuleListsOf finds out what a class of this node is judged by. The buffer has an empty list for each peer, and is
// given back so.
func (cs *classes) fillRuleListsOf(c *workloadClass, buffer [][]int) {
	for d := range cs.ruleLists {
		rl := cs.ruleLists[d][c.selected]
		if rl == nil {
			rl = cs.newRuleList(c, direction(d))
			rl.name(cs, buffer)
			cs.ruleLists[d][c.selected] = rl
		}
		rl.classes++
		c.ruleLists[d] = rl
		c.sameLabels[d] = cs.sameLabelsPeers(c, rl)
	}
}

// newRuleList returns what c, and all whom the same policies select, are judged by on one side.
func (cs *classes) newRuleList(c *workloadClass, d direction) *ruleList {
	rl := &ruleList{of: d, rows: map[string]*row{}}
	for at, p := range c.policies {
		side := policySide(p, d)
		first, allow, deny := &rl.isolated, allows, denies
		if p.Audit {
			first, allow, deny = &rl.audited, auditAllows, auditDenies
		}
		if side.Isolates && *first == nil {
			*first = p
		}
		if c.permits[at] { // else it isolates c, and permits c nothing
			rl.enter(cs, p, side.Allow, allow)
		}
		rl.enter(cs, p, side.Deny, deny)
	}
	rl.others = rl.row(nil)
	return rl
}

// enter adds the rules of one list.
func (rl *ruleList) enter(cs *classes, p *policy.Policy, rules []policy.Rule, s ruleKind) {
	for i := range rules {
		m, at := cs.matcher(&rules[i], s == denies || s == auditDenies), len(rl.entries)
		rl.entries = append(rl.entries, entry{m, p, s})
		m.in = append(m.in, useOfMatcher{rl, at})
		switch {
		case m.everybody:
			rl.general = append(rl.general, at)
		case m.same != nil:
			rl.same = append(rl.same, at)
		}
	}
}

// name fills rl.named. The buffer has an empty list for each peer, and is given back so.
func (rl *ruleList) name(cs *classes, buffer [][]int) {
	var ids []int
	put := func(id, entry int) {
		if len(buffer[id]) == 0 {
			ids = append(ids, id)
		}
		buffer[id] = append(buffer[id], entry)
	}
	for at, e := range rl.entries {
		if e.everybody {
			continue
		}
		for _, id := range e.peers {
			put(id, at)
		}
		if rl.of == ingress && e.list >= 0 {
			for _, class := range cs.addresses.Matched[e.list] {
				put(addressID(class), at)
			}
		}
	}
	slices.Sort(ids)
	rl.named = make([]exception, len(ids))
	for i, id := range ids {
		rl.named[i] = exception{id, rl.row(buffer[id])}
		buffer[id] = buffer[id][:0]
	}
}

// sameLabelsPeers finds the peers that sameLabels matches for c.
func (cs *classes) sameLabelsPeers(c *workloadClass, rl *ruleList) []exception {
	type match struct{ peer, entry int }
	var found []match
	for _, at := range rl.same {
		for _, s := range rl.entries[at].same {
			for _, id := range cs.index(s, rl.entries[at].use).candidates(c.first) {
				if s.Match(c.first, cs.peers[id].workloads.first, rl.entries[at].use) {
					found = append(found, match{id, at})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b match) int { return cmp.Or(a.peer-b.peer, a.entry-b.entry) })
	var list []exception
	for len(found) > 0 {
		id := found[0].peer
		which := slices.Clone(rl.rowOf(id).which)
		for ; len(found) > 0 && found[0].peer == id; found = found[1:] {
			which = append(which, found[0].entry)
		}
		slices.Sort(which)
		list = append(list, exception{id, rl.row(slices.Compact(which))})
	}
	return list
}

// rowOf returns what is said to a peer, but for what sameLabels adds.
func (rl *ruleList) rowOf(id int) *row { return rowOf(rl.named, id, rl.others) }

func rowOf(list []exception, id int, others *row) *row {
	i, ok := slices.BinarySearchFunc(list, id, func(e exception, id int) int { return e.peer - id })
	if ok {
		return list[i].row
	}
	return others
}

// judge says whether c, as the given side of connections with a peer, allows them. For egress the peer is no class of
// addresses. That a workload may reach itself whatever it says is for the members' own numbers.
func (cs *classes) judge(c *workloadClass, d direction, id int) *row {
	return rowOf(c.sameLabels[d], id, c.ruleLists[d].rowOf(id))
}

// judgeAddresses says whether c allows connections to a class of addresses.
func (cs *classes) judgeAddresses(c *workloadClass, to *partition.AddressClass) *row {
	rl := c.ruleLists[egress]
	var which []int
	for at, e := range rl.entries {
		if _, is := slices.BinarySearch(to.Lists, e.list); is && !e.everybody {
			which = append(which, at)
		}
	}
	return rl.evaluate(which) // it is asked by others than the one who may enter rows
}

// row returns what is said to those whom some entries match, beside those that match everybody.
func (rl *ruleList) row(which []int) *row {
	var few [128]byte // on the stack, for most
	key := whichKey(few[:0], which)
	if r := rl.rows[string(key)]; r != nil {
		return r
	}
	r := rl.evaluate(which)
	if len(rl.rows) >= 2*len(rl.named)+spareRows {
		clear(rl.rows) // most are of classes that ended
	}
	rl.rows[string(key)] = r
	return r
}

// spareRows is how many rows a ruleList keeps for classes that may come again, and for what sameLabels adds.
const spareRows = 256

func whichKey(b []byte, which []int) []byte {
	for _, at := range which {
		b = binary.NativeEndian.AppendUint32(b, uint32(at))
	}
	return b
}

// evaluate finds what the entries say that match.
func (rl *ruleList) evaluate(which []int) *row {
	r := &row{which: slices.Clone(which)}
	all := slices.Sorted(slices.Values(slices.Concat(rl.general, which)))
	for _, at := range all {
		r.ports = append(r.ports, rl.entries[at].ports...)
	}
	slices.Sort(r.ports)
	r.ports = slices.Compact(r.ports)
	matches := make([]firstMatches, len(r.ports)+1) // of all others, and then of each of ports
	for _, at := range all {
		e := &rl.entries[at]
		if e.everyPort {
			matches[0].add(e.kind, at)
		}
		for _, port := range e.ports {
			i, _ := slices.BinarySearch(r.ports, port)
			matches[i+1].add(e.kind, at)
		}
	}
	r.judgements = make([]judgement, len(matches))
	r.uniform = true
	for i := range matches {
		matches[i].merge(&matches[0])
		r.judgements[i] = rl.decide(&matches[i])
		r.uniform = r.uniform && r.judgements[i].same(r.judgements[0])
	}
	r.signature = r.sign()
	return r
}

// sign returns the row's signature.
func (r *row) sign() string {
	b := r.judgements[0].appendTo(nil)
	for i, port := range r.ports {
		if j := r.judgements[i+1]; !j.same(r.judgements[0]) {
			b = j.appendTo(binary.AppendUvarint(b, uint64(port)))
		}
	}
	return string(b)
}

// appendTo appends what the table would do.
func (j judgement) appendTo(b []byte) []byte {
	b = appendFlag(append(b, byte(j.ruling)), j.unsaid)
	if j.policy == nil {
		return appendString(b, "")
	}
	return appendString(b, j.policy.Name)
}

// firstMatches hold the first entry of each kind that matches, counted from 1; 0 is none.
type firstMatches [ruleKinds]int

// add adds an entry, by its index.
func (h *firstMatches) add(s ruleKind, at int) {
	if h[s] == 0 || at+1 < h[s] {
		h[s] = at + 1
	}
}

// merge adds all that another one holds.
func (h *firstMatches) merge(o *firstMatches) {
	for s, at := range o {
		if at != 0 {
			h.add(ruleKind(s), at-1)
		}
	}
}

// decide concludes from the first matches (docs/POLICY.md: isolation, deny, audit).
func (rl *ruleList) decide(h *firstMatches) judgement {
	why := func(s ruleKind) reason {
		if h[s] == 0 {
			return reason{}
		}
		e := &rl.entries[h[s]-1]
		return reason{e.policy, e.rule.Position}
	}
	unsaid := rl.of == egress
	switch {
	case h[denies] != 0:
		return judgement{ruling: deny, why: why(denies)}
	case rl.isolated != nil && h[allows] == 0:
		return judgement{ruling: deny, why: reason{rl.isolated, rl.isolated.Position}, unsaid: unsaid}
	case h[auditDenies] != 0:
		return judgement{ruling: wouldDeny, policy: rl.entries[h[auditDenies]-1].policy, why: why(auditDenies)}
	case rl.audited != nil && h[allows] == 0 && h[auditAllows] == 0:
		return judgement{ruling: wouldDeny, policy: rl.audited, why: reason{rl.audited, rl.audited.Position},
			unsaid: unsaid}
	default:
		return judgement{ruling: allow, why: why(allows)}
	}
}

// A matcher is a rule, with all whom it matches.
type matcher struct {
	rule      *policy.Rule
	use       policy.Use
	everybody bool
	byLabel   bool  // it matches workloads by their labels
	peers     []int // that it matches, but for addresses and sameLabels, ascending
	same      []*policy.SameLabels
	list      int   // of addressClasses; -1: none
	everyPort bool  // it names no ports
	ports     []int // by the index of their class, ascending

	remotes int            // how many peers are on other nodes, and match by their addresses
	in      []useOfMatcher // the rule lists that have it as an entry
}

// A useOfMatcher is the place of a matcher in a rule list.
type useOfMatcher struct {
	ruleList *ruleList
	entry    int
}

// usesOfMatchers finds the matchers that a new peer may concern.
type usesOfMatchers struct {
	bySelector [2][][]*matcher // by use
	byList     [][]*matcher    // by list of addressClasses
	doubtful   []*matcher      // that match all of whom nobody knows whether they have labels
}

// matcher returns that of a rule, which allows or denies. The classes must be there.
func (cs *classes) matcher(r *policy.Rule, deny bool) *matcher {
	if m := cs.matchers[r]; m != nil {
		return m
	}
	m := &matcher{
		rule: r, use: policy.UseOf(deny), everybody: r.Peers == nil, everyPort: r.Ports == nil,
		list: cs.addresses.ListOf(r),
	}
	cs.matchers[r] = m
	if r.Ports != nil {
		m.ports = cs.ports.Of(r.Ports)
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
		for _, class := range cs.addresses.Matched[m.list] {
			m.remotes += len(cs.remotesAt[class])
			m.peers = append(m.peers, cs.remotesAt[class]...)
		}
		cs.uses.byList[m.list] = append(cs.uses.byList[m.list], m)
	}
	slices.Sort(m.peers)
	m.peers = slices.Compact(m.peers)
	return m
}

// reachesItself says whether both sides allow c everything with its own class. If
// not, it is divided: a workload may always reach itself.
func (cs *classes) reachesItself(c *workloadClass) bool {
	return cs.judge(c, ingress, c.id).allowsAll() && cs.judge(c, egress, c.id).allowsAll()
}
