package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/policy/strict"
)

var (
	peerShape = strict.Shape{
		Keys: []string{"workloads", "sameLabels", "unlabelled", "cidr", "except", "any"},
		Instead: map[string]string{
			"podSelector": "it is workloads", "selector": "it is workloads",
			"namespaceSelector": "there are no namespaces, it is workloads",
			"matchLabels":       "it belongs in workloads", "matchExpressions": "it belongs in workloads",
			"ipBlock": "it is cidr", "unlabeled": `did you mean "unlabelled"?`,
			"all": "it is any: true", "ports": "it belongs in the rule, beside the peers",
		},
		Note: ", such as any: true",
	}
	selectorShape = strict.Shape{
		Keys: []string{"matchLabels", "matchExpressions"},
		Instead: map[string]string{
			"workloads": "write the selector without it",
		},
		Note: ", {} for every workload",
	}
	expressionShape = strict.Shape{Keys: []string{"key", "operator", "values"}}
)

// peer reads one peer. Of its keys one says who is meant; except belongs to cidr.
func (d *decoder) peer(n strict.Node) Peer {
	p := Peer{Position: n.Pos}
	m := d.Mapping(n, peerShape)
	p.CIDR = d.cidr(m)
	d.onlyOne(m, "workloads", "sameLabels", "unlabelled", "cidr", "any")
	if n, ok := m.Values["workloads"]; ok {
		s := d.selector(n)
		p.Workloads = &s
	}
	if n, ok := m.Values["sameLabels"]; ok {
		p.SameLabels = d.sameLabels(n)
	}
	if n, ok := m.Values["unlabelled"]; ok {
		p.Unlabelled = d.Yes(n)
	}
	if n, ok := m.Values["any"]; ok {
		p.Any = d.Yes(n)
	}
	return p
}

// onlyOne fails unless exactly one of the keys is there.
func (d *decoder) onlyOne(m strict.Mapping, keys ...string) {
	var found []string
	for _, f := range m.Fields {
		if slices.Contains(keys, f.Key) {
			found = append(found, f.Key)
		}
	}
	allowed := "exactly one of " + strings.Join(keys, ", ")
	switch {
	case len(found) == 0 && m.Whole:
		d.Fail(m.Pos, "%s is an empty mapping; allowed: %s", m.Path, allowed)
	case len(found) > 1:
		d.Fail(m.Pos, "%s has %s; allowed: %s", m.Path, strings.Join(found, " and "), allowed)
	}
}

// sameLabels reads a list of keys, or the word all.
func (d *decoder) sameLabels(n strict.Node) *SameLabels {
	const allowed = `all, or a list of label keys such as [app]`
	if n.Kind == strict.KindText && n.Text == "all" {
		return &SameLabels{All: true}
	}
	keys := d.Texts(d.SomeOf(n, allowed), "a label key", checkLabelKey)
	slices.Sort(keys)
	return &SameLabels{Keys: keys}
}

// aNetwork is what cidr and except allow.
const aNetwork = "a network such as 10.0.0.0/8"

func (d *decoder) cidr(m strict.Mapping) *CIDR {
	n, ok := m.Values["cidr"]
	except, excepted := m.Values["except"]
	if !ok {
		if excepted {
			d.Fail(m.Pos, "except without cidr in %s; allowed: except beside cidr", m.Path)
		}
		return nil
	}
	c := &CIDR{Prefix: strict.Parsed(d.Decoder, n, aNetwork, parsePrefix)}
	if excepted && c.Prefix.IsValid() {
		c.Except = d.except(except, c.Prefix)
	}
	return c
}

// except reads networks inside another.
func (d *decoder) except(n strict.Node, from netip.Prefix) []netip.Prefix {
	items := d.SomeOf(n, "a list of networks, or no except")
	inside := func(s string) (netip.Prefix, error) { return parseExcept(s, from) }
	return strict.Distinct(d.Decoder, items, func(n strict.Node) netip.Prefix {
		return strict.Parsed(d.Decoder, n, aNetwork, inside)
	})
}

// selector reads a Kubernetes label selector into its one normal form.
func (d *decoder) selector(n strict.Node) Selector {
	m := d.Mapping(n, selectorInstead(n))
	var s Selector
	if n, ok := m.Values["matchLabels"]; ok {
		for k, v := range d.labels(n, "labels such as {app: web}", checkLabelKey, checkLabelValue) {
			s.Requirements = append(s.Requirements, Requirement{Key: k, Operator: In, Values: []string{v}})
		}
	}
	if n, ok := m.Values["matchExpressions"]; ok {
		for _, item := range d.SomeOf(n, "a list of {key, operator, values}") {
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
func selectorInstead(n strict.Node) strict.Shape {
	s := selectorShape
	if len(n.Fields) == 0 || strict.DidYouMean(n.Fields[0].Key, s.Keys) != "" ||
		n.Fields[0].Value.Kind != strict.KindText {
		return s
	}
	key, value := strict.Shorten(n.Fields[0].Key), strict.Shorten(n.Fields[0].Value.Text)
	s.Instead = map[string]string{n.Fields[0].Key: "labels belong in matchLabels: {" + key + ": " + value + "}"}
	return s
}

func compareRequirements(a, b Requirement) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
}

// requirement reads one item of matchExpressions.
func (d *decoder) requirement(n strict.Node) Requirement {
	var r Requirement
	m := d.Mapping(n, expressionShape)
	if n, ok := d.Need(m, "key", "key: …"); ok {
		r.Key = d.Checked(n, "a label key", checkLabelKey)
	}
	if n, ok := d.Need(m, "operator", "operator: In, NotIn, Exists or DoesNotExist"); ok {
		word, _ := d.OneOf(n, string(In), string(NotIn), string(Exists), string(DoesNotExist))
		r.Operator = Operator(word)
	}
	r.Values = d.requirementValues(m, r)
	return r
}

// requirementValues reads the values of an expression, in ascending order.
func (d *decoder) requirementValues(m strict.Mapping, r Requirement) []string {
	n, ok := m.Values["values"]
	switch r.Operator {
	case In, NotIn:
		n, ok = d.Need(m, "values", "values: […]")
	case Exists, DoesNotExist:
		if ok {
			d.Fail(n.Pos, "%s for the operator %s; allowed: no values", n.Path, r.Operator)
		}
		return nil
	}
	if !ok {
		return nil
	}
	check := func(value string) error { return checkLabelValue(r.Key, value) }
	values := d.Texts(d.SomeOf(n, "a list of values"), "a label value", check)
	slices.Sort(values)
	return values
}
