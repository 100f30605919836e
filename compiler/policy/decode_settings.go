package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"thole/compiler/policy/strict"
)

// settingsName is the only name that Settings can have: there is one for a set.
const settingsName = "settings"

// maxPatterns bounds each list of patterns: a label is held against all of them.
const maxPatterns = 256

var (
	settingsShape = strict.Shape{
		Keys: []string{"identityLabels", "trustImages"},
		Instead: map[string]string{
			"labels": "it is identityLabels", "include": "it belongs in identityLabels",
			"exclude": "it belongs in identityLabels", "trustImage": "it is trustImages: […]",
		},
	}
	identityLabelsShape = strict.Shape{Keys: []string{"include", "exclude"}}
)

// settings reads a Settings document.
func (d *decoder) settings(meta strict.Mapping, spec strict.Node) Settings {
	s := Settings{}
	name, at := d.name(meta)
	s.Position = at
	if n, ok := meta.Values["name"]; ok && name != settingsName {
		d.Fail(n.Pos, "%s is %s; allowed: %s, because there is one for a set", n.Path, n.Describe(), settingsName)
	}
	m := d.Mapping(spec, settingsShape)
	if n, ok := m.Values["identityLabels"]; ok {
		labels := d.Mapping(n, identityLabelsShape)
		s.Include = d.patterns(labels, "include", "[com.docker.compose.project]", checkKeyPattern)
		s.Exclude = d.patterns(labels, "exclude", "[build.*]", checkKeyPattern)
		if labels.Whole && len(labels.Values) == 0 {
			d.Fail(n.Pos, "no include or exclude in %s; needed: at least one of them", n.Path)
		}
	}
	s.TrustImages = d.patterns(m, "trustImages", "[registry.example.com/*]", checkImagePattern)
	if m.Whole && len(m.Values) == 0 {
		d.Fail(m.Pos, "no identityLabels or trustImages in %s; needed: at least one of them", m.Path)
	}
	return s
}

// patterns reads a list of patterns that is not empty.
func (d *decoder) patterns(m strict.Mapping, key, example string, check func(string) error) []string {
	n, ok := m.Values[key]
	if !ok {
		return nil
	}
	items := d.SomeOf(n, "a list of patterns such as "+example)
	if len(items) > maxPatterns {
		d.Fail(items[maxPatterns].Pos, "more than %d patterns in %s; allowed: %[1]d", maxPatterns, n.Path)
	}
	return d.Texts(items, "a pattern such as "+example, check)
}

// checkKeyPattern accepts what can match a key of a label, but for those that only the daemon sets.
func checkKeyPattern(s string) error {
	if err := checkPattern(s); err != nil {
		return err
	}
	if strings.HasPrefix(s, daemonPrefix) {
		return fmt.Errorf("%s matches only keys that the daemon sets, which never count; allowed: other keys",
			strict.Quote(s))
	}
	return nil
}

// checkImagePattern accepts what can match the name of an image.
func checkImagePattern(s string) error {
	if err := checkPattern(s); err != nil {
		return err
	}
	if strings.Trim(s, "*?") == "" {
		return fmt.Errorf("%s trusts every image; allowed: a pattern that names a registry or a repository",
			strict.Quote(s))
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
			"* for any characters, ? for one", strict.Quote(s))
	}
	return nil
}
