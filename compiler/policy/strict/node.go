package strict

import (
	"cmp"
	"strconv"
	"strings"
)

// A Kind is what a Node is.
type Kind uint8

// The kinds of a node. Scalars are text, and what YAML takes for something else.
const (
	KindMapping Kind = iota
	KindList
	KindText
	KindNull
	KindBool
	KindInt
	KindFloat
	KindTime
	KindRefused // a mistake that is reported already
)

// A Node is a piece of YAML before it has a meaning. What makes nodes is in
// yaml.go, which alone knows yaml.v3.
type Node struct {
	Kind    Kind
	Text    string  // scalars: as written
	Fields  []Field // KindMapping: keys are unique
	Partial bool    // KindMapping: keys are missing, as they were refused
	Items   []Node  // KindList
	Path    *Path
	Pos     Position
}

// A Field is one entry of a mapping.
type Field struct {
	Key   string
	Pos   Position // of the key
	Value Node
}

// A Path is where a node is in its document: "spec.ingress[0].from". It is
// linked, not text, so that long keys around many nodes cost nothing. The nil path
// is that of the document.
type Path struct {
	parent *Path
	step   string
}

func (p *Path) String() string {
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

// Describe names a node as messages do.
func (n *Node) Describe() string {
	switch n.Kind {
	case KindMapping:
		return "a mapping"
	case KindList:
		return "a list"
	case KindNull:
		return cmp.Or(n.Text, "empty")
	case KindBool:
		return "the boolean " + n.Text
	case KindInt, KindFloat:
		return "the number " + Shorten(n.Text)
	case KindTime:
		return "the time " + n.Text
	default:
		return "the text " + Quote(n.Text)
	}
}

// isScalar reports whether n is text, or what YAML takes for something else.
func (n *Node) isScalar() bool { return n.Kind >= KindText && n.Kind < KindRefused }

// Quote is strconv.Quote for messages: what is long is cut.
func Quote(s string) string { return strconv.Quote(Shorten(s)) }

// Shorten cuts text that is too long for a message.
func Shorten(s string) string {
	const most = 70
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
