package strict

import (
	"fmt"
	"slices"
	"strings"
)

// A Decoder turns the nodes of one file into valid values. It does not stop at
// a mistake: its methods return what they can, and of all mistakes in a document the
// first by position is kept. So they need not hand errors up, and nothing depends on
// the order in which keys are read. What they return counts only if there was no
// mistake.
type Decoder struct {
	file  string
	first *SyntaxError
}

// NewDecoder returns a decoder of a file with this name.
func NewDecoder(file string) *Decoder { return &Decoder{file: file} }

// Err returns the mistake that stands first, nil if there is none.
func (d *Decoder) Err() *SyntaxError { return d.first }

func (d *Decoder) at(line, column int) Position {
	return Position{File: d.file, Line: line, Column: column}
}

// Fail reports a mistake.
func (d *Decoder) Fail(at Position, format string, args ...any) {
	if d.first != nil && !Before(at, d.first.Position) {
		return
	}
	d.first = &SyntaxError{Position: at, Message: fmt.Sprintf(format, args...)}
}

// Wrong reports a node of the wrong type.
func (d *Decoder) Wrong(n Node, allowed string) {
	if n.Kind != KindRefused {
		d.Fail(n.Pos, "%s is %s; allowed: %s", n.Path, n.Describe(), allowed)
	}
}

// EachDocument passes a file through both forms, and has each document of it read, up to the first with a mistake.
func (d *Decoder) EachDocument(data []byte, read func(Node)) {
	if !d.checkText(data) {
		return
	}
	for i, c := range splitDocuments(data) {
		if i == maxDocuments {
			d.Fail(d.at(c.line, 1), "more than %d documents in one file; allowed: %[1]d, divide the file", maxDocuments)
			return
		}
		if n, ok := d.rawDocument(c); ok {
			read(n)
		}
		if d.first != nil {
			return
		}
	}
}

// A Shape says which keys a mapping may hold.
type Shape struct {
	Keys    []string
	Instead map[string]string // keys that people try, and what is meant
	Note    string            // what else to say to who wrote no mapping
}

// A Mapping is a Node of KindMapping of which every key is known.
type Mapping struct {
	Node
	Values map[string]Node
	Whole  bool // no key was refused: one that is missing was forgotten, not misspelt
}

// Mapping reads a mapping of a shape.
func (d *Decoder) Mapping(n Node, s Shape) Mapping {
	m := Mapping{Node: n, Values: make(map[string]Node)}
	if n.Kind != KindMapping {
		d.Wrong(n, "a mapping with "+strings.Join(s.Keys, ", ")+s.Note)
		return m
	}
	m.Whole = !n.Partial
	for _, f := range n.Fields {
		if slices.Contains(s.Keys, f.Key) {
			m.Values[f.Key] = f.Value
		} else {
			m.Whole = false
			d.unknownKey(f, n.Path, s)
		}
	}
	return m
}

func (d *Decoder) unknownKey(f Field, path *Path, s Shape) {
	hint := DidYouMean(f.Key, s.Keys)
	if meant, ok := s.Instead[f.Key]; ok {
		hint = " (" + meant + ")"
	}
	d.Fail(f.Pos, "unknown key %s in %s%s; allowed: %s", Quote(f.Key), path, hint, strings.Join(s.Keys, ", "))
}

// Need returns the value of a key that must be there, as in example.
func (d *Decoder) Need(m Mapping, key, example string) (Node, bool) {
	n, ok := m.Values[key]
	if !ok && m.Whole {
		d.Fail(m.Pos, "no %s in %s; needed: %s", key, m.Path, example)
	}
	return n, ok
}

// List returns the items of a list.
func (d *Decoder) List(n Node, allowed string) []Node {
	if n.Kind != KindList {
		d.Wrong(n, allowed)
	}
	return n.Items
}

// SomeOf returns the items of a list that may not be empty.
func (d *Decoder) SomeOf(n Node, allowed string) []Node {
	items := d.List(n, allowed)
	if n.Kind == KindList && len(items) == 0 {
		d.Fail(n.Pos, "%s is an empty list; allowed: %s", n.Path, allowed)
	}
	return items
}

// Distinct reads the items of a list and fails at each that repeats another.
func Distinct[T comparable](d *Decoder, items []Node, read func(Node) T) []T {
	var values []T
	seen := make(map[T]bool)
	for _, n := range items {
		v := read(n)
		if seen[v] {
			d.Fail(n.Pos, "%s is %s, which is in the list already; allowed: each once", n.Path, n.Describe())
		}
		seen[v] = true
		values = append(values, v)
	}
	return values
}

// Parsed reads text that parse understands. What YAML takes for another type has to
// be quoted, as 1.10 is not the text that it looks like; the message says so where
// quotes would help.
func Parsed[T any](d *Decoder, n Node, allowed string, parse func(string) (T, error)) T {
	value, err := parse(n.Text)
	switch {
	case n.Kind == KindText && err != nil:
		d.Fail(n.Pos, "%s: %s", n.Path, err)
	case n.Kind == KindText:
		return value
	case n.isScalar() && err == nil:
		d.Wrong(n, allowed+", in quotes: "+Quote(n.Text))
	default:
		d.Wrong(n, allowed)
	}
	var none T
	return none
}

// Checked reads text that check accepts.
func (d *Decoder) Checked(n Node, allowed string, check func(string) error) string {
	return Parsed(d, n, allowed, func(s string) (string, error) { return s, check(s) })
}

// Texts reads a list of texts that check accepts, each of which stands in it once.
func (d *Decoder) Texts(items []Node, allowed string, check func(string) error) []string {
	return Distinct(d, items, func(n Node) string { return d.Checked(n, allowed, check) })
}

// OneOf reads one of a few words.
func (d *Decoder) OneOf(n Node, words ...string) (string, bool) {
	switch {
	case n.Kind != KindText:
		d.Wrong(n, strings.Join(words, ", "))
	case !slices.Contains(words, n.Text):
		d.Fail(n.Pos, "%s is %s%s; allowed: %s", n.Path, n.Describe(), DidYouMean(n.Text, words),
			strings.Join(words, ", "))
	default:
		return n.Text, true
	}
	return "", false
}

// Yes reads a key that can only be true: what it would mean to be false is said by
// leaving it out.
func (d *Decoder) Yes(n Node) bool {
	if n.Kind != KindBool || n.Text != "true" {
		d.Wrong(n, "true, or no such key")
		return false
	}
	return true
}
