package compiler

import (
	"fmt"
	"slices"
	"strings"

	"thole/compiler/policy"
)

// warnings lists what is valid and probably not meant.
func (l *lowering) warnings() []Warning {
	var list []Warning
	networked := l.networkedBy()
	for i := range l.policies {
		p := &l.policies[i]
		if len(p.Selector.Requirements) > 0 && !l.classes.Selects(p) {
			list = append(list, Warning{p.Position, fmt.Sprintf("policy %s selects no workload that runs now", p.Name)})
		}
		list = append(list, listenerless(p)...)
		list = append(list, ownNetworks(p, networked[p])...)
	}
	return append(list, l.dodgeable()...)
}

// addressed finds workloads of an inventory that have an address instead of a cgroup:
// what they say and hear does not pass a socket of this node.
func addressed(workloads []policy.Workload) []Warning {
	var list []Warning
	for _, w := range workloads {
		if w.Kind == policy.KindAddress {
			list = append(list, Warning{w.Position, fmt.Sprintf("workload %s has an address of its own: Thole does "+
				"not filter its connections", w.Name)})
		}
	}
	return list
}

// networkedBy returns the names of the containers with a network of their own that each policy selects: most of
// what they send and receive passes no chain of ours.
func (l *lowering) networkedBy() map[*policy.Policy][]string {
	names := map[*policy.Policy][]string{}
	for _, m := range l.networked {
		for _, p := range m.class.Policies {
			names[p] = append(names[p], m.Name)
		}
	}
	return names
}

func ownNetworks(p *policy.Policy, names []string) []Warning {
	if names == nil {
		return nil
	}
	slices.Sort(names)
	if more := len(names) - namesShown; more > 0 {
		names = append(names[:namesShown], fmt.Sprintf("%d more", more))
	}
	return []Warning{{p.Position, fmt.Sprintf("policy %s is enforced only in part for containers with a network of "+
		"their own (%s): for connections with workloads on the host network, and for no other connections. "+
		"It is enforced in full for `docker run --net=host`", p.Name, strings.Join(names, ", "))}}
}

const namesShown = 3

// listenerless finds ingress rules for protocols of which no listener can be found
// on the host network.
func listenerless(p *policy.Policy) []Warning {
	var list []Warning
	for _, rules := range [][]policy.Rule{p.Ingress.Allow, p.Ingress.Deny} {
		for _, r := range rules {
			for _, port := range r.Ports {
				if port.Protocol != policy.TCP && port.Protocol != policy.UDP {
					list = append(list, Warning{r.Position, fmt.Sprintf("policy %s: %s in ingress has no effect for "+
						"workloads on the host network: only the sender's egress decides", p.Name, port)})
				}
			}
		}
	}
	return list
}

// dodgeable finds denies by label of workloads that addresses or anybody may reach:
// who is on another node and leaves its labels out is not denied.
func (l *lowering) dodgeable() []Warning {
	open := map[string]bool{} // policies that select such a workload
	for _, c := range l.classes.Workloads {
		if l.classes.OpenToAddresses(c) {
			for _, p := range c.Policies {
				open[p.Name] = true
			}
		}
	}
	var list []Warning
	for _, p := range l.policies {
		if !open[p.Name] {
			continue
		}
		for _, rule := range p.Ingress.Deny {
			for _, peer := range rule.Peers {
				if peer.Workloads != nil || peer.SameLabels != nil {
					list = append(list, Warning{peer.Position, fmt.Sprintf("policy %s: "+
						"a process of another node evades this deny rule if its node omits the labels, "+
						"because a rule allows its address: allow by label instead", p.Name)})
				}
			}
		}
	}
	return list
}
