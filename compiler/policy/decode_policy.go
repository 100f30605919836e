package policy

var (
	policyShape = shape{
		keys: []string{"selector", "ingress", "egress", "deny", "enforcement"},
		instead: map[string]string{
			"podSelector": "it is selector", "endpointSelector": "it is selector", "workloads": "it is selector",
			"matchLabels": "it belongs in selector", "matchExpressions": "it belongs in selector",
			"policyTypes": "the presence of the keys ingress and egress says it",
			"ingressDeny": "it is deny: {ingress: …}", "egressDeny": "it is deny: {egress: …}",
		},
	}
	denyShape = shape{keys: []string{"ingress", "egress"}, instead: map[string]string{
		"from": "it belongs in a rule of ingress", "to": "it belongs in a rule of egress",
	}}
	ingressRuleShape = ruleShape("from", "to", "ingress")
	egressRuleShape  = ruleShape("to", "from", "egress")
)

// ruleShape is the shape of a rule whose peers stand under peers.
func ruleShape(peers, other, direction string) shape {
	in := "it belongs in ports, as \"80/tcp\""
	out := "it belongs in a peer, in " + peers
	return shape{
		keys: []string{peers, "ports"},
		instead: map[string]string{
			other:      "the peers of " + direction + " stand in " + peers,
			"protocol": in, "port": in, "endPort": in, "toPorts": in,
			"workloads": out, "sameLabels": out, "unlabelled": out, "cidr": out, "any": out,
		},
		note: ", {} for every peer and port",
	}
}

// policy reads a Policy.
func (d *decoder) policy(meta mapping, spec rawNode) Policy {
	p := Policy{}
	p.Name, p.Position = d.name(meta)
	m := d.mapping(spec, policyShape)
	if n, ok := d.need(m, "selector", "selector: {matchLabels: …}, or {} for every workload"); ok {
		p.Selector = d.selector(n)
	}
	if n, ok := m.values["enforcement"]; ok {
		mode, _ := d.oneOf(n, "enforce", "audit")
		p.Audit = mode == "audit"
	}
	p.Ingress = d.side(m, "ingress", ingressRuleShape)
	p.Egress = d.side(m, "egress", egressRuleShape)
	d.deny(m, &p)
	return p
}

// side reads the allow rules of a direction.
func (d *decoder) side(m mapping, direction string, s shape) Side {
	n, ok := m.values[direction]
	if !ok {
		return Side{}
	}
	items := d.list(n, "a list of rules, [] to allow nothing")
	return Side{Isolates: true, Allow: d.rules(items, s)}
}

// deny reads the deny rules of both directions. Lists that are empty are refused:
// who writes "deny: {ingress: []}" may well think that it denies everything.
func (d *decoder) deny(m mapping, p *Policy) {
	n, ok := m.values["deny"]
	if !ok {
		if m.whole && !p.Ingress.Isolates && !p.Egress.Isolates {
			d.fail(m.pos, "no ingress, egress or deny in %s; needed: at least one of them", m.path)
		}
		return
	}
	rules := d.mapping(n, denyShape)
	const some = "a list of rules, [{}] to deny everything"
	if n, ok := rules.values["ingress"]; ok {
		p.Ingress.Deny = d.rules(d.someOf(n, some), ingressRuleShape)
	}
	if n, ok := rules.values["egress"]; ok {
		p.Egress.Deny = d.rules(d.someOf(n, some), egressRuleShape)
	}
	if rules.whole && len(rules.fields) == 0 {
		d.fail(n.pos, "%s is an empty mapping; allowed: ingress, egress", n.path)
	}
}

func (d *decoder) rules(items []rawNode, s shape) []Rule {
	var rules []Rule
	for _, n := range items {
		rules = append(rules, d.rule(n, s))
	}
	return rules
}

func (d *decoder) rule(n rawNode, s shape) Rule {
	r := Rule{Position: n.pos}
	m := d.mapping(n, s)
	peers := s.keys[0]
	if n, ok := m.values[peers]; ok {
		for _, item := range d.someOf(n, "a list of peers, or no "+peers+" for every peer") {
			r.Peers = append(r.Peers, d.peer(item))
		}
	}
	if n, ok := m.values["ports"]; ok {
		items := d.someOf(n, `a list such as ["80/tcp"], or no ports for every protocol and port`)
		r.Ports = distinct(d, items, d.port)
	}
	return r
}
