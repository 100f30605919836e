package policy

import (
	"cmp"
	"strconv"
	"strings"
)

// A rawKind is what a rawNode is.
type rawKind uint8

const (
	rawMapping rawKind = iota
	rawList
	rawText
	rawNull
	rawBool
	rawInt
	rawFloat
	rawTime
	rawRefused // a mistake that is reported already
)

// A rawNode is a piece of YAML before it has a meaning. What makes rawNodes is in
// parse_yaml.go, which alone knows yaml.v3.
type rawNode struct {
	kind    rawKind
	text    string     // scalars: as written
	fields  []rawField // rawMapping: keys are unique
	partial bool       // rawMapping: keys are missing, as they were refused
	items   []rawNode  // rawList
	path    *rawPath
	pos     Position
}

// A rawField is one entry of a mapping.
type rawField struct {
	key   string
	pos   Position // of the key
	value rawNode
}

// A rawPath is where a node is in its document: "spec.ingress[0].from". It is
// linked, not text, so that long keys around many nodes cost nothing. The nil path
// is that of the document.
type rawPath struct {
	parent *rawPath
	step   string
}

func (p *rawPath) String() string {
	switch {
	case p == nil:
		return "the document"
	case p.parent == nil:
		return p.step
	case strings.HasPrefix(p.step, "["):
		return p.parent.String() + p.step
	default:
		return p.parent.String() + "." + p.step
	}
}

// describe names a node as messages do.
func (n *rawNode) describe() string {
	switch n.kind {
	case rawMapping:
		return "a mapping"
	case rawList:
		return "a list"
	case rawNull:
		return cmp.Or(n.text, "empty")
	case rawBool:
		return "the boolean " + n.text
	case rawInt, rawFloat:
		return "the number " + shorten(n.text)
	case rawTime:
		return "the time " + n.text
	default:
		return "the text " + quote(n.text)
	}
}

// isScalar reports whether n is text, or what YAML takes for something else.
func (n *rawNode) isScalar() bool { return n.kind >= rawText && n.kind < rawRefused }

// quote is strconv.Quote for messages: what is long is cut.
func quote(s string) string { return strconv.Quote(shorten(s)) }

func shorten(s string) string {
	const most = 70
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
