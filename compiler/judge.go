package compiler

import "maps"

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
}

// same says whether the table would treat both alike.
func (j judgement) same(o judgement) bool { return j.ruling == o.ruling && j.policy == o.policy }

// A reason is the rule, or the policy as a whole (Position is that of its name),
// from which a judgement follows; the zero reason is that nothing isolates.
type reason struct {
	policy   *Policy
	position Position
}

// judge says for each class of ports whether c, as the given side of a connection
// with p, allows it.
func (cs *classes) judge(c *workloadClass, d direction, p peer) []judgement {
	if p.workloads == c && len(c.members) == 1 {
		return make([]judgement, len(cs.ports.classes)) // a workload may always reach itself
	}
	hearings := make([]hearing, len(cs.ports.classes))
	var isolated, audited *Policy // the first that isolates c: enforced, audited
	for _, policy := range c.policies {
		side := policy.side(d)
		if side.Isolates {
			first := &isolated
			if policy.Audit {
				first = &audited
			}
			if *first == nil {
				*first = policy
			}
		}
		cs.hear(hearings, policy, side, c, p)
	}
	row := make([]judgement, len(hearings))
	for i := range hearings {
		row[i] = hearings[i].conclude(isolated, audited)
	}
	return row
}

// A hearing holds the first rule of each sort that matches: enforced or audited,
// allow or deny.
type hearing struct {
	allow, deny, auditAllow, auditDeny reason
}

// hear enters into the hearings the rules of one policy that match the peer.
func (cs *classes) hear(hearings []hearing, policy *Policy, side *Side, c *workloadClass, p peer) {
	enter := func(rules []Rule, slot func(*hearing) *reason) {
		for i := range rules {
			r := &rules[i]
			if !cs.matchesAny(r, c, p) {
				continue
			}
			for at, named := range cs.mask(r) {
				if s := slot(&hearings[at]); named && s.policy == nil {
					*s = reason{policy, r.Position}
				}
			}
		}
	}
	if policy.Audit {
		enter(side.Allow, func(h *hearing) *reason { return &h.auditAllow })
		enter(side.Deny, func(h *hearing) *reason { return &h.auditDeny })
	} else {
		enter(side.Allow, func(h *hearing) *reason { return &h.allow })
		enter(side.Deny, func(h *hearing) *reason { return &h.deny })
	}
}

// conclude weighs what was heard (docs/POLICY.md: isolation, deny, audit).
func (h *hearing) conclude(isolated, audited *Policy) judgement {
	allowed := h.allow.policy != nil
	switch {
	case h.deny.policy != nil:
		return judgement{deny, nil, h.deny}
	case isolated != nil && !allowed:
		return judgement{deny, nil, reason{isolated, isolated.Position}}
	case h.auditDeny.policy != nil:
		return judgement{would, h.auditDeny.policy, h.auditDeny}
	case audited != nil && !allowed && h.auditAllow.policy == nil:
		return judgement{would, audited, reason{audited, audited.Position}}
	default:
		return judgement{allow, nil, h.allow}
	}
}

// mask says for each class of ports whether the rule names it.
func (cs *classes) mask(r *Rule) []bool {
	m, ok := cs.masks[r]
	if !ok {
		m = cs.ports.mask(r.Ports)
		cs.masks[r] = m
	}
	return m
}

// matchesAny says whether any of a rule's peers matches p, for a rule of a policy
// that selects c.
func (cs *classes) matchesAny(r *Rule, c *workloadClass, p peer) bool {
	if p.addresses != nil && cs.addresses.matched(r, p.addresses) {
		return true
	}
	for i := range r.Peers {
		if r.Peers[i].matches(c, p) {
			return true
		}
	}
	return r.Peers == nil
}

// matches says whether the peer of a rule, other than a CIDR, matches p.
func (rule *Peer) matches(c *workloadClass, p peer) bool {
	switch {
	case rule.Any:
		return true
	case rule.Unlabelled:
		return p.workloads == nil && p.addresses == nil
	case rule.Workloads != nil:
		return p.workloads != nil && rule.Workloads.Matches(p.workloads.members[0].Label)
	case rule.SameLabels != nil:
		return p.workloads != nil && rule.SameLabels.match(c.members[0], p.workloads.members[0])
	default:
		return false
	}
}

// match says whether both workloads have the labels with equal values.
func (s *SameLabels) match(a, b *Workload) bool {
	if s.All {
		return maps.Equal(a.Labels, b.Labels)
	}
	for _, k := range s.Keys {
		v, ok := a.Label(k)
		if w, has := b.Label(k); !ok || !has || v != w {
			return false
		}
	}
	return true
}

// reachesItself says whether both sides allow c everything with its own class. If
// not, its workloads must be told apart: each may reach itself.
func (cs *classes) reachesItself(c *workloadClass) bool {
	for _, d := range []direction{ingress, egress} {
		for _, j := range cs.judge(c, d, peer{workloads: c}) {
			if j.ruling != allow {
				return false
			}
		}
	}
	return true
}
