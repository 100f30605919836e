package compiler

import "fmt"

// warnings lists what is valid and probably not meant.
func warnings(policies []Policy, cs *classes) []Warning {
	var list []Warning
	for i := range policies {
		p := &policies[i]
		if len(p.Selector.Requirements) > 0 && !cs.selectsAny(&p.Selector) {
			list = append(list, Warning{p.Position, fmt.Sprintf("policy %s selects no workload that runs now", p.Name)})
		}
		list = append(list, listenerless(p)...)
		list = append(list, dodgeable(p)...)
	}
	return list
}

func (cs *classes) selectsAny(s *Selector) bool {
	for _, c := range cs.workloads {
		for _, w := range c.members {
			if s.Matches(w.Label) {
				return true
			}
		}
	}
	return false
}

// listenerless finds ingress rules for protocols of which no listener can be found
// on the host network.
func listenerless(p *Policy) []Warning {
	var list []Warning
	for _, rules := range [][]Rule{p.Ingress.Allow, p.Ingress.Deny} {
		for _, r := range rules {
			for _, port := range r.Ports {
				if port.Protocol != TCP && port.Protocol != UDP {
					list = append(list, Warning{r.Position, fmt.Sprintf("policy %s: %s in ingress does nothing for workloads on the host network: only the sender's egress decides it", p.Name, port)})
				}
			}
		}
	}
	return list
}

// dodgeable finds denies by label beside an allowance by address: who is on another
// node and leaves its labels out comes in by the latter.
func dodgeable(p *Policy) []Warning {
	byAddress := false
	for _, r := range p.Ingress.Allow {
		byAddress = byAddress || r.Peers == nil
		for _, peer := range r.Peers {
			byAddress = byAddress || peer.Any || peer.CIDR != nil
		}
	}
	if !byAddress {
		return nil
	}
	var list []Warning
	for _, r := range p.Ingress.Deny {
		for _, peer := range r.Peers {
			if peer.Workloads != nil || peer.SameLabels != nil {
				list = append(list, Warning{peer.Position, fmt.Sprintf("policy %s: another node's process dodges this deny by leaving its labels out, since cidr or any admits it; allow by label instead", p.Name)})
			}
		}
	}
	return list
}
