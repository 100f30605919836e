package policyyaml

import (
	"bytes"
	"fmt"

	"gopkg.in/yaml.v3"

	"thole/compiler/policy"
)

// object and list are YAML's mapping and sequence; yaml.v3 prints the keys of an
// object in ascending order.
type (
	object map[string]any
	list   []any
)

// YAML prints policies as documents that policy.Parse reads. Only the
// positions are lost.
func YAML(policies []policy.Policy) []byte {
	var b bytes.Buffer
	for _, p := range policies {
		text, err := yaml.Marshal(policyYAML(p))
		if err != nil {
			panic(fmt.Sprintf("policy %q: %v", p.Name, err)) // maps, lists, strings and booleans can be printed
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return b.Bytes()
}

func policyYAML(p policy.Policy) object {
	spec := object{"selector": selectorYAML(p.Selector)}
	deny := object{}
	sideYAML(spec, deny, "ingress", "from", p.Ingress)
	sideYAML(spec, deny, "egress", "to", p.Egress)
	if len(deny) > 0 {
		spec["deny"] = deny
	}
	if p.Audit {
		spec["enforcement"] = "audit"
	}
	return object{
		"apiVersion": "thole/v1",
		"kind":       "Policy",
		"metadata":   object{"name": p.Name},
		"spec":       spec,
	}
}

// sideYAML puts one direction's allow rules into spec and its deny rules into deny.
func sideYAML(spec, deny object, direction, peers string, s policy.Side) {
	if s.Isolates {
		spec[direction] = rulesYAML(peers, s.Allow)
	}
	if len(s.Deny) > 0 {
		deny[direction] = rulesYAML(peers, s.Deny)
	}
}

func rulesYAML(peersKey string, rules []policy.Rule) list {
	all := list{}
	for _, r := range rules {
		rule := object{}
		var peers, ports list
		for _, p := range r.Peers {
			peers = append(peers, peerYAML(p))
		}
		for _, p := range r.Ports {
			ports = append(ports, p.String())
		}
		if peers != nil {
			rule[peersKey] = peers
		}
		if ports != nil {
			rule["ports"] = ports
		}
		all = append(all, rule)
	}
	return all
}

func peerYAML(p policy.Peer) object {
	switch {
	case p.Workloads != nil:
		return object{"workloads": selectorYAML(*p.Workloads)}
	case p.SameLabels != nil && p.SameLabels.All:
		return object{"sameLabels": "all"}
	case p.SameLabels != nil:
		return object{"sameLabels": p.SameLabels.Keys}
	case p.Unlabelled:
		return object{"unlabelled": true}
	case p.CIDR != nil:
		return cidrYAML(*p.CIDR)
	default:
		return object{"any": true}
	}
}

func cidrYAML(c policy.CIDR) object {
	peer := object{"cidr": c.Prefix.String()}
	var except list
	for _, e := range c.Except {
		except = append(except, e.String())
	}
	if except != nil {
		peer["except"] = except
	}
	return peer
}

// selectorYAML prints k In [v] as matchLabels where its key stands once there.
func selectorYAML(s policy.Selector) object {
	labels, selector := object{}, object{}
	var expressions list
	for _, r := range s.Requirements {
		_, taken := labels[r.Key]
		if r.Operator == policy.In && len(r.Values) == 1 && !taken {
			labels[r.Key] = r.Values[0]
			continue
		}
		expression := object{"key": r.Key, "operator": string(r.Operator)}
		if r.Values != nil {
			expression["values"] = r.Values
		}
		expressions = append(expressions, expression)
	}
	if len(labels) > 0 {
		selector["matchLabels"] = labels
	}
	if expressions != nil {
		selector["matchExpressions"] = expressions
	}
	return selector
}
