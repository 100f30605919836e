package api

import (
	"errors"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"encoding/json"

	"thole/compiler/policy"
	"thole/watch/process"
)

// A caller is a user who asks for labels.
type caller struct {
	uid    uint32
	user   string   // "" if the uid has no name
	groups []string // names and numbers

	process process.Process // that asks
}

// newCaller looks the names up. An id without a name keeps its number alone.
func newCaller(uid uint32, gids []uint32) caller {
	c := caller{uid: uid}
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		c.user = u.Username
	}
	for _, gid := range gids {
		number := strconv.FormatUint(uint64(gid), 10)
		c.groups = append(c.groups, number)
		if g, err := user.LookupGroupId(number); err == nil {
			c.groups = append(c.groups, g.Name)
		}
	}
	return c
}

// has reports whether the grant is one to this caller.
func (c caller) has(g policy.LabelGrant) bool {
	number := strconv.FormatUint(uint64(c.uid), 10)
	return slices.Contains(g.Users, number) ||
		c.user != "" && slices.Contains(g.Users, c.user) ||
		slices.ContainsFunc(c.groups, func(group string) bool { return slices.Contains(g.Groups, group) })
}

// String names the caller as messages do.
func (c caller) String() string {
	if c.user == "" {
		return fmt.Sprintf("uid %d", c.uid)
	}
	return "user " + c.user
}

// checkLabels accepts the labels that a Workload document may give. It is the
// document's own parser that says so: JSON is YAML.
func checkLabels(labels policy.Labels) error {
	if len(labels) == 0 {
		return errors.New("no label was given: use `thole run --label KEY=VALUE`")
	}
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels were given; at most %d are allowed", len(labels), maxLabels)
	}
	document, err := json.Marshal(map[string]any{
		"apiVersion": "thole/v1",
		"kind":       "Workload",
		"metadata":   map[string]any{"name": "run", "labels": labels},
		"spec":       map[string]any{"cgroup": "run"},
	})
	if err != nil {
		return fmt.Errorf("encoding the labels: %v", err)
	}
	_, err = policy.Parse([]policy.File{{Name: "labels", Data: document}})
	if syntax, ok := errors.AsType[*policy.SyntaxError](err); ok {
		return errors.New(syntax.Message)
	}
	return err
}

// grant returns the labels that the caller gets when he asks for these. Root may
// give any. All others need a grant that allows every label asked for, and get
// what all their grants require. The error says what they may use.
func grant(grants []policy.LabelGrant, c caller, asked policy.Labels) (policy.Labels, error) {
	if c.uid == 0 {
		return asked, nil
	}
	var his []policy.LabelGrant
	for _, g := range grants {
		if c.has(g) {
			his = append(his, g)
		}
	}
	required, err := requirements(his)
	if err != nil {
		return nil, fmt.Errorf("%s may give no labels: %v", c, err)
	}
	for k, v := range asked {
		if want, ok := required[k]; ok && want != v {
			return nil, fmt.Errorf("%s may not use the label %s=%s: a grant requires %s=%s.\n%s", c, k, v, k, want,
				usable(his))
		}
	}
	if !slices.ContainsFunc(his, func(g policy.LabelGrant) bool { return allows(g, required, asked) }) {
		return nil, fmt.Errorf("%s may not use the labels %s.\n%s", c, asked, usable(his))
	}
	labels := maps.Clone(asked)
	maps.Copy(labels, required)
	return labels, nil
}

// allows reports whether one grant covers all the labels asked for.
func allows(g policy.LabelGrant, required, asked policy.Labels) bool {
	for k, v := range asked {
		if want, ok := required[k]; ok && want == v {
			continue
		}
		values := g.Labels[k]
		if !slices.Contains(values, v) && !slices.Contains(values, "*") {
			return false
		}
	}
	return true
}

// requirements joins what the grants require. Two that contradict each other leave
// nothing that could be run.
func requirements(grants []policy.LabelGrant) (policy.Labels, error) {
	required := policy.Labels{}
	by := map[string]policy.LabelGrant{}
	for _, g := range grants {
		for k, v := range g.Require {
			if other, ok := by[k]; ok && required[k] != v {
				return nil, fmt.Errorf("the grants %q (%s) and %q (%s) require %s=%s and %s=%s: change one of them",
					other.Name, other.Position, g.Name, g.Position, k, required[k], k, v)
			}
			required[k], by[k] = v, g
		}
	}
	return required, nil
}

// usable lists what a user may use, a line for each grant.
func usable(grants []policy.LabelGrant) string {
	if len(grants) == 0 {
		return "No LabelGrant names this user or a group of theirs: root can add one to the policies, see " +
			"docs/POLICY.md."
	}
	var b strings.Builder
	b.WriteString("Labels that may be used:")
	for _, g := range grants {
		fmt.Fprintf(&b, "\n  %s", describe(g))
	}
	return b.String()
}

// describe writes a grant as one line: "app=web|db env=* (team=a is added)".
func describe(g policy.LabelGrant) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
		words = append(words, k+"="+strings.Join(g.Labels[k], "|"))
	}
	if len(words) == 0 {
		words = append(words, "none")
	}
	if len(g.Require) > 0 {
		words = append(words, "("+g.Require.String()+" is added)")
	}
	return strings.Join(words, " ")
}
