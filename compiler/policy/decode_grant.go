package policy

import (
	"errors"
	"fmt"
	"regexp"
)

var grantShape = shape{
	keys: []string{"users", "groups", "labels", "require"},
	instead: map[string]string{
		"user": `it is users: […]`, "group": `it is groups: […]`,
		"requires": "it is require", "allow": "it is labels",
	},
}

// grant reads a LabelGrant.
func (d *decoder) grant(meta mapping, spec rawNode) LabelGrant {
	g := LabelGrant{}
	g.Name, g.Position = d.name(meta)
	m := d.mapping(spec, grantShape)
	g.Users = d.accounts(m, "users")
	g.Groups = d.accounts(m, "groups")
	if n, ok := m.values["labels"]; ok {
		g.Labels = d.grantedLabels(n)
	}
	if n, ok := m.values["require"]; ok {
		g.Require = d.labels(n, "labels such as {team: a}", CheckUserLabelKey)
		d.notGranted(n, g)
	}
	d.saysSomething(m)
	return g
}

// saysSomething fails at a grant to nobody, or of nothing. Both lists of accounts
// may be empty: that is a grant nobody is in yet.
func (d *decoder) saysSomething(m mapping) {
	has := func(key string) bool { _, ok := m.values[key]; return ok }
	if m.whole && !has("users") && !has("groups") {
		d.fail(m.pos, "no users or groups in %s; needed: at least one of them", m.path)
	}
	if m.whole && !has("labels") && !has("require") {
		d.fail(m.pos, "no labels or require in %s; needed: at least one of them", m.path)
	}
}

// notGranted fails at a required label that may also be given: it has one value only.
func (d *decoder) notGranted(require rawNode, g LabelGrant) {
	for _, f := range require.fields {
		if _, ok := g.Labels[f.key]; ok {
			d.fail(f.pos, "%s: the key %s is in labels too; allowed: in one of them", require.path, quote(f.key))
		}
	}
}

// grantedLabels reads the values that may be given, by key.
func (d *decoder) grantedLabels(n rawNode) map[string][]string {
	const allowed = `label keys with lists of values, such as {app: [web, db], env: ["*"]}`
	if n.kind != rawMapping {
		d.wrong(n, allowed)
		return nil
	}
	if len(n.fields) == 0 && !n.partial {
		d.fail(n.pos, "%s is an empty mapping; allowed: %s", n.path, allowed)
	}
	granted := make(map[string][]string)
	for _, f := range n.fields {
		if err := CheckUserLabelKey(f.key); err != nil {
			d.fail(f.pos, "%s: %s", n.path, err)
		}
		granted[f.key] = d.grantedValues(f.key, f.value)
	}
	return granted
}

// grantedValues reads a list of values, or of the one word "*".
func (d *decoder) grantedValues(key string, n rawNode) []string {
	items := d.someOf(n, `a list of values such as [web, db], ["*"] for any`)
	return d.texts(items, "a label value", func(value string) error {
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
func (d *decoder) accounts(m mapping, key string) []string {
	n, ok := m.values[key]
	if !ok {
		return nil
	}
	return distinct(d, d.list(n, "a list of names or numbers"), d.account)
}

// account reads a user or group: a name, or a number, which needs no quotes here
// because nothing else can be meant.
func (d *decoder) account(n rawNode) string {
	if n.kind == rawInt {
		n.kind = rawText
	}
	return d.checked(n, "a name or number", checkAccount)
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
		return fmt.Errorf("invalid user or group %s: must be a name of letters, digits, _ - . @, or a number", quote(s))
	}
	if fmt.Sscan(s, &number); number > maxAccount {
		return fmt.Errorf("%s is too large; allowed: at most %d", s, uint32(maxAccount))
	}
	return nil
}
