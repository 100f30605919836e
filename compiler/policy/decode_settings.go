package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// settingsName is the only name that Settings can have: there is one for a set.
const settingsName = "settings"

// maxPatterns bounds each list of patterns: a label is held against all of them.
const maxPatterns = 256

var (
	settingsShape = shape{
		keys: []string{"identityLabels", "trustImages"},
		instead: map[string]string{
			"labels": "it is identityLabels", "include": "it belongs in identityLabels",
			"exclude": "it belongs in identityLabels", "trustImage": "it is trustImages: […]",
		},
	}
	identityLabelsShape = shape{keys: []string{"include", "exclude"}}
)

// settings reads a Settings document.
func (d *decoder) settings(meta mapping, spec rawNode) Settings {
	s := Settings{}
	name, at := d.name(meta)
	s.Position = at
	if n, ok := meta.values["name"]; ok && name != settingsName {
		d.fail(n.pos, "%s is %s; allowed: %s, because there is one for a set", n.path, n.describe(), settingsName)
	}
	m := d.mapping(spec, settingsShape)
	if n, ok := m.values["identityLabels"]; ok {
		labels := d.mapping(n, identityLabelsShape)
		s.Include = d.patterns(labels, "include", "[com.docker.compose.project]", checkKeyPattern)
		s.Exclude = d.patterns(labels, "exclude", "[build.*]", checkKeyPattern)
		if labels.whole && len(labels.values) == 0 {
			d.fail(n.pos, "no include or exclude in %s; needed: at least one of them", n.path)
		}
	}
	s.TrustImages = d.patterns(m, "trustImages", "[registry.example.com/*]", checkImagePattern)
	if m.whole && len(m.values) == 0 {
		d.fail(m.pos, "no identityLabels or trustImages in %s; needed: at least one of them", m.path)
	}
	return s
}

// patterns reads a list of patterns that is not empty.
func (d *decoder) patterns(m mapping, key, example string, check func(string) error) []string {
	n, ok := m.values[key]
	if !ok {
		return nil
	}
	items := d.someOf(n, "a list of patterns such as "+example)
	if len(items) > maxPatterns {
		d.fail(items[maxPatterns].pos, "more than %d patterns in %s; allowed: %[1]d", maxPatterns, n.path)
	}
	return d.texts(items, "a pattern such as "+example, check)
}

// checkKeyPattern accepts what can match a key of a label, but for those that only the daemon sets.
func checkKeyPattern(s string) error {
	if err := checkPattern(s); err != nil {
		return err
	}
	if strings.HasPrefix(s, daemonPrefix) {
		return fmt.Errorf("%s matches only keys that the daemon sets, which never count; allowed: other keys", quote(s))
	}
	return nil
}

// checkImagePattern accepts what can match the name of an image.
func checkImagePattern(s string) error {
	if err := checkPattern(s); err != nil {
		return err
	}
	if strings.Trim(s, "*?") == "" {
		return fmt.Errorf("%s trusts every image; allowed: a pattern that names a registry or a repository", quote(s))
	}
	return nil
}

func checkPattern(s string) error {
	switch {
	case s == "":
		return errors.New(`an empty pattern; allowed: letters, digits and punctuation, * for any characters, ? for one`)
	case len(s) > 512:
		return fmt.Errorf("a pattern of %d bytes; allowed: 512", len(s))
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("a space or control character in %s; allowed: letters, digits and punctuation, "+
			"* for any characters, ? for one", quote(s))
	}
	return nil
}
