package compiler

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A direction is a side of a policy: what comes in or what goes out.
type direction uint8

const (
	ingress direction = iota
	egress
)

func (p *Policy) side(d direction) *Side {
	if d == ingress {
		return &p.Ingress
	}
	return &p.Egress
}

// A peer is the other end of a connection: one class of workloads, one class of
// addresses outside this node, or (both nil) what is unlabelled on this node.
type peer struct {
	workloads *workloadClass
	addresses *addressClass
}

// elsewhere reports whether p is a workload of another node.
func (p peer) elsewhere() bool { return p.workloads != nil && p.workloads.remote != nil }

func (p peer) number() uint32 {
	switch {
	case p.workloads != nil:
		return p.workloads.number
	case p.addresses != nil:
		return p.addresses.number
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
	policy *Policy // would: the audit policy that is recorded
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
	policy   *Policy
	position Position
}

// A docket is what one side of a class's connections is judged by.
type docket struct {
	of                direction
	entries           []entry
	isolated, audited *Policy // the first that isolates the class: enforced, audited

	// ports are the classes of ports that an entry tells from the rest, by their index,
	// ascending. A row has a judgement of the rest, and then of each of these.
	ports []int

	rows map[string]*row // by which entries match
}

// An entry is a rule of a policy that selects the class.
type entry struct {
	*matcher
	policy *Policy
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

// A row says of connections with one peer whether they are allowed: on ports that the
// docket does not tell apart, and on each of docket.ports.
type row struct {
	judgements []judgement
	signature  string // equal for rows that the table would treat alike
}

// docket returns what c is judged by, on one side.
func (cs *classes) docket(c *workloadClass, d direction) *docket {
	if dk := c.dockets[d]; dk != nil {
		return dk
	}
	dk := &docket{of: d, rows: map[string]*row{}}
	c.dockets[d] = dk
	named := make([]bool, len(cs.ports.classes))
	for _, policy := range c.policies {
		side := policy.side(d)
		first, allow, deny := &dk.isolated, allows, denies
		if policy.Audit {
			first, allow, deny = &dk.audited, auditAllows, auditDenies
		}
		if side.Isolates && *first == nil {
			*first = policy
		}
		for _, list := range []struct {
			rules []Rule
			sort  sort
		}{{side.Allow, allow}, {side.Deny, deny}} {
			if list.sort == allow && !policy.Selector.matches(c.members[0], permitting) {
				continue // it isolates c, and permits c nothing
			}
			for i := range list.rules {
				m := cs.matcher(&list.rules[i], list.sort == denies || list.sort == auditDenies)
				dk.entries = append(dk.entries, entry{m, policy, list.sort})
				for at, is := range m.ports {
					named[at] = named[at] || is
				}
			}
		}
	}
	for at, is := range named {
		if is {
			dk.ports = append(dk.ports, at)
		}
	}
	return dk
}

// judge says whether c, as the given side of connections with p, allows them. That a
// workload may reach itself whatever it says is for the sets itselfN.
func (cs *classes) judge(c *workloadClass, d direction, p peer) *row {
	return cs.docket(c, d).judge(func(m *matcher) bool { return m.matches(c, p) })
}

// judge hears the entries that match.
func (dk *docket) judge(matches func(*matcher) bool) *row {
	var few [128]byte // on the stack, for most
	which := few[:0]
	for i := range dk.entries {
		if matches(dk.entries[i].matcher) {
			which = binary.NativeEndian.AppendUint32(which, uint32(i))
		}
	}
	if r := dk.rows[string(which)]; r != nil {
		return r
	}
	hearings := make([]hearing, len(dk.ports)+1)
	for rest := which; len(rest) > 0; rest = rest[4:] {
		e := &dk.entries[binary.NativeEndian.Uint32(rest)]
		for at := range hearings {
			first := &hearings[at][e.sort]
			if first.policy == nil && (e.ports == nil || at > 0 && e.ports[dk.ports[at-1]]) {
				*first = reason{e.policy, e.rule.Position}
			}
		}
	}
	judgements := make([]judgement, len(hearings))
	for i := range hearings {
		judgements[i] = hearings[i].conclude(dk.isolated, dk.audited)
		judgements[i].unsaid = judgements[i].unsaid && dk.of == egress
	}
	r := newRow(judgements)
	dk.rows[string(which)] = r
	return r
}

func newRow(judgements []judgement) *row {
	var b strings.Builder
	for _, j := range judgements {
		b.WriteByte('0' + byte(j.ruling))
		b.WriteString(strconv.FormatBool(j.unsaid))
		if j.policy != nil {
			b.WriteString(j.policy.Name)
		}
	}
	return &row{judgements, b.String()}
}

// uniform says whether all ports are judged alike.
func (r *row) uniform() bool {
	return !slices.ContainsFunc(r.judgements, func(j judgement) bool { return !j.same(r.judgements[0]) })
}

func (r *row) allowsAll() bool { return r.uniform() && r.judgements[0].ruling == allow }

// A hearing holds the first rule of each sort that matches.
type hearing [sorts]reason

// conclude weighs what was heard (docs/POLICY.md: isolation, deny, audit).
func (h *hearing) conclude(isolated, audited *Policy) judgement {
	allowed := h[allows].policy != nil
	switch {
	case h[denies].policy != nil:
		return judgement{ruling: deny, why: h[denies]}
	case isolated != nil && !allowed:
		return judgement{ruling: deny, why: reason{isolated, isolated.Position}, unsaid: true}
	case h[auditDenies].policy != nil:
		return judgement{ruling: would, policy: h[auditDenies].policy, why: h[auditDenies]}
	case audited != nil && !allowed && h[auditAllows].policy == nil:
		return judgement{ruling: would, policy: audited, why: reason{audited, audited.Position}, unsaid: true}
	default:
		return judgement{ruling: allow, why: h[allows]}
	}
}

// A matcher is a rule, made ready to be asked often.
type matcher struct {
	rule       *Rule
	use        use
	everybody  bool
	unlabelled bool
	workloads  []bool // by the index of their class; nil: none
	same       []*SameLabels
	cidrs      []*CIDR
	list       int    // of addressClasses; -1: none
	ports      []bool // by the index of their class; nil: every port
}

// matcher returns that of a rule, which allows or denies. The classes must be there.
func (cs *classes) matcher(r *Rule, deny bool) *matcher {
	if m := cs.matchers[r]; m != nil {
		return m
	}
	m := &matcher{rule: r, use: useOf(deny), everybody: r.Peers == nil, list: cs.addresses.listOf(r), ports: cs.ports.mask(r.Ports)}
	cs.matchers[r] = m
	for _, p := range r.Peers {
		switch {
		case p.Any:
			m.everybody = true
		case p.Unlabelled:
			m.unlabelled = true
			if deny { // who has doubtful labels alone may be unlabelled
				cs.mark(m, (*Workload).onlyDoubtful)
			}
		case p.SameLabels != nil:
			m.same = append(m.same, p.SameLabels)
		case p.CIDR != nil:
			m.cidrs = append(m.cidrs, p.CIDR)
		case p.Workloads != nil:
			cs.mark(m, func(w *Workload) bool { return p.Workloads.matchesPeer(w, m.use) })
		}
	}
	for i := range cs.remotes {
		if matchesRemote(r, deny, cs.remotes[i].remote) {
			if m.workloads == nil {
				m.workloads = make([]bool, len(cs.workloads)+len(cs.remotes))
			}
			m.workloads[len(cs.workloads)+i] = true
		}
	}
	return m
}

// mark notes which classes of this node's workloads a peer matches.
func (cs *classes) mark(m *matcher, matches func(*Workload) bool) {
	if m.workloads == nil {
		m.workloads = make([]bool, len(cs.workloads)+len(cs.remotes))
	}
	for i := range cs.workloads {
		m.workloads[i] = m.workloads[i] || matches(cs.workloads[i].members[0])
	}
}

// matches says whether any of the rule's peers is p, for a policy that selects c.
func (m *matcher) matches(c *workloadClass, p peer) bool {
	switch {
	case m.everybody:
		return true
	case p.addresses != nil:
		return m.list >= 0 && p.addresses.matches[m.list]
	case p.workloads == nil:
		return m.unlabelled
	case m.workloads != nil && m.workloads[p.workloads.index]:
		return true
	default:
		return slices.ContainsFunc(m.same, func(s *SameLabels) bool { return s.match(c.members[0], p.workloads.members[0], m.use) })
	}
}

// matchesAddress says whether the rule matches an address outside this node.
func (m *matcher) matchesAddress(a netip.Addr) bool {
	return m.everybody || slices.ContainsFunc(m.cidrs, func(c *CIDR) bool { return c.matches(a) })
}

// reachesItself says whether both sides allow c everything with its own class. If
// not, it is divided: a workload may always reach itself.
func (cs *classes) reachesItself(c *workloadClass) bool {
	itself := peer{workloads: c}
	return cs.judge(c, ingress, itself).allowsAll() && cs.judge(c, egress, itself).allowsAll()
}
