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

func sideOf(p *policy.Policy, d direction) *policy.Side {
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

// isAddresses reports whether the peer with an id is a class of addresses.
func (cs *classes) isAddresses(id int) bool { return id > 0 && id <= len(cs.addresses.Classes) }

// addressID is the id of a class of addresses, by its index.
func addressID(class int) int { return 1 + class }

// elsewhere reports whether p is a workload of another node.
func (p peer) elsewhere() bool { return p.workloads != nil && p.workloads.remote != nil }

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
	would // allowed; denied if the audit policies were enforced
)

// A judgement is a ruling with its reason.
type judgement struct {
	ruling ruling
	policy *policy.Policy // would: the audit policy that is recorded
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

// A docket is what one side of the connections of some classes is judged by: those of which the same policies speak.
type docket struct {
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
	sort   sort
}

// A sort of rules: enforced or audited, allow or deny.
type sort uint8

const (
	allows sort = iota
	denies
	auditAllows
	auditDenies
	sorts
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

// fillDockets finds out what all classes are judged by.
func (cs *classes) fillDockets() {
	buffer := make([][]int, len(cs.peers))
	for _, c := range cs.workloads {
		cs.fillDocketsOf(c, buffer)
	}
}

// fillDocketsOf finds out what a class of this node is judged by. The buffer has an empty list for each peer, and is
// given back so.
func (cs *classes) fillDocketsOf(c *workloadClass, buffer [][]int) {
	for d := range cs.dockets {
		dk := cs.dockets[d][c.selected]
		if dk == nil {
			dk = cs.newDocket(c, direction(d))
			dk.name(cs, buffer)
			cs.dockets[d][c.selected] = dk
		}
		dk.classes++
		c.dockets[d] = dk
		c.alike[d] = cs.alike(c, dk)
	}
}

// newDocket returns what c, and all whom the same policies select, are judged by on one side.
func (cs *classes) newDocket(c *workloadClass, d direction) *docket {
	dk := &docket{of: d, rows: map[string]*row{}}
	for at, p := range c.policies {
		side := sideOf(p, d)
		first, allow, deny := &dk.isolated, allows, denies
		if p.Audit {
			first, allow, deny = &dk.audited, auditAllows, auditDenies
		}
		if side.Isolates && *first == nil {
			*first = p
		}
		if c.permits[at] { // else it isolates c, and permits c nothing
			dk.enter(cs, p, side.Allow, allow)
		}
		dk.enter(cs, p, side.Deny, deny)
	}
	dk.others = dk.row(nil)
	return dk
}

// enter adds the rules of one list.
func (dk *docket) enter(cs *classes, p *policy.Policy, rules []policy.Rule, s sort) {
	for i := range rules {
		m, at := cs.matcher(&rules[i], s == denies || s == auditDenies), len(dk.entries)
		dk.entries = append(dk.entries, entry{m, p, s})
		m.in = append(m.in, useOfMatcher{dk, at})
		switch {
		case m.everybody:
			dk.general = append(dk.general, at)
		case m.same != nil:
			dk.same = append(dk.same, at)
		}
	}
}

// name fills dk.named. The buffer has an empty list for each peer, and is given back so.
func (dk *docket) name(cs *classes, buffer [][]int) {
	var ids []int
	put := func(id, entry int) {
		if len(buffer[id]) == 0 {
			ids = append(ids, id)
		}
		buffer[id] = append(buffer[id], entry)
	}
	for at, e := range dk.entries {
		if e.everybody {
			continue
		}
		for _, id := range e.peers {
			put(id, at)
		}
		if dk.of == ingress && e.list >= 0 {
			for _, class := range cs.addresses.Matched[e.list] {
				put(addressID(class), at)
			}
		}
	}
	slices.Sort(ids)
	dk.named = make([]exception, len(ids))
	for i, id := range ids {
		dk.named[i] = exception{id, dk.row(buffer[id])}
		buffer[id] = buffer[id][:0]
	}
}

// alike finds the peers that sameLabels matches for c.
func (cs *classes) alike(c *workloadClass, dk *docket) []exception {
	type match struct{ peer, entry int }
	var found []match
	for _, at := range dk.same {
		for _, s := range dk.entries[at].same {
			for _, id := range cs.index(s, dk.entries[at].use).candidates(c.first) {
				if s.Match(c.first, cs.peers[id].workloads.first, dk.entries[at].use) {
					found = append(found, match{id, at})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b match) int { return cmp.Or(a.peer-b.peer, a.entry-b.entry) })
	var list []exception
	for len(found) > 0 {
		id := found[0].peer
		which := slices.Clone(dk.rowOf(id).which)
		for ; len(found) > 0 && found[0].peer == id; found = found[1:] {
			which = append(which, found[0].entry)
		}
		slices.Sort(which)
		list = append(list, exception{id, dk.row(slices.Compact(which))})
	}
	return list
}

// rowOf returns what is said to a peer, but for what sameLabels adds.
func (dk *docket) rowOf(id int) *row { return rowOf(dk.named, id, dk.others) }

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
	return rowOf(c.alike[d], id, c.dockets[d].rowOf(id))
}

// judgeAddresses says whether c allows connections to a class of addresses.
func (cs *classes) judgeAddresses(c *workloadClass, to *partition.AddressClass) *row {
	dk := c.dockets[egress]
	var which []int
	for at, e := range dk.entries {
		if _, is := slices.BinarySearch(to.Lists, e.list); is && !e.everybody {
			which = append(which, at)
		}
	}
	return dk.conclude(which) // it is asked by others than the one who may enter rows
}

// row returns what is said to those whom some entries match, beside those that match everybody.
func (dk *docket) row(which []int) *row {
	var few [128]byte // on the stack, for most
	key := whichKey(few[:0], which)
	if r := dk.rows[string(key)]; r != nil {
		return r
	}
	r := dk.conclude(which)
	dk.rows[string(key)] = r
	return r
}

func whichKey(b []byte, which []int) []byte {
	for _, at := range which {
		b = binary.NativeEndian.AppendUint32(b, uint32(at))
	}
	return b
}

// conclude hears the entries that match.
func (dk *docket) conclude(which []int) *row {
	r := &row{which: slices.Clone(which)}
	all := slices.Sorted(slices.Values(slices.Concat(dk.general, which)))
	for _, at := range all {
		r.ports = append(r.ports, dk.entries[at].ports...)
	}
	slices.Sort(r.ports)
	r.ports = slices.Compact(r.ports)
	hearings := make([]hearing, len(r.ports)+1) // of all others, and then of each of ports
	for _, at := range all {
		e := &dk.entries[at]
		if e.everyPort {
			hearings[0].hear(e.sort, at)
		}
		for _, port := range e.ports {
			i, _ := slices.BinarySearch(r.ports, port)
			hearings[i+1].hear(e.sort, at)
		}
	}
	r.judgements = make([]judgement, len(hearings))
	r.uniform = true
	for i := range hearings {
		hearings[i].join(&hearings[0])
		r.judgements[i] = dk.weigh(&hearings[i])
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

// A hearing holds the first entry of each sort that matches, counted from 1; 0 is none.
type hearing [sorts]int

// hear adds an entry, by its index.
func (h *hearing) hear(s sort, at int) {
	if h[s] == 0 || at+1 < h[s] {
		h[s] = at + 1
	}
}

// join adds all that another hearing holds.
func (h *hearing) join(o *hearing) {
	for s, at := range o {
		if at != 0 {
			h.hear(sort(s), at-1)
		}
	}
}

// weigh concludes from what was heard (docs/POLICY.md: isolation, deny, audit).
func (dk *docket) weigh(h *hearing) judgement {
	why := func(s sort) reason {
		if h[s] == 0 {
			return reason{}
		}
		e := &dk.entries[h[s]-1]
		return reason{e.policy, e.rule.Position}
	}
	unsaid := dk.of == egress
	switch {
	case h[denies] != 0:
		return judgement{ruling: deny, why: why(denies)}
	case dk.isolated != nil && h[allows] == 0:
		return judgement{ruling: deny, why: reason{dk.isolated, dk.isolated.Position}, unsaid: unsaid}
	case h[auditDenies] != 0:
		return judgement{ruling: would, policy: dk.entries[h[auditDenies]-1].policy, why: why(auditDenies)}
	case dk.audited != nil && h[allows] == 0 && h[auditAllows] == 0:
		return judgement{ruling: would, policy: dk.audited, why: reason{dk.audited, dk.audited.Position},
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
	in      []useOfMatcher // the dockets that have it as an entry
}

// A useOfMatcher is the place of a matcher in a docket.
type useOfMatcher struct {
	docket *docket
	entry  int
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
			s := cs.ask.index[p.Workloads]
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
