package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"gopkg.in/yaml.v3"
)

// rawDocument turns one document into nodes; false if it is empty or wrong.
func (d *Decoder) rawDocument(c chunk) (Node, bool) {
	n, err := decodeYAML(&lineReader{lines: c.lines})
	if err != nil {
		d.notYAML(c, err)
		return Node{}, false
	}
	if n == nil {
		return Node{}, false
	}
	b := rawBuilder{d: d, line: c.line}
	root := b.node(n.Content[0], nil, d.at(c.line, 1), 0)
	return root, root.Kind != KindNull || root.Text != ""
}

// errTwoDocuments is a second document in a chunk; in the words of yaml.v3, which
// finds most of them itself.
var errTwoDocuments = errors.New("yaml: did not find expected <document start>")

// decodeYAML returns the one document that r holds; nil if there is none.
func decodeYAML(r io.Reader) (n *yaml.Node, err error) {
	// yaml.v3 panics where it does not expect a comment or an event ("internal
	// error: …, please report"); a policy file must not end the daemon.
	defer func() {
		if p := recover(); p != nil {
			n, err = nil, fmt.Errorf("yaml: %v", p)
		}
	}()
	var doc, more yaml.Node
	in := yaml.NewDecoder(r)
	switch err := in.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	switch err := in.Decode(&more); {
	case err == nil:
		return nil, errTwoDocuments
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return &doc, nil
}

// A lineReader hands out one line at each Read, so that after an error it is known
// how far the parser came.
type lineReader struct {
	lines [][]byte
	next  int
	rest  []byte
}

func (r *lineReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next == len(r.lines) {
			return 0, io.EOF
		}
		r.rest = r.lines[r.next]
		r.next++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// notYAML reports an error of yaml.v3. Its own line numbers are those of the block
// around the mistake, or one less, and there are no columns.
func (d *Decoder) notYAML(c chunk, err error) {
	line := c.badLine()
	text := c.lines[line]
	column := 1 + len(text) - len(bytes.TrimLeft(text, " "))
	d.Fail(d.at(c.line+line, column), "%s", explain(err))
}

// badLine returns the index of the line at which the document ceases to be YAML:
// the one after the longest run of whole lines that is YAML by itself. So a list
// that is never closed is reported where it begins. The search goes back from where
// the parser gave up, and is limited, as each step parses the run anew.
func (c chunk) badLine() int {
	r := &lineReader{lines: c.lines}
	decodeYAML(r)
	gaveUp := max(r.next-1, 0)
	budget := maxFileSize
	for n := gaveUp; n > 0; n-- {
		run := bytes.Join(c.lines[:n], nil)
		if budget -= len(run); budget < 0 {
			return gaveUp
		}
		if _, err := decodeYAML(bytes.NewReader(run)); err == nil {
			return n
		}
	}
	return 0
}

// explanations are what people do when yaml.v3 says the key, in the order of precedence.
var explanations = []struct{ yaml, message string }{
	{"did not find expected <document start>",
		`text after the end of a document; allowed: "---" before each further document`},
	{"mapping values are not allowed",
		`a second ": " in one line, or a wrong indentation; allowed: one key a line, text with ": " in quotes`},
	{"did not find expected key", "a line that is neither a key nor part of the value before it; allowed: keys of " +
		"one mapping in one column"},
	{"did not find expected '-' indicator",
		`a line that is not an item of the list; allowed: all "- " of one list in one column`},
	{"did not find expected ',' or ']'",
		`a list that is not closed, or an item without a comma; allowed: [item, item]`},
	{"did not find expected ',' or '}'",
		`a mapping that is not closed, or an entry without a comma; allowed: {key: value, key: value}`},
	{"did not find expected node content",
		`"," or ":" or a bracket where a value should be; ` +
			`allowed: values, in quotes if they begin with ":", as "::/0"`},
	{"block sequence entries are not allowed",
		`a "- " in the wrong place; allowed: each item of a list on a line of its own`},
	{"could not find expected ':'", `a key without ":"; allowed: key: value`},
	{"did not find expected alphabetic or numeric", `a bare "*" or "&"; allowed: in quotes: "*"`},
	{"unknown anchor", "an alias (*name); allowed: the value itself, written out"},
	{"found character that cannot start any token", "text that begins with @, ` or %; allowed: in quotes"},
	{"found unexpected end of stream", "a quote that is not closed; allowed: a quote at both ends"},
	{"found unknown escape character",
		`a backslash that YAML does not know; allowed: \\ in double quotes, or single quotes`},
	{"found unexpected document indicator", "a quote that is not closed; allowed: a quote at both ends"},
	{"exceeded max depth", fmt.Sprintf("lists and mappings nested too deep; allowed: %d levels", maxDepth)},
}

func explain(err error) string {
	for _, e := range explanations {
		if strings.Contains(err.Error(), e.yaml) {
			return e.message
		}
	}
	reason := strings.TrimPrefix(err.Error(), "yaml: ")
	return "not YAML (" + Shorten(reason) + "); allowed: YAML mappings, lists and scalars"
}

// A rawBuilder copies a document of yaml.v3 and refuses what YAML can do and a
// policy has no use for.
type rawBuilder struct {
	d    *Decoder
	line int // of the chunk
}

// pos is where n stands. What is empty stands where its key or its list does,
// because YAML places it at what comes next.
func (b *rawBuilder) pos(n *yaml.Node, parent Position) Position {
	if n.Kind == yaml.ScalarNode && n.Value == "" && n.Style == 0 {
		return parent
	}
	return b.d.at(b.line+n.Line-1, n.Column)
}

// node copies n. Depth is the number of mappings and lists around it.
func (b *rawBuilder) node(n *yaml.Node, path *Path, parent Position, depth int) Node {
	pos := b.pos(n, parent)
	if problem := refused(n, depth); problem != "" {
		b.d.Fail(pos, "%s", problem)
		return Node{Kind: KindRefused, Path: path, Pos: pos}
	}
	raw := Node{Path: path, Pos: pos, Text: n.Value}
	switch n.Kind {
	case yaml.MappingNode:
		raw.Kind, raw.Fields = KindMapping, b.fields(n, path, depth)
		raw.Partial = len(raw.Fields) < len(n.Content)/2
	case yaml.SequenceNode:
		raw.Kind, raw.Items = KindList, b.items(n, raw, depth)
	default:
		raw.Kind = scalarKind(n)
	}
	return raw
}

// refused says what is wrong with n whatever it means. An alias can stand for
// billions of nodes, and is not what a reader of the line sees.
func refused(n *yaml.Node, depth int) string {
	switch {
	case n.Kind == yaml.AliasNode:
		return "the alias *" + Shorten(n.Value) + "; allowed: the value itself, written out"
	case n.Anchor != "":
		return "the anchor &" + Shorten(n.Anchor) + "; allowed: no anchors and aliases, write each value out"
	case n.Style&yaml.TaggedStyle != 0:
		return "the tag " + Shorten(n.Tag) + "; allowed: values without tags, text in quotes"
	case depth > maxDepth:
		return fmt.Sprintf("lists and mappings nested too deep; allowed: %d levels", maxDepth)
	}
	return ""
}

func scalarKind(n *yaml.Node) Kind {
	switch n.ShortTag() {
	case "!!null":
		return KindNull
	case "!!bool":
		return KindBool
	case "!!int":
		return KindInt
	case "!!float":
		return KindFloat
	case "!!timestamp":
		return KindTime
	default:
		return KindText
	}
}

func (b *rawBuilder) items(n *yaml.Node, list Node, depth int) []Node {
	items := make([]Node, len(n.Content))
	for i, c := range n.Content {
		step := &Path{list.Path, fmt.Sprintf("[%d]", i)}
		items[i] = b.node(c, step, list.Pos, depth+1)
	}
	return items
}

func (b *rawBuilder) fields(n *yaml.Node, path *Path, depth int) []Field {
	fields := make([]Field, 0, len(n.Content)/2)
	first := make(map[string]int) // key → line
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !b.isKey(key, path) {
			continue
		}
		pos := b.d.at(b.line+key.Line-1, key.Column)
		if line, ok := first[key.Value]; ok {
			b.d.Fail(pos, "the key %s is repeated in %s, first in line %d; allowed: each key once",
				Quote(key.Value), path, line)
			continue
		}
		first[key.Value] = pos.Line
		value := b.node(n.Content[i+1], &Path{path, Shorten(key.Value)}, pos, depth+1)
		fields = append(fields, Field{key.Value, pos, value})
	}
	return fields
}

// isKey reports whether n is text that can be a key, and fails if not.
func (b *rawBuilder) isKey(n *yaml.Node, path *Path) bool {
	raw := Node{Kind: scalarKind(n), Text: n.Value}
	problem := refused(n, 0)
	switch {
	case problem != "":
	case n.Kind != yaml.ScalarNode:
		problem = fmt.Sprintf("a list or mapping as a key of %s; allowed: text", path)
	case n.Value == "<<" && n.Style == 0:
		problem = fmt.Sprintf("the merge key << in %s; allowed: every key written out", path)
	case raw.Kind == KindNull:
		problem = fmt.Sprintf("an empty key in %s; allowed: text", path)
	case raw.Kind != KindText:
		problem = fmt.Sprintf("%s as a key of %s; allowed: text, in quotes: %s", raw.Describe(), path, Quote(n.Value))
	default:
		return true
	}
	b.d.Fail(b.d.at(b.line+n.Line-1, n.Column), "%s", problem)
	return false
}
