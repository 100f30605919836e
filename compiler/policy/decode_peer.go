package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

var (
	peerShape = shape{
		keys: []string{"workloads", "sameLabels", "unlabelled", "cidr", "except", "any"},
		instead: map[string]string{
			"podSelector": "it is workloads", "selector": "it is workloads",
			"namespaceSelector": "there are no namespaces, it is workloads",
			"matchLabels":       "it belongs in workloads", "matchExpressions": "it belongs in workloads",
			"ipBlock": "it is cidr", "unlabeled": `did you mean "unlabelled"?`,
			"all": "it is any: true", "ports": "it belongs in the rule, beside the peers",
		},
		note: ", such as any: true",
	}
	selectorShape = shape{
		keys: []string{"matchLabels", "matchExpressions"},
		instead: map[string]string{
			"workloads": "write the selector without it",
		},
		note: ", {} for every workload",
	}
	expressionShape = shape{keys: []string{"key", "operator", "values"}}
)

// peer reads one peer. Of its keys one says who is meant; except belongs to cidr.
func (d *decoder) peer(n rawNode) Peer {
	p := Peer{Position: n.pos}
	m := d.mapping(n, peerShape)
	p.CIDR = d.cidr(m)
	d.onlyOne(m, "workloads", "sameLabels", "unlabelled", "cidr", "any")
	if n, ok := m.values["workloads"]; ok {
		s := d.selector(n)
		p.Workloads = &s
	}
	if n, ok := m.values["sameLabels"]; ok {
		p.SameLabels = d.sameLabels(n)
	}
	if n, ok := m.values["unlabelled"]; ok {
		p.Unlabelled = d.yes(n)
	}
	if n, ok := m.values["any"]; ok {
		p.Any = d.yes(n)
	}
	return p
}

// onlyOne fails unless exactly one of the keys is there.
func (d *decoder) onlyOne(m mapping, keys ...string) {
	var found []string
	for _, f := range m.fields {
		if slices.Contains(keys, f.key) {
			found = append(found, f.key)
		}
	}
	allowed := "exactly one of " + strings.Join(keys, ", ")
	switch {
	case len(found) == 0 && m.whole:
		d.fail(m.pos, "%s is an empty mapping; allowed: %s", m.path, allowed)
	case len(found) > 1:
		d.fail(m.pos, "%s has %s; allowed: %s", m.path, strings.Join(found, " and "), allowed)
	}
}

// sameLabels reads a list of keys, or the word all.
func (d *decoder) sameLabels(n rawNode) *SameLabels {
	const allowed = `all, or a list of label keys such as [app]`
	if n.kind == rawText && n.text == "all" {
		return &SameLabels{All: true}
	}
	keys := d.texts(d.someOf(n, allowed), "a label key", checkLabelKey)
	slices.Sort(keys)
	return &SameLabels{Keys: keys}
}

// aNetwork is what cidr and except allow.
const aNetwork = "a network such as 10.0.0.0/8"

func (d *decoder) cidr(m mapping) *CIDR {
	n, ok := m.values["cidr"]
	except, excepted := m.values["except"]
	if !ok {
		if excepted {
			d.fail(m.pos, "except without cidr in %s; allowed: except beside cidr", m.path)
		}
		return nil
	}
	c := &CIDR{Prefix: parsed(d, n, aNetwork, parsePrefix)}
	if excepted && c.Prefix.IsValid() {
		c.Except = d.except(except, c.Prefix)
	}
	return c
}

// except reads networks inside another.
func (d *decoder) except(n rawNode, from netip.Prefix) []netip.Prefix {
	items := d.someOf(n, "a list of networks, or no except")
	inside := func(s string) (netip.Prefix, error) { return parseExcept(s, from) }
	return distinct(d, items, func(n rawNode) netip.Prefix { return parsed(d, n, aNetwork, inside) })
}

// selector reads a Kubernetes label selector into its one normal form.
func (d *decoder) selector(n rawNode) Selector {
	m := d.mapping(n, selectorInstead(n))
	var s Selector
	if n, ok := m.values["matchLabels"]; ok {
		for k, v := range d.labels(n, "labels such as {app: web}", checkLabelKey) {
			s.Requirements = append(s.Requirements, Requirement{Key: k, Operator: In, Values: []string{v}})
		}
	}
	if n, ok := m.values["matchExpressions"]; ok {
		for _, item := range d.someOf(n, "a list of {key, operator, values}") {
			s.Requirements = append(s.Requirements, d.requirement(item))
		}
	}
	slices.SortFunc(s.Requirements, compareRequirements)
	s.Requirements = slices.CompactFunc(s.Requirements, func(a, b Requirement) bool {
		return compareRequirements(a, b) == 0
	})
	return s
}

// selectorInstead is selectorShape with advice for who wrote labels where
// matchLabels belongs.
func selectorInstead(n rawNode) shape {
	s := selectorShape
	if len(n.fields) == 0 || didYouMean(n.fields[0].key, s.keys) != "" || n.fields[0].value.kind != rawText {
		return s
	}
	key, value := shorten(n.fields[0].key), shorten(n.fields[0].value.text)
	s.instead = map[string]string{n.fields[0].key: "labels belong in matchLabels: {" + key + ": " + value + "}"}
	return s
}

func compareRequirements(a, b Requirement) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
}

// requirement reads one item of matchExpressions.
func (d *decoder) requirement(n rawNode) Requirement {
	var r Requirement
	m := d.mapping(n, expressionShape)
	if n, ok := d.need(m, "key", "key: …"); ok {
		r.Key = d.checked(n, "a label key", checkLabelKey)
	}
	if n, ok := d.need(m, "operator", "operator: In, NotIn, Exists or DoesNotExist"); ok {
		word, _ := d.oneOf(n, string(In), string(NotIn), string(Exists), string(DoesNotExist))
		r.Operator = Operator(word)
	}
	r.Values = d.requirementValues(m, r)
	return r
}

// requirementValues reads the values of an expression, in ascending order.
func (d *decoder) requirementValues(m mapping, r Requirement) []string {
	n, ok := m.values["values"]
	switch r.Operator {
	case In, NotIn:
		n, ok = d.need(m, "values", "values: […]")
	case Exists, DoesNotExist:
		if ok {
			d.fail(n.pos, "%s for the operator %s; allowed: no values", n.path, r.Operator)
		}
		return nil
	}
	if !ok {
		return nil
	}
	check := func(value string) error { return checkLabelValue(r.Key, value) }
	values := d.texts(d.someOf(n, "a list of values"), "a label value", check)
	slices.Sort(values)
	return values
}
