package inventory

import (
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"thole/compiler/policy"
)

// An Entry is a workload that runs.
type Entry struct {
	Name, Namespace string
	Kind            string // of policy.Kind
	Cgroup          string // its path
	Labels          policy.Labels
	Sources         map[string]policy.Source // of each label
	Remarks         map[string]string        // to be printed beside labels: "does not count"
}

// Write writes a Workload document for each entry. No two of them have the same cgroup.
func Write(w io.Writer, entries []Entry) error {
	names := map[string]bool{}
	for i := range entries {
		e := &entries[i]
		var b strings.Builder
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "apiVersion: thole/v1\nkind: Workload\nmetadata:\n  name: %s\n",
			quoted(freeName(e.Name, names)))
		if e.Namespace != "" {
			fmt.Fprintf(&b, "  namespace: %s\n", quoted(e.Namespace))
		}
		b.WriteString("  labels:\n")
		keys := slices.Sorted(maps.Keys(e.Labels))
		for _, key := range keys {
			b.WriteString(keyed(key) + quoted(e.Labels[key]) + remark(e.Remarks[key]) + "\n")
		}
		b.WriteString("  labelSources:\n")
		for _, key := range keys {
			b.WriteString(keyed(key) + word(e.Sources[key]) + "\n")
		}
		kind, target := e.target()
		fmt.Fprintf(&b, "spec:\n  %s: %s\n", kind, quoted(target))
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// target is what the document binds.
func (e *Entry) target() (kind, target string) {
	base := path.Base(e.Cgroup)
	user, isUser := strings.CutPrefix(strings.TrimSuffix(base, ".slice"), "user-")
	switch {
	case e.Kind == policy.KindContainer.String() && plainContainer.MatchString(e.Name):
		return "container", e.Name
	case e.Kind == policy.KindUnit.String() && unitPath(base) == e.Cgroup:
		return "unit", base
	case e.Kind == policy.KindUser.String() && isUser && e.Cgroup == "user.slice/"+base:
		return "user", user
	}
	return "cgroup", pattern(e.Cgroup)
}

var plainContainer = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

// pattern is a path as a document may have it: a character that it may not have is a ? there.
func pattern(cgroup string) string {
	var b strings.Builder
	before := ' '
	for _, r := range cgroup {
		if policy.IsLabelText(string(r)) && r != '\ufffd' && !(r == '*' && before == '*') {
			before = r
		} else {
			before = '?'
		}
		b.WriteRune(before)
	}
	return b.String()
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// freeName is a name of a document that no other has, and that is like a workload's.
func freeName(name string, taken map[string]bool) string {
	base := name
	if policy.CheckName(name) != nil {
		base = strings.Trim(notInName.ReplaceAllString(strings.ToLower(name), "-"), "-")
	}
	if len(base) > 48 {
		base = strings.TrimRight(base[:48], "-.")
	}
	if base == "" {
		base = "workload"
	}
	free := base
	for n := 2; taken[free]; n++ {
		free = fmt.Sprintf("%s-%d", base, n)
	}
	taken[free] = true
	return free
}

// word is a source, as documents write it.
func word(source policy.Source) string {
	if plain.MatchString(string(source)) {
		return string(source)
	}
	return quoted(string(source))
}

// remark is a comment.
func remark(text string) string {
	if text == "" {
		return ""
	}
	return " # " + text
}

// Text that YAML reads as such, and words that some version of it reads as something else.
var (
	plain = regexp.MustCompile(`^[a-z][a-zA-Z0-9._/-]{0,99}$`)
	words = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
)

// keyed is a key of a mapping of labels, up to its value. YAML needs a question mark before a long one.
func keyed(key string) string {
	switch text := quoted(key); {
	case plain.MatchString(key) && !slices.Contains(words, strings.ToLower(key)):
		return "    " + key + ": "
	case len(text) > 100:
		return "    ? " + text + "\n    : "
	default:
		return "    " + text + ": "
	}
}

// quoted is text between double quotes, with YAML's escapes for all that is not plain ASCII.
func quoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"', r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
