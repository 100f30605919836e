package ruleset

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
)

// Normalise brings t into canonical form, in which tables that mean the same to the
// kernel are equal but for comments and the paths of cgroups with an id:
//
//   - counters, sets, chains and elements are in ascending order, without repetition;
//   - a rule matches the family or protocol of a header before it reads it, as nft
//     adds by itself ("payload dependencies", nftables, src/payload.c). What nft would
//     add in family bridge is not added: it is to be there;
//   - each comparison and assignment is written in one of its several ways;
//   - what nft's text cannot hold of a log prefix is replaced.
//
// Slices of t that others may hold are not written to. Elements that are in this form already are shared with them.
func (t *Table) Normalise() { *t = t.normalised() }

// normalised returns t in canonical form and leaves t as it is. Both share elements.
func (t Table) normalised() Table {
	t.Counters = slices.Compact(slices.Sorted(slices.Values(t.Counters)))
	t.Foreign = slices.Compact(slices.Sorted(slices.Values(t.Foreign)))
	t.Sets = slices.Clone(t.Sets)
	for i := range t.Sets {
		t.Sets[i] = t.Sets[i].normalise()
	}
	slices.SortFunc(t.Sets, func(a, b Set) int { return cmp.Compare(a.Name, b.Name) })
	t.Chains = slices.Clone(t.Chains)
	for i := range t.Chains {
		t.Chains[i] = t.Chains[i].normalise()
	}
	slices.SortFunc(t.Chains, func(a, b Chain) int { return cmp.Compare(a.Name, b.Name) })
	t.Bridge = normalisedCopy(t.Bridge)
	return t
}

func normalisedCopy(t *Table) *Table {
	if t == nil {
		return nil
	}
	n := t.normalised()
	return &n
}

// Same says that two tables are equal to the kernel.
func Same(a, b Table) bool {
	a, b = a.normalised(), b.normalised()
	return equalTables(&a, &b)
}

// equalTables compares two normalised tables, nil being none.
func equalTables(a, b *Table) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name &&
		slices.Equal(a.Counters, b.Counters) &&
		slices.Equal(a.Foreign, b.Foreign) &&
		slices.EqualFunc(a.Sets, b.Sets, equalSets) &&
		slices.EqualFunc(a.Chains, b.Chains, equalChains) &&
		equalTables(a.Bridge, b.Bridge)
}

// equalSets compares two normalised sets.
func equalSets(a, b Set) bool {
	return sameSet(a, b) && slices.EqualFunc(a.Elements, b.Elements, equalElements)
}

// sameSet compares what cannot be changed of a set.
func sameSet(a, b Set) bool {
	return a.Name == b.Name && slices.Equal(a.Key, b.Key) && a.Data == b.Data &&
		a.Interval == b.Interval && a.Foreign == b.Foreign && a.Timeout == b.Timeout && a.Size == b.Size
}

func equalElements(a, b Element) bool { return a.Compare(b) == 0 }

// equalChains compares two normalised chains.
func equalChains(a, b Chain) bool {
	return sameChain(a, b) && slices.EqualFunc(a.Rules, b.Rules, equalRules)
}

// sameChain compares what cannot be changed of a chain.
func sameChain(a, b Chain) bool {
	return a.Name == b.Name && a.Hook == b.Hook && a.Priority == b.Priority && a.Foreign == b.Foreign
}

// equalRules compares two normalised rules.
func equalRules(a, b Rule) bool {
	return slices.EqualFunc(a.Statements, b.Statements, func(a, b Statement) bool {
		return reflect.DeepEqual(a, b)
	})
}

func (s Set) normalise() Set {
	if s.Timeout != 0 {
		s.Elements = nil
		return s
	}
	s.Size = 0
	if s.isNormal() {
		return s
	}
	s.Elements = slices.Clone(s.Elements)
	sorted := true
	for i := range s.Elements {
		s.Elements[i] = s.Elements[i].normalise(s.Data)
		sorted = sorted && (i == 0 || s.Elements[i-1].compare(&s.Elements[i]) <= 0)
	}
	if !sorted {
		s.Elements = sortElements(s.Elements)
	}
	s.Elements = slices.CompactFunc(s.Elements, equalElements)
	return s
}

// isNormal reports whether the elements are in canonical form.
func (s *Set) isNormal() bool {
	for i := range s.Elements {
		e := &s.Elements[i]
		if n := e.normalise(s.Data); n.Number != e.Number || n.Verdict != e.Verdict ||
			i > 0 && s.Elements[i-1].compare(e) >= 0 {
			return false
		}
	}
	return true
}

// sortElements returns elements sorted, and equal ones, of which comments may differ, in the order in which they were.
// It moves each once: an element is large.
func sortElements(elements []Element) []Element {
	order := make([]int, len(elements))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if c := elements[a].compare(&elements[b]); c != 0 {
			return c
		}
		return a - b
	})
	list := make([]Element, len(elements))
	for i, at := range order {
		list[i] = elements[at]
	}
	return list
}

// normalise clears what a map to data does not use.
func (e Element) normalise(data Type) Element {
	if data != Mark && data != ClassID {
		e.Number = 0
	}
	if data != VerdictType {
		e.Verdict = Verdict{}
	}
	e.Verdict = e.Verdict.normalise()
	return e
}

func (v Verdict) normalise() Verdict {
	if v.Kind != Jump && v.Kind != Goto {
		v.Chain = ""
	}
	return v
}

func (c Chain) normalise() Chain {
	if c.Hook == NoHook {
		c.Priority = 0
	}
	c.Rules = slices.Clone(c.Rules)
	for i := range c.Rules {
		c.Rules[i] = c.Rules[i].normalise()
	}
	return c
}

// normalise rewrites each statement and states what it needs before it.
func (r Rule) normalise() Rule {
	var out []Statement
	for _, s := range r.Statements {
		s = normaliseStatement(s)
		for _, need := range needs(s) {
			stated := func(m Match) bool { return slices.Contains(out, Statement(m)) }
			if !slices.ContainsFunc(need, stated) {
				out = append(out, need[0])
			}
		}
		out = append(out, s)
	}
	r.Statements = out
	return r
}

// needs returns what must hold before s: one match of each list.
func needs(s Statement) [][]Match {
	var fields []Expr
	switch s := s.(type) {
	case Match:
		fields = []Expr{s.Left}
	case InSet:
		fields = s.Key
	case ByMap:
		fields = s.Key
	case SetByMap:
		fields = s.Key
	case Update:
		fields = s.Key
	case Reject:
		if s.With == TCPReset {
			return [][]Match{TCPFlags.Needs()}
		}
	case Rewrite:
		return [][]Match{s.Target.Needs()}
	case Flip:
		return [][]Match{TCPFlags.Needs()}
	}
	var out [][]Match
	for _, f := range fields {
		if need := f.Field.Needs(); need != nil {
			out = append(out, need)
		}
	}
	return out
}

func normaliseStatement(s Statement) Statement {
	switch s := s.(type) {
	case Match:
		return s.normalise()
	case InSet:
		s.Key = normaliseKey(s.Key)
		return s
	case ByMap:
		s.Key = normaliseKey(s.Key)
		return s
	case SetByMap:
		s.Key = normaliseKey(s.Key)
		return s
	case Update:
		s.Key = normaliseKey(s.Key)
		return s
	case SetBits:
		s.And &^= s.Or
		return s
	case Copy:
		if s.And == 0 {
			s.And = s.Source.ones()
		}
		s.And &^= s.Or
		return s
	case Log:
		s.Prefix = writablePrefix(s.Prefix)
		return s
	case Verdict:
		return s.normalise()
	default:
		return s
	}
}

func normaliseKey(key []Expr) []Expr {
	key = slices.Clone(key)
	for i := range key {
		key[i] = key[i].normalise()
	}
	return key
}

// normalise clears what e's field does not use, and a mask of all ones.
func (e Expr) normalise() Expr {
	if e.Field != SocketCgroup && e.Field != TCPOption {
		e.Level = 0
	}
	if e.Mask == e.Field.ones() {
		e.Mask = 0
	}
	return e
}

// ones returns a mask of all bits of a field of up to 4 bytes.
func (f Field) ones() uint32 {
	if n := f.Bytes(); n < 4 {
		return 1<<(8*n) - 1
	}
	return 1<<32 - 1
}

// normalise picks one way to write m: no mask but in Masked and MaskedNot and none
// there that has all bits; Any, not MaskedNot 0, for fields that are sets of bits;
// Equal, not a range of one, but for what is too long for Value.
func (m Match) normalise() Match {
	if m.Left.Mask != 0 {
		m = m.withoutLeftMask()
	}
	m.Left = m.Left.normalise()
	if m.Op == InRange && m.From == m.To && m.Left.Field.Bytes() <= 4 {
		m.Op, m.Value = Equal, uint32(m.From.Uint64())
	}
	if m.Op == Equal && m.Left.Field.Bytes() > 4 {
		m.Op, m.From, m.To = InRange, WordOf(uint64(m.Value)), WordOf(uint64(m.Value))
	}
	if m.Op == Any && !m.Left.Field.isBits() {
		m.Op, m.Mask, m.Value = MaskedNot, m.Value, 0
	}
	if m.Op == MaskedNot && m.Value == 0 && m.Left.Field.isBits() {
		m.Op, m.Value = Any, m.Mask
	}
	if m.Mask == m.Left.Field.ones() {
		switch m.Op {
		case Masked:
			m.Op = Equal
		case MaskedNot:
			m.Op = NotEqual
		}
	}
	if m.Op != Masked && m.Op != MaskedNot {
		m.Mask = 0
	}
	if m.Op == InRange {
		m.Value = 0
	} else {
		m.From, m.To = Word{}, Word{}
	}
	return m
}

// isBits says that f is a set of bits.
func (f Field) isBits() bool { return f == CtState || f == CtStatus || f == TCPFlags }

// withoutLeftMask moves the mask of the field to the match.
func (m Match) withoutLeftMask() Match {
	switch m.Op {
	case Equal:
		m.Op, m.Mask = Masked, m.Left.Mask
	case NotEqual:
		m.Op, m.Mask = MaskedNot, m.Left.Mask
	case Any:
		m.Value &= m.Left.Mask
	case Masked, MaskedNot:
		m.Mask &= m.Left.Mask
	default:
		return m
	}
	m.Left.Mask = 0
	return m
}

// maxPrefix is the longest log prefix (NF_LOG_PREFIXLEN - 1, net/netfilter/nf_log.h).
const maxPrefix = 127

// writablePrefix replaces what a quoted string of nft 1.0.6 cannot hold: there is no
// escape for the quote, and a $ begins a variable (src/scanner.l;
// stmt_evaluate_log_prefix in src/evaluate.c). Control characters would reach the
// kernel's log.
func writablePrefix(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '$' || isControl(r):
			return '?'
		default:
			return r
		}
	}, s)
	for len(s) > maxPrefix {
		s = strings.ToValidUTF8(s[:maxPrefix], "")
	}
	return s
}
