package classes

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"thole/compiler/policy"
)

// A Ruling is what one side of a connection says of it.
type Ruling uint8

// The rulings.
const (
	Allow Ruling = iota
	Deny
	WouldDeny // allowed; denied if the audit policies were enforced
)

func (r Ruling) String() string {
	return [...]string{Allow: "allowed", Deny: "denied", WouldDeny: "would be denied"}[r]
}

// A Judgement is a ruling with its reason.
type Judgement struct {
	Ruling Ruling
	Policy *policy.Policy // WouldDeny: the audit policy that is recorded
	why    reason

	// isolates: WouldDeny, because no rule of the audit policy allows it, and not because one denies it.
	isolates bool

	// Unsaid: egress is isolated, and no rule speaks of this peer. What was called, if that is
	// another address, may still be allowed.
	Unsaid bool
}

func (j Judgement) String() string {
	if j.why.policy == nil {
		return j.Ruling.String()
	}
	return fmt.Sprintf("%s by policy %s (%s)", j.Ruling, j.why.policy.Name, j.why.position)
}

// Same says whether the table would treat both alike.
func (j Judgement) Same(o Judgement) bool {
	return j.Ruling == o.Ruling && j.Policy == o.Policy && j.Unsaid == o.Unsaid
}

// A reason is the rule, or the policy as a whole (Position is that of its name),
// from which a judgement follows; the zero reason is that nothing isolates.
type reason struct {
	policy   *policy.Policy
	position policy.Position
}

// A RuleList is what one side of the connections of some classes is judged by: those of which the same policies speak.
type RuleList struct {
	// Named are the peers that some entry matches by what it says of them, ascending, with what is said to them. What
	// sameLabels adds depends on the class (Class.SameLabels).
	Named  []Exception
	Others *Row // what is said to all other peers

	of                Direction
	entries           []entry
	general           []int           // of entries: those that match everybody
	same              []int           // of entries: those with sameLabels
	isolated, audited *policy.Policy  // the first that isolates the classes: enforced, audited
	rows              map[string]*Row // by which of the entries match that are not general

	classes int // that are judged by it
}

// An Exception is a peer, by its id, to which something else may be said than to most.
type Exception struct {
	Peer int
	Row  *Row
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

// A Row says of connections with one peer whether they are allowed: on ports that no entry names that matches the peer,
// and on those that one names.
type Row struct {
	Signature string // equal for rows that the table would treat alike
	Uniform   bool   // all ports are judged alike

	which      []int       // the entries that match, but for those that match everybody; ascending
	ports      []int       // the classes of ports, by their index, ascending
	judgements []Judgement // of all others, and then of each of ports
}

// AllowsAll reports whether the row allows connections on every port, and no audit policy would deny one.
func (r *Row) AllowsAll() bool { return r.Uniform && r.judgements[0].Ruling == Allow }

// OtherPorts returns what is said of each port, type and protocol that no rule names.
func (r *Row) OtherPorts() Judgement { return r.judgements[0] }

// fillRuleListsOf finds out what a class of this node is judged by. The buffer has an empty list for each peer, and is
// given back so.
func (cs *Set) fillRuleListsOf(c *Class, buffer [][]int) {
	for d := range cs.ruleLists {
		rl := cs.ruleLists[d][c.selected]
		if rl == nil {
			rl = cs.newRuleList(c, Direction(d))
			rl.name(cs, buffer)
			cs.ruleLists[d][c.selected] = rl
		}
		rl.classes++
		c.RuleLists[d] = rl
		c.SameLabels[d] = cs.sameLabelsPeers(c, rl)
	}
	c.Divided = !cs.reachesItself(c)
}

// newRuleList returns what c, and all whom the same policies select, are judged by on one side.
func (cs *Set) newRuleList(c *Class, d Direction) *RuleList {
	rl := &RuleList{of: d, rows: map[string]*Row{}}
	for at, p := range c.Policies {
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
	rl.Others = rl.row(nil)
	return rl
}

// enter adds the rules of one list.
func (rl *RuleList) enter(cs *Set, p *policy.Policy, rules []policy.Rule, s ruleKind) {
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

// name fills Named. The buffer has an empty list for each peer, and is given back so.
func (rl *RuleList) name(cs *Set, buffer [][]int) {
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
		if rl.of == Ingress && e.list >= 0 {
			for _, class := range cs.Addresses.Matched[e.list] {
				put(addressID(class), at)
			}
		}
	}
	slices.Sort(ids)
	rl.Named = make([]Exception, len(ids))
	for i, id := range ids {
		rl.Named[i] = Exception{id, rl.row(buffer[id])}
		buffer[id] = buffer[id][:0]
	}
}

// sameLabelsPeers finds the peers that sameLabels matches for c.
func (cs *Set) sameLabelsPeers(c *Class, rl *RuleList) []Exception {
	type match struct{ peer, entry int }
	var found []match
	for _, at := range rl.same {
		for _, s := range rl.entries[at].same {
			for _, id := range cs.index(s, rl.entries[at].use).candidates(c.First) {
				if s.Match(c.First, cs.Peers[id].Class.First, rl.entries[at].use) {
					found = append(found, match{id, at})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b match) int { return cmp.Or(a.peer-b.peer, a.entry-b.entry) })
	var list []Exception
	for len(found) > 0 {
		id := found[0].peer
		which := slices.Clone(rl.rowOf(id).which)
		for ; len(found) > 0 && found[0].peer == id; found = found[1:] {
			which = append(which, found[0].entry)
		}
		slices.Sort(which)
		list = append(list, Exception{id, rl.row(slices.Compact(which))})
	}
	return list
}

// rowOf returns what is said to a peer, but for what sameLabels adds.
func (rl *RuleList) rowOf(id int) *Row { return rowOf(rl.Named, id, rl.Others) }

func rowOf(list []Exception, id int, others *Row) *Row {
	i, ok := slices.BinarySearchFunc(list, id, func(e Exception, id int) int { return e.Peer - id })
	if ok {
		return list[i].Row
	}
	return others
}

// Judge says whether c, as the given side of connections with a peer, allows them. For egress the peer is no class of
// addresses. That a workload may reach itself whatever it says is for the members' own numbers.
func (cs *Set) Judge(c *Class, d Direction, id int) *Row {
	if shared := cs.Peers[id].shared(); shared != nil {
		return rowOf(c.Namespaces[d], id, c.RuleLists[d].Others)
	}
	return rowOf(c.SameLabels[d], id, c.RuleLists[d].rowOf(id))
}

// row returns what is said to those whom some entries match, beside those that match everybody.
func (rl *RuleList) row(which []int) *Row {
	var few [128]byte // on the stack, for most
	key := whichKey(few[:0], which)
	if r := rl.rows[string(key)]; r != nil {
		return r
	}
	r := rl.evaluate(which)
	if len(rl.rows) >= 2*len(rl.Named)+spareRows {
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
func (rl *RuleList) evaluate(which []int) *Row {
	r := &Row{which: slices.Clone(which)}
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
	r.judgements = make([]Judgement, len(matches))
	r.Uniform = true
	for i := range matches {
		matches[i].merge(&matches[0])
		r.judgements[i] = rl.decide(&matches[i])
		r.Uniform = r.Uniform && r.judgements[i].Same(r.judgements[0])
	}
	r.Signature = r.sign()
	return r
}

// sign returns the row's signature.
func (r *Row) sign() string {
	b := r.judgements[0].appendTo(nil)
	for i, port := range r.ports {
		if j := r.judgements[i+1]; !j.Same(r.judgements[0]) {
			b = j.appendTo(binary.AppendUvarint(b, uint64(port)))
		}
	}
	return string(b)
}

// appendTo appends what the table would do.
func (j Judgement) appendTo(b []byte) []byte {
	b = appendFlag(append(b, byte(j.Ruling)), j.Unsaid)
	if j.Policy == nil {
		return appendString(b, "")
	}
	return appendString(b, j.Policy.Name)
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
func (rl *RuleList) decide(h *firstMatches) Judgement {
	why := func(s ruleKind) reason {
		if h[s] == 0 {
			return reason{}
		}
		e := &rl.entries[h[s]-1]
		return reason{e.policy, e.rule.Position}
	}
	unsaid := rl.of == Egress
	switch {
	case h[denies] != 0:
		return Judgement{Ruling: Deny, why: why(denies)}
	case rl.isolated != nil && h[allows] == 0:
		return Judgement{Ruling: Deny, why: reason{rl.isolated, rl.isolated.Position}, Unsaid: unsaid}
	case h[auditDenies] != 0:
		return Judgement{Ruling: WouldDeny, Policy: rl.entries[h[auditDenies]-1].policy, why: why(auditDenies)}
	case rl.audited != nil && h[allows] == 0 && h[auditAllows] == 0:
		return Judgement{Ruling: WouldDeny, Policy: rl.audited, why: reason{rl.audited, rl.audited.Position},
			isolates: true, Unsaid: unsaid}
	default:
		return Judgement{Ruling: Allow, why: why(allows)}
	}
}

// reachesItself says whether both sides allow c everything with its own class. If
// not, it is divided: a workload may always reach itself.
func (cs *Set) reachesItself(c *Class) bool {
	return cs.Judge(c, Ingress, c.ID).AllowsAll() && cs.Judge(c, Egress, c.ID).AllowsAll()
}

// AllowsByLabel reports whether a rule of the list may allow something because of labels.
func (rl *RuleList) AllowsByLabel() bool { return slices.ContainsFunc(rl.entries, entry.allowsByLabel) }

func (e entry) allowsByLabel() bool {
	return (e.kind == allows || e.kind == auditAllows) && (e.same != nil || e.byLabel || e.remotes > 0)
}

// OpenToAddresses reports whether some address outside this node may reach c, before rules that deny.
func (cs *Set) OpenToAddresses(c *Class) bool {
	isolated := false
	for at, p := range c.Policies {
		isolated = isolated || p.Ingress.Isolates && !p.Audit
		if !c.permits[at] {
			continue
		}
		for i := range p.Ingress.Allow {
			if m := cs.matcher(&p.Ingress.Allow[i], false); m.everybody || m.list >= 0 {
				return true
			}
		}
	}
	return !isolated
}
