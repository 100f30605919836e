package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

// A Patch is a change of a normalised table that costs what changes, however much else there is: what goes, and what
// comes. A set in Have that is not in Want goes with all its elements, one in Want that is not in Have is new; of one
// in both the elements of Have go, and those of Want come. Sets are by name or not, their elements are ascending.
// Counters and chains are all that there are, or if not Frame, stay as they are.
type Patch struct {
	Have, Want Table
	Frame      bool
	Declared   []Set // with Frame: all sets that there are then, without elements
}

// Change returns the patch as a change of the table of that name, which is not looked at.
func (p Patch) Change(table string) Change {
	have, want := p.Have, p.Want
	byName := func(a, b Set) int { return strings.Compare(a.Name, b.Name) }
	have.Sets, want.Sets = slices.SortedFunc(slices.Values(have.Sets), byName),
		slices.SortedFunc(slices.Values(want.Sets), byName)
	have.Name, want.Name = table, table
	return Change{Table: table, Steps: stepsBetween(&have, &want), Declared: p.Declared}
}

// Patch changes t, whose sets nobody else may hold. The patch must fit it.
func (t *Table) Patch(p Patch) {
	for _, s := range p.Have.Sets {
		if !p.Want.hasSet(s.Name) {
			t.Sets = slices.DeleteFunc(t.Sets, func(o Set) bool { return o.Name == s.Name })
			continue
		}
		set := t.set(s.Name)
		for _, e := range s.Elements {
			if at, found := slices.BinarySearchFunc(set.Elements, e, Element.CompareKey); found {
				set.Elements = slices.Delete(set.Elements, at, at+1)
			}
		}
	}
	for _, s := range p.Want.Sets {
		set := t.set(s.Name)
		if set == nil {
			s.Elements = slices.Clone(s.Elements)
			at, _ := slices.BinarySearchFunc(t.Sets, s.Name, compareName)
			t.Sets = slices.Insert(t.Sets, at, s)
			continue
		}
		for _, e := range s.Elements {
			at, _ := slices.BinarySearchFunc(set.Elements, e, Element.CompareKey)
			set.Elements = slices.Insert(set.Elements, at, e)
		}
	}
	if p.Frame {
		t.Counters, t.Chains = p.Want.Counters, p.Want.Chains
	}
}

func (t *Table) hasSet(name string) bool {
	return slices.ContainsFunc(t.Sets, func(s Set) bool { return s.Name == name })
}

// Patched returns what t becomes, and leaves t as it is.
func (t *Table) Patched(p Patch) *Table {
	n := t.normalised()
	for i := range n.Sets {
		n.Sets[i].Elements = slices.Clone(n.Sets[i].Elements)
	}
	n.Patch(p)
	return &n
}

func compareName(s Set, name string) int { return strings.Compare(s.Name, name) }

// set returns the set of that name in a normalised table, nil if there is none.
func (t *Table) set(name string) *Set {
	at, found := slices.BinarySearchFunc(t.Sets, name, compareName)
	if !found {
		return nil
	}
	return &t.Sets[at]
}

// patch writes the steps of a change that names no tables.
func (w *diffWriter) patch(steps []Step) {
	for _, s := range steps {
		sign, set := '+', Set{}
		switch s := s.(type) {
		case DeleteElements:
			sign, set = '-', s.Set
		case AddElements:
			set = s.Set
		default:
			fmt.Fprintf(&w.b, "  %T\n", s)
		}
		for _, e := range set.Elements {
			w.line(sign, "%s %s: %s%s", set.kind(), set.Name, set.elementText(e), trailer(e.Comment))
		}
	}
}
