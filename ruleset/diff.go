package ruleset

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Change is what makes one table of another: the kernel takes its Steps in order,
// in one transaction, first those in family inet, then those in family bridge. Both
// tables are normalised, and nil where there is none, as both are in that of a Patch.
type Change struct {
	Table      string // the name of both
	Have, Want *Table
	Steps      []Step
	Bridge     []Step
	Declared   []Set // of a Patch: what the rules in Steps may look up, without elements
}

// Empty says that there is nothing to do.
func (c Change) Empty() bool { return len(c.Steps)+len(c.Bridge) == 0 }

// A Step is one of the types below: one command to the kernel.
type Step interface{ step() }

type (
	// AddTable makes the table, empty. It must not be there.
	AddTable struct{ Name string }
	// DeleteTable removes the table and all in it.
	DeleteTable struct{ Name string }
	// AddCounter makes a named counter of zero.
	AddCounter struct{ Name string }
	// DeleteCounter removes a counter that no rule refers to.
	DeleteCounter struct{ Name string }
	// AddSet makes a set without its elements.
	AddSet struct{ Set Set }
	// DeleteSet removes a set that no rule refers to, with its elements.
	DeleteSet struct{ Name string }
	// AddElements adds the elements of Set, and no others, to the set of its name.
	AddElements struct{ Set Set }
	// DeleteElements removes the elements of Set.
	DeleteElements struct{ Set Set }
	// AddChain makes a chain without its rules.
	AddChain struct{ Chain Chain }
	// DeleteChain removes a chain that nothing jumps to.
	DeleteChain struct{ Name string }
	// FlushChain removes all rules of a chain.
	FlushChain struct{ Name string }
	// AddRules appends the rules of Chain to the chain of its name.
	AddRules struct{ Chain Chain }
)

func (AddTable) step()       {}
func (DeleteTable) step()    {}
func (AddCounter) step()     {}
func (DeleteCounter) step()  {}
func (AddSet) step()         {}
func (DeleteSet) step()      {}
func (AddElements) step()    {}
func (DeleteElements) step() {}
func (AddChain) step()       {}
func (DeleteChain) step()    {}
func (FlushChain) step()     {}
func (AddRules) step()       {}

// Diff returns what makes want of have; nil is no table. Elements are added and
// removed one by one, an element that maps to something else is removed and added,
// and a chain whose rules differ is flushed and filled again. What cannot be changed
// in the kernel (a set's type, a chain's hook) is removed and made again, along with
// the rules that refer to it. Counters that stay keep their values, unless something
// foreign in the table itself makes it go as a whole. The Change shares elements with both tables: they must stay as
// they are as long as it is used.
//
// # Order
//
// The table is first taken apart, then built, each in the order of references: rules
// refer to sets, chains and counters; elements to chains. So, rules go before
// elements, these before sets, then chains and counters, which nothing refers to by
// then; and the new come in the opposite order. A name that goes and comes again is
// free by then. Nothing of this can be seen from outside: packets meet the old rules
// until the kernel commits the whole batch, then the new ones.
func Diff(have, want *Table) Change {
	c := Change{Have: normalisedCopy(have), Want: normalisedCopy(want)}
	c.Table = cmp.Or(c.Want.name(), c.Have.name())
	c.Steps = stepsBetween(c.Have.inet(), c.Want.inet())
	c.Bridge = stepsBetween(c.Have.bridge(), c.Want.bridge())
	return c
}

// name returns the name of t's tables, "" if there are none.
func (t *Table) name() string {
	switch {
	case t == nil:
		return ""
	case t.Name == "":
		return t.Bridge.name()
	default:
		return t.Name
	}
}

// inet returns t, nil if there is no such table.
func (t *Table) inet() *Table {
	if t == nil || t.Name == "" {
		return nil
	}
	return t
}

// bridge returns the table of family bridge, nil if there is none.
func (t *Table) bridge() *Table {
	if t == nil {
		return nil
	}
	return t.Bridge
}

// stepsBetween compares two tables of one family.
func stepsBetween(have, want *Table) []Step {
	var s steps
	switch {
	case have == nil && want == nil:
	case want == nil:
		s.add(DeleteTable{have.Name})
	case have == nil:
		s.build(want.Name, differ(&Table{}, want))
	case len(have.Foreign) > 0:
		s.add(DeleteTable{have.Name})
		s.build(want.Name, differ(&Table{}, want))
	default:
		d := differ(have, want)
		s.takeApart(d)
		s.build(want.Name, d)
	}
	return s
}

// steps is a list that is being written.
type steps []Step

func (c *steps) add(s ...Step) { *c = append(*c, s...) }

// takeApart removes what is not wanted.
func (c *steps) takeApart(d difference) {
	for _, ch := range d.chains {
		if ch.have != nil && ch.refill && len(ch.have.Rules) > 0 {
			c.add(FlushChain{ch.have.Name})
		}
	}
	for _, s := range d.sets {
		if !s.remake && len(s.removed) > 0 {
			c.add(DeleteElements{s.have.with(s.removed)})
		}
	}
	for _, s := range d.sets {
		if s.have != nil && s.remake {
			c.add(DeleteSet{s.have.Name})
		}
	}
	for _, ch := range d.chains {
		if ch.have != nil && ch.remake {
			c.add(DeleteChain{ch.have.Name})
		}
	}
	for _, p := range d.counters {
		if p.want == nil {
			c.add(DeleteCounter{*p.have})
		}
	}
}

// build adds what is wanted and not there.
func (c *steps) build(table string, d difference) {
	if d.whole {
		c.add(AddTable{table})
	}
	for _, p := range d.counters {
		if p.have == nil {
			c.add(AddCounter{*p.want})
		}
	}
	for _, ch := range d.chains {
		if ch.want != nil && ch.remake {
			c.add(AddChain{ch.want.empty()})
		}
	}
	for _, s := range d.sets {
		if s.want != nil && s.remake {
			c.add(AddSet{s.want.with(nil)})
		}
	}
	for _, s := range d.sets {
		if len(s.added) > 0 {
			c.add(AddElements{s.want.with(s.added)})
		}
	}
	for _, ch := range d.chains {
		if ch.want != nil && ch.refill && len(ch.want.Rules) > 0 {
			c.add(AddRules{*ch.want})
		}
	}
}

// with returns s with these elements instead of its own.
func (s Set) with(es []Element) Set {
	s.Elements = es
	return s
}

// empty returns c without its rules.
func (c Chain) empty() Chain {
	c.Rules = nil
	return c
}

// A pair is an object of one name in both tables; in at least one of them.
type pair[T any] struct{ have, want *T }

// A setDifference says what becomes of a set.
type setDifference struct {
	pair[Set]
	remake         bool // make, remove, or both
	removed, added []Element
}

// A chainDifference says what becomes of a chain.
type chainDifference struct {
	pair[Chain]
	remake bool // make, remove, or both
	refill bool // flush and fill
}

// A difference is what differs between two tables.
type difference struct {
	whole    bool // there is no table yet
	counters []pair[string]
	sets     []setDifference
	chains   []chainDifference
}

func differ(have, want *Table) difference {
	d := difference{
		whole:    have.Name == "",
		counters: pairs(have.Counters, want.Counters, func(s string) string { return s }),
	}
	remade := map[string]bool{}
	for _, p := range pairs(have.Sets, want.Sets, func(s Set) string { return s.Name }) {
		s := differSets(p)
		if s.remake {
			remade[cmp.Or(p.have, p.want).Name] = true
		}
		d.sets = append(d.sets, s)
	}
	for _, p := range pairs(have.Chains, want.Chains, func(c Chain) string { return c.Name }) {
		d.chains = append(d.chains, differChains(p, remade))
	}
	return d
}

func differSets(p pair[Set]) setDifference {
	s := setDifference{pair: p}
	s.remake = p.have == nil || p.want == nil || !sameSet(*p.have, *p.want)
	switch {
	case !s.remake:
		s.removed, s.added = differElements(p.have.Elements, p.want.Elements)
	case p.want != nil:
		s.added = p.want.Elements
	}
	return s
}

// differElements compares two ascending lists.
func differElements(have, want []Element) (removed, added []Element) {
	for len(have) > 0 && len(want) > 0 {
		switch c := have[0].Compare(want[0]); {
		case c < 0:
			removed, have = append(removed, have[0]), have[1:]
		case c > 0:
			added, want = append(added, want[0]), want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return append(removed, have...), append(added, want...)
}

// differChains compares two chains. Rules that refer to a set that is made again, or
// removed, must let go of it.
func differChains(p pair[Chain], remade map[string]bool) chainDifference {
	c := chainDifference{pair: p}
	c.remake = p.have == nil || p.want == nil || !sameChain(*p.have, *p.want)
	c.refill = c.remake || !equalChains(*p.have, *p.want) || p.have.refersTo(remade)
	return c
}

// refersTo says that a rule of c uses one of the sets.
func (c Chain) refersTo(sets map[string]bool) bool {
	for _, r := range c.Rules {
		for _, s := range r.Statements {
			switch s := s.(type) {
			case InSet:
				if sets[s.Set] {
					return true
				}
			case ByMap:
				if sets[s.Map] {
					return true
				}
			case Update:
				if sets[s.Set] {
					return true
				}
			case SetByMap:
				if sets[s.Map] {
					return true
				}
			}
		}
	}
	return false
}

// pairs joins two ascending lists by name.
func pairs[T any](have, want []T, name func(T) string) []pair[T] {
	var out []pair[T]
	for len(have) > 0 || len(want) > 0 {
		var c int
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		default:
			c = cmp.Compare(name(have[0]), name(want[0]))
		}
		var p pair[T]
		if c <= 0 {
			p.have, have = &have[0], have[1:]
		}
		if c >= 0 {
			p.want, want = &want[0], want[1:]
		}
		out = append(out, p)
	}
	return out
}

// String writes the change for people: one line for each object, element and rule
// that goes (-) or comes (+), in terms of nft. Rules that are only loaded again do
// not show.
func (c Change) String() string {
	var w diffWriter
	if c.Have == nil && c.Want == nil {
		w.patch(c.Steps)
		return w.b.String()
	}
	if len(c.Steps) > 0 {
		w.filter = filterPriority
		w.family("inet", c.Have.inet(), c.Want.inet())
	}
	if len(c.Bridge) > 0 {
		w.filter = bridgeFilterPriority
		w.family("bridge", c.Have.bridge(), c.Want.bridge())
	}
	return w.b.String()
}

// family writes what differs between two tables of one family, of which one may be nil.
func (w *diffWriter) family(name string, have, want *Table) {
	switch {
	case want == nil:
		w.line('-', "table %s %s", name, have.Name)
		want = &Table{}
	case have == nil:
		w.line('+', "table %s %s", name, want.Name)
		have = &Table{}
	}
	for _, f := range have.Foreign {
		w.line('-', "foreign: %s", f)
	}
	w.tables(differ(have, want))
}

type diffWriter struct {
	b      strings.Builder
	filter int32 // what nft calls priority filter in this family
}

func (w *diffWriter) line(sign rune, format string, args ...any) {
	fmt.Fprintf(&w.b, "%c %s\n", sign, oneLine(fmt.Sprintf(format, args...)))
}

func (w *diffWriter) tables(d difference) {
	for _, p := range d.counters {
		switch {
		case p.want == nil:
			w.line('-', "counter %s", *p.have)
		case p.have == nil:
			w.line('+', "counter %s", *p.want)
		}
	}
	for _, s := range d.sets {
		w.set(s)
	}
	for _, c := range d.chains {
		w.chain(c)
	}
}

func (w *diffWriter) set(s setDifference) {
	removed := s.removed
	if s.remake && s.have != nil {
		w.line('-', "%s", s.have.headText())
		removed = s.have.Elements
	}
	if s.remake && s.want != nil {
		w.line('+', "%s", s.want.headText())
	}
	for _, e := range removed {
		w.line('-', "%s %s: %s%s", s.have.kind(), s.have.Name, s.have.elementText(e), trailer(e.Comment))
	}
	for _, e := range s.added {
		w.line('+', "%s %s: %s%s", s.want.kind(), s.want.Name, s.want.elementText(e), trailer(e.Comment))
	}
}

// headText is a set without its elements.
func (s Set) headText() string {
	body := "type " + s.typeText()
	switch {
	case s.Foreign != "":
		body = "foreign: " + s.Foreign
	case s.Interval:
		body += "; flags interval"
	case s.Timeout != 0:
		body += fmt.Sprintf("; flags dynamic,timeout; timeout %ds; size %d", s.Timeout/time.Second, s.Size)
	}
	return fmt.Sprintf("%s %s { %s }", s.kind(), s.Name, body)
}

func (w *diffWriter) chain(c chainDifference) {
	var have, want []Rule
	if c.have != nil {
		have = c.have.Rules
		if c.remake {
			w.line('-', "%s", c.have.headText(w.filter))
		}
	}
	if c.want != nil {
		want = c.want.Rules
		if c.remake {
			w.line('+', "%s", c.want.headText(w.filter))
		}
	}
	name := cmp.Or(c.have, c.want).Name
	diffRules(have, want, func(sign rune, r Rule) {
		if sign != ' ' {
			w.line(sign, "chain %s: %s%s", name, r.text(), trailer(r.Comment))
		}
	})
}

// headText is a chain without its rules.
func (c Chain) headText(filter int32) string {
	switch {
	case c.Foreign != "":
		return fmt.Sprintf("chain %s { foreign: %s }", c.Name, c.Foreign)
	case c.Hook != NoHook:
		return fmt.Sprintf("chain %s { %s }", c.Name, c.hookText(filter))
	default:
		return "chain " + c.Name
	}
}

// diffRules calls emit for each rule of both lists, in order: with ' ' for those of
// their longest common subsequence, with '-' and '+' for the others.
func diffRules(have, want []Rule, emit func(sign rune, r Rule)) {
	common := commonLengths(have, want)
	i, j := 0, 0
	for i < len(have) || j < len(want) {
		switch {
		case i < len(have) && j < len(want) && equalRules(have[i], want[j]):
			emit(' ', want[j])
			i, j = i+1, j+1
		case j == len(want) || i < len(have) && common[i+1][j] >= common[i][j+1]:
			emit('-', have[i])
			i++
		default:
			emit('+', want[j])
			j++
		}
	}
}

// commonLengths returns a table of how long the longest common subsequence of
// have[i:] and want[j:] is.
func commonLengths(have, want []Rule) [][]int {
	common := make([][]int, len(have)+1)
	for i := range common {
		common[i] = make([]int, len(want)+1)
	}
	for i := range slices.Backward(have) {
		for j := range slices.Backward(want) {
			if equalRules(have[i], want[j]) {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	return common
}
