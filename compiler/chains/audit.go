package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// An Audit is for a chain that records what an audit policy would have denied, and lets it pass.
type Audit struct {
	Policy string
	Stage  Stage
	Unsaid bool // because no rule allows it
}

// Name returns the name of the chain.
func (a Audit) Name() string {
	name := map[Stage]string{AtIngress: "audit_ingress_", AtEgress: "audit_egress_", AtLeave: "audit_leave_",
		AtCalled: "audit_called_"}[a.Stage] + a.Policy
	if a.Unsaid {
		name += "_unsaid"
	}
	return name
}

// A Stage is where a map is looked up.
type Stage uint8

// The stages.
const (
	AtIngress Stage = iota // the listener's side
	AtEgress               // the sender's side, to a workload or a process of this node
	AtLeave                // the sender's side, to addresses outside
	AtCalled               // the sender's side, of an address outside from which NAT led to this node
)

// plain is a without Unsaid.
func (a Audit) plain() Audit {
	a.Unsaid = false
	return a
}

// withPlain returns audits, with the plain one beside each that is Unsaid.
func withPlain(audits []Audit) []Audit {
	list := slices.Clone(audits)
	for _, a := range audits {
		if !slices.Contains(list, a.plain()) {
			list = append(list, a.plain())
		}
	}
	return list
}

// chain records a new connection and allows it. At INPUT the sender's side is asked
// first, since only what would be allowed is recorded.
func (a Audit) chain(fleet bool) nft.Chain {
	c := nft.Chain{Name: a.Name(), Comment: "audit policy " + a.Policy + " would deny"}
	if a.Unsaid {
		c.Rules = append([]nft.Rule{
			because("but for the address that was called", masked(nft.MetaMark, mark.CalledAudited, mark.CalledAudited),
				verdictReturn),
		}, a.plain().chain(fleet).Rules...) // not by goto: the kernel follows 16 chains
		return c
	}
	if a.Stage == AtIngress {
		leaves := []nft.Statement{isAnswer, is(nft.MetaIif, 0), leavesNode}
		c.Rules = append(c.Rules,
			because("see ask_ct", append(slices.Clone(leaves), jump("egress_ct"))...),
			rule(append(slices.Clone(leaves), goTo("settle"))...),
			rule(jump("egress")))
	}
	settled := map[Stage]nft.Verdict{AtIngress: goTo("settle"), AtEgress: goTo("settle"), AtLeave: verdictReturn,
		AtCalled: goTo("called_allowed")}[a.Stage]
	if fleet && a.Stage == AtEgress {
		asked := masked(nft.CtMark, mark.RemoteMask|mark.OutBit, mark.RemoteClass|mark.OutBit)
		c.Rules = append(c.Rules,
			because("fleet_ask asks: it settles", asked, nft.Count{Counter: AuditCounter(a.Policy)}),
			rule(asked, nft.Log{Prefix: "thole: would deny, policy " + a.Policy + ": ", PerSecond: 10}),
			rule(asked, verdictReturn))
	}
	fresh := anyOf(nft.CtState, nft.StateNew)
	c.Rules = append(c.Rules,
		rule(fresh, nft.Count{Counter: AuditCounter(a.Policy)}),
		rule(fresh, nft.Log{Prefix: "thole: would deny, policy " + a.Policy + ": ", PerSecond: 10}),
		rule(settled))
	return c
}
