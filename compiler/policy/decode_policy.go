package policy

import "thole/compiler/policy/strict"

var (
	policyShape = strict.Shape{
		Keys: []string{"selector", "ingress", "egress", "deny", "enforcement"},
		Instead: map[string]string{
			"podSelector": "it is selector", "endpointSelector": "it is selector", "workloads": "it is selector",
			"matchLabels": "it belongs in selector", "matchExpressions": "it belongs in selector",
			"policyTypes": "the presence of the keys ingress and egress says it",
			"ingressDeny": "it is deny: {ingress: …}", "egressDeny": "it is deny: {egress: …}",
		},
	}
	denyShape = strict.Shape{Keys: []string{"ingress", "egress"}, Instead: map[string]string{
		"from": "it belongs in a rule of ingress", "to": "it belongs in a rule of egress",
	}}
	ingressRuleShape = ruleShape("from", "to", "ingress")
	egressRuleShape  = ruleShape("to", "from", "egress")
)

// ruleShape is the strict.Shape of a rule whose peers stand under peers.
func ruleShape(peers, other, direction string) strict.Shape {
	in := "it belongs in ports, as \"80/tcp\""
	out := "it belongs in a peer, in " + peers
	return strict.Shape{
		Keys: []string{peers, "ports"},
		Instead: map[string]string{
			other:      "the peers of " + direction + " stand in " + peers,
			"protocol": in, "port": in, "endPort": in, "toPorts": in,
			"workloads": out, "sameLabels": out, "unlabelled": out, "cidr": out, "any": out,
		},
		Note: ", {} for every peer and port",
	}
}

// policy reads a Policy.
func (d *decoder) policy(meta strict.Mapping, spec strict.Node) Policy {
	p := Policy{}
	p.Name, p.Position = d.name(meta)
	m := d.Mapping(spec, policyShape)
	if n, ok := d.Need(m, "selector", "selector: {matchLabels: …}, or {} for every workload"); ok {
		p.Selector = d.selector(n)
	}
	if n, ok := m.Values["enforcement"]; ok {
		mode, _ := d.OneOf(n, "enforce", "audit")
		p.Audit = mode == "audit"
	}
	p.Ingress = d.side(m, "ingress", ingressRuleShape)
	p.Egress = d.side(m, "egress", egressRuleShape)
	d.deny(m, &p)
	return p
}

// side reads the allow rules of a direction.
func (d *decoder) side(m strict.Mapping, direction string, s strict.Shape) Side {
	n, ok := m.Values[direction]
	if !ok {
		return Side{}
	}
	items := d.List(n, "a list of rules, [] to allow nothing")
	return Side{Isolates: true, Allow: d.rules(items, s)}
}

// deny reads the deny rules of both directions. Lists that are empty are refused:
// who writes "deny: {ingress: []}" may well think that it denies everything.
func (d *decoder) deny(m strict.Mapping, p *Policy) {
	n, ok := m.Values["deny"]
	if !ok {
		if m.Whole && !p.Ingress.Isolates && !p.Egress.Isolates {
			d.Fail(m.Pos, "no ingress, egress or deny in %s; needed: at least one of them", m.Path)
		}
		return
	}
	rules := d.Mapping(n, denyShape)
	const some = "a list of rules, [{}] to deny everything"
	if n, ok := rules.Values["ingress"]; ok {
		p.Ingress.Deny = d.rules(d.SomeOf(n, some), ingressRuleShape)
	}
	if n, ok := rules.Values["egress"]; ok {
		p.Egress.Deny = d.rules(d.SomeOf(n, some), egressRuleShape)
	}
	if rules.Whole && len(rules.Fields) == 0 {
		d.Fail(n.Pos, "%s is an empty mapping; allowed: ingress, egress", n.Path)
	}
}

func (d *decoder) rules(items []strict.Node, s strict.Shape) []Rule {
	var rules []Rule
	for _, n := range items {
		rules = append(rules, d.rule(n, s))
	}
	return rules
}

func (d *decoder) rule(n strict.Node, s strict.Shape) Rule {
	r := Rule{Position: n.Pos}
	m := d.Mapping(n, s)
	peers := s.Keys[0]
	if n, ok := m.Values[peers]; ok {
		for _, item := range d.SomeOf(n, "a list of peers, or no "+peers+" for every peer") {
			r.Peers = append(r.Peers, d.peer(item))
		}
	}
	if n, ok := m.Values["ports"]; ok {
		items := d.SomeOf(n, `a list such as ["80/tcp"], or no ports for every protocol and port`)
		r.Ports = strict.Distinct(d.Decoder, items, d.port)
	}
	return r
}
