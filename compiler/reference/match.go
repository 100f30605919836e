package reference

import (
	"net/netip"

	"thole/compiler/policy"
)

// A use is what a match decides: whether it permits a connection, or restricts one end of it.
//
// "A match that permits counts only if both readings of a doubtful label match; a
// match that restricts counts if either does."
type use string

const (
	permits   use = "permits"
	restricts use = "restricts"
)

// ruleMatches says whether a rule of a policy that selects the workload selected
// matches connection c with peer at its other end.
//
// "A rule matches when any of its peers matches and any of its ports matches.
// from/to absent: every peer. ports absent: every protocol and port."
func ruleMatches(rule policy.Rule, u use, selected *policy.Workload, peer Endpoint, c Connection) bool {
	peerMatched := rule.Peers == nil
	for _, p := range rule.Peers {
		if peerMatches(p, u, selected, peer) {
			peerMatched = true
		}
	}
	portMatched := rule.Ports == nil
	for _, p := range rule.Ports {
		if portMatches(p, c) {
			portMatched = true
		}
	}
	return peerMatched && portMatched
}

// peerMatches says whether p, in a rule for selected, matches end.
//
// A peer has exactly one key.
//
// "A container that only doubtful labels make a workload is matched neither by
// workloads nor by unlabelled in an allow rule, and by both in a deny rule."
func peerMatches(p policy.Peer, u use, selected *policy.Workload, end Endpoint) bool {
	either := end.Workload != nil && onlyDoubtful(end.Workload)
	switch {
	case p.Workloads != nil && either && u == permits:
		return false
	case p.Workloads != nil:
		// "Workloads on this node, and workloads of other nodes that proved
		// their labels." An outside Endpoint has no proof.
		return end.Workload != nil && selectorMatches(*p.Workloads, u, end.Workload)
	case p.SameLabels != nil:
		return end.Workload != nil && sameLabels(*p.SameLabels, u, selected, end.Workload)
	case p.Unlabelled:
		// "What on this node is not a workload: its own processes,
		// docker-proxy, unlabelled containers."
		return end.unlabelled() || either && u == restricts
	case p.CIDR != nil:
		// "Addresses outside this node in N, with or without a proof of labels.
		// Never what is on this node, whatever its address."
		return end.outside() && cidrContains(*p.CIDR, end.Address)
	default:
		// "any: true: everything."
		return p.Any
	}
}

// sameLabels compares the selected workload with its peer.
func sameLabels(s policy.SameLabels, u use, selected, peer *policy.Workload) bool {
	// "sameLabels: all: workloads whose user labels are exactly equal. Who has no
	// user label equals nobody. In an allow rule doubtful labels are left out."
	if s.All && u == permits {
		return equalAll(selected.Labels, peer.Labels)
	}
	if s.All {
		for _, mine := range readings(selected) {
			for _, theirs := range readings(peer) {
				if equalAll(mine, theirs) {
					return true
				}
			}
		}
		return false
	}

	// "sameLabels: [k, …]: workloads that have all these keys, as has the
	// selected one, with equal values. An absent key never equals an absent key."
	for _, key := range s.Keys {
		mine, have := selected.Label(key)
		theirs, has := peer.Label(key)
		if !have || !has || mine != theirs {
			return false
		}
		// Read as absent, a doubtful label equals nothing; nor does a value that nobody knows.
		if u == permits && (doubtful(selected, key) || doubtful(peer, key) || mine == policy.UnusableValue) {
			return false
		}
	}
	return true
}

// equalAll reports whether two workloads have the same user labels, at least one.
func equalAll(a, b policy.Labels) bool { return len(a) > 0 && subset(a, b) && subset(b, a) }

// subset reports whether every label of a is in b.
func subset(a, b policy.Labels) bool {
	for key, value := range a {
		if other, ok := b[key]; !ok || other != value {
			return false
		}
	}
	return true
}

// cidrContains says whether address, which is outside this node, is in c.
func cidrContains(c policy.CIDR, address netip.Addr) bool {
	// "Group addresses (224.0.0.0/4, ff00::/8) match only where N is inside them."
	//
	// Decided: 255.255.255.255 is in neither and matches where N contains it.
	for _, groups := range []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")} {
		inside := c.Prefix.Bits() >= groups.Bits() && groups.Contains(c.Prefix.Addr())
		if groups.Contains(address) && !inside {
			return false
		}
	}

	// "cidr: N, except: […]."
	for _, except := range c.Except {
		if except.Contains(address) {
			return false
		}
	}
	return c.Prefix.Contains(address)
}

// selectorMatches says whether s selects w, whose user labels and facts are
// "selectable" alike.
//
// "Kubernetes label selector; {} selects every workload." All requirements must
// be met; NotIn and DoesNotExist are met by an absent key.
func selectorMatches(s policy.Selector, u use, w *policy.Workload) bool {
	for _, r := range s.Requirements {
		value, exists := w.Label(r.Key)
		met := requirementMet(r, value, exists)
		if doubtful(w, r.Key) {
			without := requirementMet(r, "", false)
			if u == permits {
				met = met && without
			} else {
				met = met || without
			}
		}
		// "Exists matches it, In never, NotIn not in allow rules."
		if value == policy.UnusableValue && r.Operator == policy.NotIn && u == permits {
			met = false
		}
		if !met {
			return false
		}
	}
	return true
}

func requirementMet(r policy.Requirement, value string, exists bool) bool {
	listed := false
	for _, v := range r.Values {
		if exists && v == value {
			listed = true
		}
	}
	switch r.Operator {
	case policy.In:
		return listed
	case policy.NotIn:
		return !listed
	case policy.Exists:
		return exists
	default:
		return !exists
	}
}

// portMatches says whether one entry of a rule's ports matches c.
//
// "80/tcp, 8000-8100/udp, 53/udp, sctp, icmp (both versions), icmp/echo-request.
// A container's own port, not the published one."
func portMatches(p policy.Port, c Connection) bool {
	switch p.Protocol {
	case policy.TCP:
		return c.Protocol == protocolTCP && p.From <= c.Port && c.Port <= p.To
	case policy.UDP:
		return c.Protocol == protocolUDP && p.From <= c.Port && c.Port <= p.To
	case policy.SCTP:
		return c.Protocol == protocolSCTP
	case policy.ICMP:
		return icmpMatches(p.ICMPType, c)
	default:
		return false
	}
}

// icmpMatches says whether c is ICMP of either version and of the type called
// name; "" is every type.
func icmpMatches(name string, c Connection) bool {
	if c.Protocol != protocolICMP && c.Protocol != protocolICMPv6 {
		return false
	}
	for _, t := range policy.ICMPTypes {
		number := t.V4
		if c.Protocol == protocolICMPv6 {
			number = t.V6
		}
		if t.Name == name {
			return number == int16(c.ICMPType)
		}
	}
	return name == ""
}
