package policy

import (
	"fmt"
	"maps"

	"thole/compiler/policy/strict"
)

// A documentSet collects the documents of all files and holds them against each
// other: a name stands once in each kind, and what is bound is bound once.
type documentSet struct {
	docs  Documents
	names map[string]Position // kind/name → where
	bound map[string]Position // what a Workload binds → where
}

func newDocumentSet() *documentSet {
	return &documentSet{names: make(map[string]Position), bound: make(map[string]Position)}
}

func (d *decoder) addPolicy(s *documentSet, p Policy) {
	d.named(s, kindPolicy, p.Name, p.Position)
	s.docs.Policies = append(s.docs.Policies, p)
}

func (d *decoder) addGrant(s *documentSet, g LabelGrant) {
	d.named(s, kindGrant, g.Name, g.Position)
	s.docs.Grants = append(s.docs.Grants, g)
}

func (d *decoder) addBinding(s *documentSet, b Binding) {
	d.named(s, kindWorkload, b.Name, b.Position)
	target := b.target()
	if first, ok := s.bound[target]; ok && target != "" {
		d.Fail(b.Position, "%s is bound already, at %s; allowed: one Workload for each", target, first)
	} else {
		s.bound[target] = b.Position
	}
	s.docs.Bindings = append(s.docs.Bindings, b)
}

func (d *decoder) addSettings(s *documentSet, settings Settings) {
	d.named(s, kindSettings, settingsName, settings.Position)
	s.docs.Settings = settings
}

// CheckLabels fails at the first document that gives labels of which none counts: what has only such labels would be a
// workload that sameLabels: all never matches. Parse does not ask for it, so that what an earlier version accepted and
// stored can still be read. The error is a *SyntaxError.
func (d *Documents) CheckLabels() error {
	settings := &d.Settings
	var first *SyntaxError
	check := func(at Position, what string, labels Labels) {
		if labels == nil || settings.CountsAny(labels) || first != nil && !earlier(at, first.Position) {
			return
		}
		first = &SyntaxError{Position: at, Message: fmt.Sprintf("none of the labels of %s counts: "+
			"{%s}%s; allowed: at least one label whose key counts", what, labels, settings.where())}
	}
	for _, b := range d.Bindings {
		if b.Sources == nil { // else it says what runs, which may be a workload by other labels
			check(b.Position, "the workload "+strict.Quote(b.Name), b.Labels)
		}
	}
	for _, g := range d.Grants {
		all := maps.Clone(g.Require)
		if all == nil {
			all = Labels{}
		}
		for key := range g.Labels {
			all[key] = "…"
		}
		check(g.Position, "the grant "+strict.Quote(g.Name), all)
	}
	if first != nil {
		return first
	}
	return nil
}

// where says which document decides what counts.
func (s *Settings) where() string {
	if !s.Given() {
		return ""
	}
	return " (Settings are at " + s.Position.String() + ")"
}

// earlier reports whether a stands before b, in another file or in the same.
func earlier(a, b Position) bool {
	if a.File != b.File {
		return a.File < b.File
	}
	return strict.Before(a, b)
}

// named fails if the set has another document of this kind and name.
func (d *decoder) named(s *documentSet, kind, name string, at Position) {
	id := kind + "/" + name
	if first, ok := s.names[id]; ok && name != "" {
		d.Fail(at, "a second %s %s, the first is at %s; allowed: each name once", kind, strict.Quote(name), first)
		return
	}
	s.names[id] = at
}

// target is what b gives labels to, as messages call it; "" if there is none.
func (b *Binding) target() string {
	switch {
	case b.Unit != "":
		return "the unit " + b.Unit
	case b.User != "":
		return "the user " + b.User
	case b.Cgroup != "":
		return "the cgroup " + b.Cgroup
	case b.Container != "":
		return "the container " + b.Container
	case b.Compose != Compose{}:
		return "the service " + b.Compose.Service + " of the Compose project " + b.Compose.Project
	case b.Address.IsValid():
		return "the address " + b.Address.String()
	}
	return ""
}
