package policy

import (
	"errors"
	"fmt"
	"regexp"

	"thole/compiler/policy/strict"
)

var grantShape = strict.Shape{
	Keys: []string{"users", "groups", "labels", "require"},
	Instead: map[string]string{
		"user": `it is users: […]`, "group": `it is groups: […]`,
		"requires": "it is require", "allow": "it is labels",
	},
}

// grant reads a LabelGrant.
func (d *decoder) grant(meta strict.Mapping, spec strict.Node) LabelGrant {
	g := LabelGrant{}
	g.Name, g.Position = d.name(meta)
	m := d.Mapping(spec, grantShape)
	g.Users = d.accounts(m, "users")
	g.Groups = d.accounts(m, "groups")
	if n, ok := m.Values["labels"]; ok {
		g.Labels = d.grantedLabels(n)
	}
	if n, ok := m.Values["require"]; ok {
		g.Require = d.labels(n, "labels such as {team: a}", CheckUserLabelKey, checkLabelValue)
		d.notGranted(n, g)
	}
	d.saysSomething(m)
	return g
}

// saysSomething fails at a grant to nobody, or of nothing. Both lists of accounts
// may be empty: that is a grant nobody is in yet.
func (d *decoder) saysSomething(m strict.Mapping) {
	has := func(key string) bool { _, ok := m.Values[key]; return ok }
	if m.Whole && !has("users") && !has("groups") {
		d.Fail(m.Pos, "no users or groups in %s; needed: at least one of them", m.Path)
	}
	if m.Whole && !has("labels") && !has("require") {
		d.Fail(m.Pos, "no labels or require in %s; needed: at least one of them", m.Path)
	}
}

// notGranted fails at a required label that may also be given: it has one value only.
func (d *decoder) notGranted(require strict.Node, g LabelGrant) {
	for _, f := range require.Fields {
		if _, ok := g.Labels[f.Key]; ok {
			d.Fail(f.Pos, "%s: the key %s is in labels too; allowed: in one of them", require.Path, strict.Quote(f.Key))
		}
	}
}

// grantedLabels reads the values that may be given, by key.
func (d *decoder) grantedLabels(n strict.Node) map[string][]string {
	const allowed = `label keys with lists of values, such as {app: [web, db], env: ["*"]}`
	if n.Kind != strict.KindMapping {
		d.Wrong(n, allowed)
		return nil
	}
	if len(n.Fields) == 0 && !n.Partial {
		d.Fail(n.Pos, "%s is an empty mapping; allowed: %s", n.Path, allowed)
	}
	granted := make(map[string][]string)
	for _, f := range n.Fields {
		if err := CheckUserLabelKey(f.Key); err != nil {
			d.Fail(f.Pos, "%s: %s", n.Path, err)
		}
		granted[f.Key] = d.grantedValues(f.Key, f.Value)
	}
	return granted
}

// grantedValues reads a list of values, or of the one word "*".
func (d *decoder) grantedValues(key string, n strict.Node) []string {
	items := d.SomeOf(n, `a list of values such as [web, db], ["*"] for any`)
	return d.Texts(items, "a label value", func(value string) error {
		switch {
		case value != "*":
			return checkLabelValue(key, value)
		case len(items) > 1:
			return errors.New(`"*" beside other values; allowed: ["*"] alone`)
		default:
			return nil
		}
	})
}

// accounts reads a list of user or group names or numbers.
func (d *decoder) accounts(m strict.Mapping, key string) []string {
	n, ok := m.Values[key]
	if !ok {
		return nil
	}
	return strict.Distinct(d.Decoder, d.List(n, "a list of names or numbers"), d.account)
}

// account reads a user or group: a name, or a number, which needs no quotes here
// because nothing else can be meant.
func (d *decoder) account(n strict.Node) string {
	if n.Kind == strict.KindInt {
		n.Kind = strict.KindText
	}
	return d.Checked(n, "a name or number", checkAccount)
}

var (
	accountNumber = regexp.MustCompile(`^(0|[1-9][0-9]{0,9})$`)
	accountName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.@-]{0,254}\$?$`)
)

// maxAccount is the greatest uid or gid; the one above means "none" in system calls.
const maxAccount = 1<<32 - 2

func checkAccount(s string) error {
	var number uint64
	switch {
	case accountName.MatchString(s):
		return nil
	case !accountNumber.MatchString(s):
		return fmt.Errorf("invalid user or group %s: must be a name of letters, digits, _ - . @, or a number",
			strict.Quote(s))
	}
	if fmt.Sscan(s, &number); number > maxAccount {
		return fmt.Errorf("%s is too large; allowed: at most %d", s, uint32(maxAccount))
	}
	return nil
}
