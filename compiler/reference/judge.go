package reference

import (
	"net/netip"

	"thole/compiler/policy"
)

// IP protocol numbers that the meaning of a policy depends on.
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	protocolSCTP   = 132
)

// An Endpoint is one end of a connection: a workload of this node, an address
// outside this node, or (the zero Endpoint) what on this node is not a workload.
type Endpoint struct {
	Workload  *policy.Workload // two endpoints are the same workload when the pointers are equal
	Namespace *Namespace       // a network namespace of this node, other than the host's, that containers share
	Address   netip.Addr       // outside this node, without a zone; never IPv4 in IPv6
}

// A Namespace is a network namespace that containers share. It has the address of the first one, and each of them may
// be the one that sends or receives.
type Namespace struct {
	Containers []*policy.Workload // as in Case.Workloads; all have the address
	Infra      bool               // the first one only keeps the namespace open
}

// each returns the ends that e may be.
//
// "A pod's infra container is left out of this rule."
func (e Endpoint) each() []Endpoint {
	if e.Namespace == nil {
		return []Endpoint{e}
	}
	containers := e.Namespace.Containers
	if e.Namespace.Infra && len(containers) > 1 {
		containers = containers[1:]
	}
	var all []Endpoint
	for _, w := range containers {
		all = append(all, Endpoint{Workload: w})
	}
	return all
}

func (e Endpoint) outside() bool    { return e.Address.IsValid() }
func (e Endpoint) unlabelled() bool { return e.Workload == nil && e.Namespace == nil && !e.outside() }

// OwnAddress is the address of a container with a network of its own, on this node.
func (e Endpoint) OwnAddress() netip.Addr {
	switch {
	case e.Namespace != nil:
		return e.Namespace.Containers[0].Address
	case e.Workload != nil:
		return e.Workload.Address
	default:
		return netip.Addr{}
	}
}

// onHostNetwork reports whether e is a workload that is found by a socket's
// cgroup, and not by an address of its own.
func (e Endpoint) onHostNetwork() bool {
	return e.Workload != nil && e.Workload.Kind != policy.KindAddress
}

// A Connection is the first packet of a connection, as far as policies see it.
type Connection struct {
	From, To Endpoint
	Protocol uint8      // as in the IP header
	Port     uint16     // TCP, UDP, SCTP: of the destination, a container's own
	ICMPType uint8      // ICMP, ICMPv6
	IPv6     bool       // the family; Judge does not need it, who makes a packet does
	Group    netip.Addr // the multicast or broadcast address sent to, and then To is the zero Endpoint

	// Called is the address and port that From called, where NAT on this node led it to To. Where it is not valid, From
	// called To. CalledHere: it is an address of this node or of one of its containers.
	Called     netip.AddrPort
	CalledHere bool

	// Tunnel is the address to which the kernel sends the packets of c inside others, if any.
	//
	// "The packet around it is the kernel's and not the workload's: policies do not speak of it."
	Tunnel netip.Addr
}

// natted reports whether policies speak of another address than the one that is reached.
func (c Connection) natted() bool { return c.Called.IsValid() && !c.CalledHere }

// A Verdict is what happens to a connection.
type Verdict struct {
	Allowed bool

	// WouldDeny names the audit policy to which the record of an allowed
	// connection belongs, or is "" if nothing is recorded. The egress of the
	// source is asked first, then the ingress of the destination; the first of
	// the two that denies once audit policies count as enforced names
	//
	//  1. the first policy by name among the audit policies of that side with a
	//     matching deny rule; if there is none,
	//  2. the first policy by name among the audit policies that isolate it.
	WouldDeny string
}

// Judge says what policies mean for c.
//
// "Containers that share a network namespace: a connection is allowed only if it would be allowed for every one of
// them."
func Judge(s Set, c Connection) Verdict {
	var judged []Connection // of each container that may be an end, with each that may be the other
	for _, from := range c.From.each() {
		for _, to := range c.To.each() {
			one := c
			one.From, one.To = from, to
			s.identifyAll(&one.From, &one.To)
			one.To = destination(one)
			if alwaysPasses(one) {
				continue
			}
			if !allows(enforced(s.Policies), one) {
				return Verdict{}
			}
			judged = append(judged, one)
		}
	}
	return Verdict{Allowed: true, WouldDeny: wouldDeny(s.Policies, judged)}
}

// destination is the end that the policies are asked about.
func destination(c Connection) Endpoint {
	// "Multicast and broadcast: by sender and group."
	//
	// So the group is an address like those outside this node, and whoever
	// listens to it on this node is not asked.
	if c.Group.IsValid() {
		return Endpoint{Address: c.Group}
	}

	// "On the host network only TCP and UDP have a listener that can be found.
	// All else (icmp, sctp) is decided by the sender alone […] An echo to this
	// node's own address is to unlabelled."
	//
	// Decided: this comes before "A workload may always reach itself": a packet
	// does not tell whether its sender meant itself or its neighbour.
	if c.To.onHostNetwork() && c.Protocol != protocolTCP && c.Protocol != protocolUDP {
		return Endpoint{}
	}
	return c.To
}

// alwaysPasses reports whether c is allowed whatever the policies say.
func alwaysPasses(c Connection) bool {
	// "A workload may always reach itself, whatever is denied (its own health
	// check works)."
	//
	// "A workload that reaches itself by an address outside is judged like two workloads."
	if c.From.Workload != nil && c.From.Workload == c.To.Workload && !c.natted() {
		return true
	}

	// "ICMP errors that belong to a connection always pass, and so do neighbour
	// discovery and router advertisements, whatever the policies say."
	//
	// The former are no connections and never come here. Neighbour discovery is
	// RFC 4861: router solicitation 133 to redirect 137.
	return c.Protocol == protocolICMPv6 && 133 <= c.ICMPType && c.ICMPType <= 137
}

// enforced leaves out the policies with "enforcement: audit", which "never
// change what happens".
func enforced(policies []policy.Policy) []policy.Policy {
	var some []policy.Policy
	for _, p := range policies {
		if !p.Audit {
			some = append(some, p)
		}
	}
	return some
}

// allows reports whether c is allowed if all policies are enforced.
//
// "A connection is allowed when the egress of its source allows it, the ingress
// of its destination allows it, and no deny rule of either matches. It is judged
// at its first packet; answers belong to it."
func allows(policies []policy.Policy, c Connection) bool {
	egress, ingress := egressOf(c), ingressOf(c)
	return egress.allows(policies) && ingress.allows(policies) &&
		!egress.denies(policies) && !ingress.denies(policies)
}

// wouldDeny is the name of the audit policy to which c, which the enforced
// policies allow, is put down.
//
// "Where the verdict with them would be deny and without them is allow, the
// connection is allowed and recorded as would-be-denied, with the policy's name."
//
// Which name, if there are several, is decided at [Verdict]. Of what shares a network namespace, each that denies
// counts.
func wouldDeny(policies []policy.Policy, all []Connection) string {
	for _, side := range []func(Connection) half{egressOf, ingressOf} {
		var denying, isolating []string
		for _, c := range all {
			half := side(c)
			if half.allows(policies) && !half.denies(policies) {
				continue
			}
			for _, p := range policies {
				if !p.Audit {
					continue
				}
				if half.deniedBy(p) {
					denying = append(denying, p.Name)
				}
				if half.isolatedBy(p) {
					isolating = append(isolating, p.Name)
				}
			}
		}
		if len(denying) == 0 {
			denying = isolating
		}
		if len(denying) > 0 {
			return first(denying)
		}
	}
	return ""
}

// first returns the least of names, of which there is at least one.
func first(names []string) string {
	least := names[0]
	for _, name := range names {
		if name < least {
			least = name
		}
	}
	return least
}

// A half is a connection as one of its ends sees it: the egress of its source
// or the ingress of its destination. Only a workload has policies: an end that
// is none allows everything and denies nothing.
type half struct {
	selected *policy.Workload // nil: not a workload
	side     func(policy.Policy) policy.Side

	// What rules are matched with: a rule matches if it matches one of them.
	allowed, denied []view
}

// A view is what a rule is matched with: the other end, and protocol and port.
type view struct {
	peer       Endpoint
	connection Connection
}

// egressOf matches rules with the destination. Where NAT changed it:
//
// "The address that was called, with its port: in allow rules cidr, any; in deny rules cidr, any. Who gets it on this
// node, with its own port: workloads, sameLabels, unlabelled, any; the same. The address that is reached outside, with
// its port: nothing; cidr, any."
func egressOf(c Connection) half {
	h := half{selected: c.From.Workload, side: func(p policy.Policy) policy.Side { return p.Egress }}
	reached := view{c.To, c}
	h.allowed, h.denied = []view{reached}, []view{reached}
	if !c.natted() {
		return h
	}
	called := view{Endpoint{Address: c.Called.Addr()}, c}
	called.connection.Port = c.Called.Port()
	h.denied = append(h.denied, called)
	if h.allowed = append(h.allowed, called); c.To.outside() {
		h.allowed = []view{called}
	}
	return h
}

// ingressOf matches rules with the source. "Ingress is asked of who gets it, for its own port."
func ingressOf(c Connection) half {
	source := []view{{c.From, c}}
	side := func(p policy.Policy) policy.Side { return p.Ingress }
	return half{selected: c.To.Workload, side: side, allowed: source, denied: source}
}

// allows says whether the half's end is free or an allow rule admits.
//
// "A workload is isolated for ingress when some enforced policy that selects it
// has the key ingress; then only what an allow rule of some such policy admits
// may come in. Likewise egress. Not isolated: free. An absent key says nothing
// about that direction."
func (h half) allows(policies []policy.Policy) bool {
	isolated := false
	for _, p := range policies {
		if !h.isolatedBy(p) {
			continue
		}
		isolated = true
		if h.selectedBy(p, permits) && h.anyRuleMatches(h.side(p).Allow, permits, h.allowed) {
			return true
		}
	}
	return !isolated
}

// denies says whether a deny rule matches.
//
// "Deny rules: beat every allow, and isolate nothing by themselves."
func (h half) denies(policies []policy.Policy) bool {
	for _, p := range policies {
		if h.deniedBy(p) {
			return true
		}
	}
	return false
}

func (h half) isolatedBy(p policy.Policy) bool {
	return h.selectedBy(p, restricts) && h.side(p).Isolates
}

func (h half) deniedBy(p policy.Policy) bool {
	return h.selectedBy(p, restricts) && h.anyRuleMatches(h.side(p).Deny, restricts, h.denied)
}

func (h half) selectedBy(p policy.Policy, u use) bool {
	return h.selected != nil && selectorMatches(p.Selector, u, h.selected)
}

func (h half) anyRuleMatches(rules []policy.Rule, u use, views []view) bool {
	for _, rule := range rules {
		for _, v := range views {
			if ruleMatches(rule, u, h.selected, v.peer, v.connection) {
				return true
			}
		}
	}
	return false
}
