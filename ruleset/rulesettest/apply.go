package rulesettest

import (
	"fmt"
	"slices"

	"thole/ruleset"
)

// Apply returns what a change makes of tables, as the kernel does: it fails where something to be removed is not there,
// or something to be added is. nil stands for no table.
func Apply(have *ruleset.Table, c ruleset.Change) (*ruleset.Table, error) {
	var inet, bridge *ruleset.Table
	if have != nil {
		bridge = have.Bridge
		if have.Name != "" {
			inet = have
		}
	}
	inet, err := apply(inet, c.Steps)
	if err != nil {
		return nil, fmt.Errorf("inet: %w", err)
	}
	if bridge, err = apply(bridge, c.Bridge); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	if inet == nil && bridge == nil {
		return nil, nil
	}
	if inet == nil {
		inet = &ruleset.Table{}
	}
	inet.Bridge = bridge
	inet.Normalise()
	return inet, nil
}

func apply(have *ruleset.Table, steps []ruleset.Step) (*ruleset.Table, error) {
	t := copyOf(have)
	for _, s := range steps {
		switch s := s.(type) {
		case ruleset.AddTable:
			if t != nil {
				return nil, fmt.Errorf("there is a table, where one is to be made")
			}
			t = &ruleset.Table{Name: s.Name}
		case ruleset.DeleteTable:
			t = nil
		default:
			if t == nil {
				return nil, fmt.Errorf("there is no table: %T", s)
			}
			if err := applyStep(t, s); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// copyOf returns a copy of which all may be changed but statements.
func copyOf(t *ruleset.Table) *ruleset.Table {
	if t == nil {
		return nil
	}
	c := *t
	c.Bridge = nil
	c.Normalise()
	c.Counters, c.Sets, c.Chains, c.Bridge = slices.Clone(c.Counters), slices.Clone(c.Sets), slices.Clone(c.Chains), nil
	for i := range c.Sets {
		c.Sets[i].Elements = slices.Clone(c.Sets[i].Elements)
	}
	for i := range c.Chains {
		c.Chains[i].Rules = slices.Clone(c.Chains[i].Rules)
	}
	return &c
}

func applyStep(t *ruleset.Table, s ruleset.Step) error {
	setAt := func(name string) int {
		return slices.IndexFunc(t.Sets, func(s ruleset.Set) bool { return s.Name == name })
	}
	chainAt := func(name string) int {
		return slices.IndexFunc(t.Chains, func(c ruleset.Chain) bool { return c.Name == name })
	}
	there, is := true, -1 // whether it is to be there, and where it is
	do := func() error { return nil }
	switch s := s.(type) {
	case ruleset.AddCounter:
		there, is = false, slices.Index(t.Counters, s.Name)
		do = func() error { t.Counters = append(t.Counters, s.Name); return nil }
	case ruleset.DeleteCounter:
		is = slices.Index(t.Counters, s.Name)
		do = func() error { t.Counters = slices.Delete(t.Counters, is, is+1); return nil }
	case ruleset.AddSet:
		there, is = false, setAt(s.Set.Name)
		do = func() error { t.Sets = append(t.Sets, s.Set); return nil }
	case ruleset.DeleteSet:
		is = setAt(s.Name)
		do = func() error { t.Sets = slices.Delete(t.Sets, is, is+1); return nil }
	case ruleset.AddElements:
		is = setAt(s.Set.Name)
		do = func() error { return addElements(&t.Sets[is], s.Set.Elements) }
	case ruleset.DeleteElements:
		is = setAt(s.Set.Name)
		do = func() error { return deleteElements(&t.Sets[is], s.Set.Elements) }
	case ruleset.AddChain:
		there, is = false, chainAt(s.Chain.Name)
		do = func() error { t.Chains = append(t.Chains, s.Chain); return nil }
	case ruleset.DeleteChain:
		is = chainAt(s.Name)
		do = func() error { t.Chains = slices.Delete(t.Chains, is, is+1); return nil }
	case ruleset.FlushChain:
		is = chainAt(s.Name)
		do = func() error { t.Chains[is].Rules = nil; return nil }
	case ruleset.AddRules:
		is = chainAt(s.Chain.Name)
		do = func() error { t.Chains[is].Rules = append(t.Chains[is].Rules, s.Chain.Rules...); return nil }
	}
	if there != (is >= 0) {
		return fmt.Errorf("%T: it is to be there: %t, and is: %t: %+v", s, there, is >= 0, s)
	}
	return do()
}

func addElements(s *ruleset.Set, elements []ruleset.Element) error {
	for _, e := range elements {
		at, found := slices.BinarySearchFunc(s.Elements, e, ruleset.Element.CompareKey)
		if found {
			return fmt.Errorf("%s: an element is there: %+v", s.Name, e)
		}
		s.Elements = slices.Insert(s.Elements, at, e)
	}
	return nil
}

func deleteElements(s *ruleset.Set, elements []ruleset.Element) error {
	for _, e := range elements {
		at, found := slices.BinarySearchFunc(s.Elements, e, ruleset.Element.CompareKey)
		if !found {
			return fmt.Errorf("%s: an element is not there: %+v", s.Name, e)
		}
		s.Elements = slices.Delete(s.Elements, at, at+1)
	}
	return nil
}
