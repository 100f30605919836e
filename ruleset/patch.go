package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

// A Patch is a change of elements alone: of sets that are there, are no interval sets,
// and have elements before and after. It costs what its elements cost, however many
// others there are. Sets are by name, each with the elements that go or come, ascending.
type Patch struct{ Removed, Added []Set }

// Empty says that there is nothing to do.
func (p Patch) Empty() bool { return len(p.Removed)+len(p.Added) == 0 }

// Change returns the patch as a change of the table of that name, which is not looked at.
func (p Patch) Change(table string) Change {
	c := Change{Table: table}
	for _, s := range p.Removed {
		c.Steps = append(c.Steps, DeleteElements{s})
	}
	for _, s := range p.Added {
		c.Steps = append(c.Steps, AddElements{s})
	}
	return c
}

// Fits says that t can be patched: each set is there and does not become empty, what
// goes is there, and what comes is not.
func (p Patch) Fits(t *Table) bool {
	left := map[string]int{}
	for _, s := range p.Removed {
		set := t.set(s.Name)
		if set == nil || !set.has(s.Elements, len(s.Elements)) {
			return false
		}
		left[s.Name] = len(set.Elements) - len(s.Elements)
	}
	for _, s := range p.Added {
		set := t.set(s.Name)
		if set == nil || len(set.Elements) == 0 || !set.has(s.Elements, 0) {
			return false
		}
		delete(left, s.Name)
	}
	for _, n := range left {
		if n == 0 {
			return false
		}
	}
	return true
}

// has reports whether n of the elements, which are in ascending order, have a key of s.
func (s *Set) has(elements []Element, n int) bool {
	for i, e := range elements {
		if i > 0 && elements[i-1].CompareKey(e) == 0 {
			return false
		}
		if _, found := slices.BinarySearchFunc(s.Elements, e, Element.CompareKey); found {
			n--
		}
	}
	return n == 0
}

// Patch changes t, whose sets nobody else may hold. The patch must fit it.
func (t *Table) Patch(p Patch) {
	for _, s := range p.Removed {
		set := t.set(s.Name)
		for _, e := range s.Elements {
			if at, found := slices.BinarySearchFunc(set.Elements, e, Element.CompareKey); found {
				set.Elements = slices.Delete(set.Elements, at, at+1)
			}
		}
	}
	for _, s := range p.Added {
		set := t.set(s.Name)
		for _, e := range s.Elements {
			at, _ := slices.BinarySearchFunc(set.Elements, e, Element.CompareKey)
			set.Elements = slices.Insert(set.Elements, at, e)
		}
	}
}

// Patched returns what t becomes, and leaves t as it is.
func (t *Table) Patched(p Patch) *Table {
	n := t.normalised()
	n.Patch(p)
	return &n
}

// set returns the set of that name in a normalised table, nil if there is none.
func (t *Table) set(name string) *Set {
	at, found := slices.BinarySearchFunc(t.Sets, name, func(s Set, name string) int {
		return strings.Compare(s.Name, name)
	})
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
