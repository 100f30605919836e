package policy

import (
	"fmt"
	"slices"
	"strings"
)

// A decoder turns the rawNodes of one file into valid values. It does not stop at
// a mistake: its methods return what they can, and of all mistakes in a document the
// first by position is kept. So they need not hand errors up, and nothing depends on
// the order in which keys are read. What they return counts only if there was no
// mistake.
type decoder struct {
	file  string
	first *SyntaxError
}

func (d *decoder) at(line, column int) Position {
	return Position{File: d.file, Line: line, Column: column}
}

// fail reports a mistake.
func (d *decoder) fail(at Position, format string, args ...any) {
	if d.first != nil && !before(at, d.first.Position) {
		return
	}
	d.first = &SyntaxError{Position: at, Message: fmt.Sprintf(format, args...)}
}

// before reports whether a stands before b in one file.
func before(a, b Position) bool {
	return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
}

// wrong reports a node of the wrong type.
func (d *decoder) wrong(n rawNode, allowed string) {
	if n.kind != rawRefused {
		d.fail(n.pos, "%s is %s; allowed: %s", n.path, n.describe(), allowed)
	}
}

// A shape says which keys a mapping may hold.
type shape struct {
	keys    []string
	instead map[string]string // keys that people try, and what is meant
	note    string            // what else to say to who wrote no mapping
}

// A mapping is a rawMapping of which every key is known.
type mapping struct {
	rawNode
	values map[string]rawNode
	whole  bool // no key was refused: one that is missing was forgotten, not misspelt
}

// mapping reads a mapping of a shape.
func (d *decoder) mapping(n rawNode, s shape) mapping {
	m := mapping{rawNode: n, values: make(map[string]rawNode)}
	if n.kind != rawMapping {
		d.wrong(n, "a mapping with "+strings.Join(s.keys, ", ")+s.note)
		return m
	}
	m.whole = !n.partial
	for _, f := range n.fields {
		if slices.Contains(s.keys, f.key) {
			m.values[f.key] = f.value
		} else {
			m.whole = false
			d.unknownKey(f, n.path, s)
		}
	}
	return m
}

func (d *decoder) unknownKey(f rawField, path *rawPath, s shape) {
	hint := didYouMean(f.key, s.keys)
	if meant, ok := s.instead[f.key]; ok {
		hint = " (" + meant + ")"
	}
	d.fail(f.pos, "unknown key %s in %s%s; allowed: %s", quote(f.key), path, hint, strings.Join(s.keys, ", "))
}

// need returns the value of a key that must be there, as in example.
func (d *decoder) need(m mapping, key, example string) (rawNode, bool) {
	n, ok := m.values[key]
	if !ok && m.whole {
		d.fail(m.pos, "no %s in %s; needed: %s", key, m.path, example)
	}
	return n, ok
}

// list returns the items of a list.
func (d *decoder) list(n rawNode, allowed string) []rawNode {
	if n.kind != rawList {
		d.wrong(n, allowed)
	}
	return n.items
}

// someOf returns the items of a list that may not be empty.
func (d *decoder) someOf(n rawNode, allowed string) []rawNode {
	items := d.list(n, allowed)
	if n.kind == rawList && len(items) == 0 {
		d.fail(n.pos, "%s is an empty list; allowed: %s", n.path, allowed)
	}
	return items
}

// distinct reads the items of a list and fails at each that repeats another.
func distinct[T comparable](d *decoder, items []rawNode, read func(rawNode) T) []T {
	var values []T
	seen := make(map[T]bool)
	for _, n := range items {
		v := read(n)
		if seen[v] {
			d.fail(n.pos, "%s is %s, which is in the list already; allowed: each once", n.path, n.describe())
		}
		seen[v] = true
		values = append(values, v)
	}
	return values
}

// parsed reads text that parse understands. What YAML takes for another type has to
// be quoted, as 1.10 is not the text that it looks like; the message says so where
// quotes would help.
func parsed[T any](d *decoder, n rawNode, allowed string, parse func(string) (T, error)) T {
	value, err := parse(n.text)
	switch {
	case n.kind == rawText && err != nil:
		d.fail(n.pos, "%s: %s", n.path, err)
	case n.kind == rawText:
		return value
	case n.isScalar() && err == nil:
		d.wrong(n, allowed+", in quotes: "+quote(n.text))
	default:
		d.wrong(n, allowed)
	}
	var none T
	return none
}

// checked reads text that check accepts.
func (d *decoder) checked(n rawNode, allowed string, check func(string) error) string {
	return parsed(d, n, allowed, func(s string) (string, error) { return s, check(s) })
}

// texts reads a list of texts that check accepts, each of which stands in it once.
func (d *decoder) texts(items []rawNode, allowed string, check func(string) error) []string {
	return distinct(d, items, func(n rawNode) string { return d.checked(n, allowed, check) })
}

// oneOf reads one of a few words.
func (d *decoder) oneOf(n rawNode, words ...string) (string, bool) {
	switch {
	case n.kind != rawText:
		d.wrong(n, strings.Join(words, ", "))
	case !slices.Contains(words, n.text):
		d.fail(n.pos, "%s is %s%s; allowed: %s", n.path, n.describe(), didYouMean(n.text, words),
			strings.Join(words, ", "))
	default:
		return n.text, true
	}
	return "", false
}

// yes reads a key that can only be true: what it would mean to be false is said by
// leaving it out.
func (d *decoder) yes(n rawNode) bool {
	if n.kind != rawBool || n.text != "true" {
		d.wrong(n, "true, or no such key")
		return false
	}
	return true
}

// labels reads a mapping of labels that is not empty.
func (d *decoder) labels(n rawNode, allowed string, checkKey func(string) error) Labels {
	if n.kind != rawMapping {
		d.wrong(n, allowed)
		return nil
	}
	if len(n.fields) == 0 && !n.partial {
		d.fail(n.pos, "%s is an empty mapping; allowed: %s", n.path, allowed)
	}
	labels := make(Labels)
	for _, f := range n.fields {
		if err := checkKey(f.key); err != nil {
			d.fail(f.pos, "%s: %s", n.path, err)
		}
		labels[f.key] = d.labelValue(f.key, f.value)
	}
	return labels
}

func (d *decoder) labelValue(key string, n rawNode) string {
	return d.checked(n, "a label value", func(value string) error { return checkLabelValue(key, value) })
}
