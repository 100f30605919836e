package policyset

import (
	"fmt"
	"net/http"
	"slices"
	"sync"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/policies"
)

// A Set is a valid set of documents and the files that it was read from.
type Set struct {
	Source string // api.SourceDefault, …
	Files  []policy.File
	Docs   policy.Documents // those of Files, and the built-in default's policies where these are in force

	named func() map[string]bool // the label keys that the policies name; nil: there are no policies

	BuiltIn    bool // the built-in default's policies are in force, beside the documents of Files
	Default    DefaultMode
	AllowEmpty bool // it has no policy, and somebody asked for that
}

// Parse reads files as one set. Whether it may take the place of the active one is for After to say.
func Parse(source string, files []policy.File) (Set, error) {
	set, err := ParseStored(source, files)
	if err == nil {
		err = set.Docs.CheckLabels()
	}
	return set, err
}

// ParseStored is Parse for a set that was accepted, perhaps by an earlier version.
func ParseStored(source string, files []policy.File) (Set, error) {
	docs, err := policy.Parse(files)
	if err != nil {
		return Set{}, err
	}
	named := sync.OnceValue(func() map[string]bool { return policy.NamedKeys(docs.Policies) })
	return Set{Source: source, Files: files, Docs: docs, named: named}, nil
}

// Names reports whether a policy names a label key.
func (s *Set) Names(key string) bool { return s.named != nil && s.named()[key] }

// DefaultFile is the built-in default as a policy file.
func DefaultFile() policy.File {
	return policy.File{Name: "same-labels.yaml", Data: policies.Default}
}

// A DefaultMode says what the built-in default's policies do, where they are in force.
type DefaultMode string

// The modes of the built-in default.
const (
	Enforced  DefaultMode = ""
	Audited   DefaultMode = "audit"     // they only record
	Undecided DefaultMode = "undecided" // likewise, until it is known what runs at the first start on a host
)

// Default is the set that is active until one is given.
func Default() Set {
	set, err := Parse(api.SourceDefault, []policy.File{DefaultFile()})
	if err != nil {
		panic("the embedded default is no policy set: " + err.Error()) // a test parses it
	}
	set.BuiltIn = true
	return set
}

// WithDefault puts the built-in default's policies beside documents that hold no policy.
func (s Set) WithDefault(mode DefaultMode) Set {
	of := Default()
	s.Docs.Policies, s.named, s.BuiltIn, s.Default = of.Docs.Policies, of.named, true, mode
	for i := range s.Docs.Policies {
		s.Docs.Policies[i].Audit = mode != Enforced
	}
	return s
}

// After returns s as the set that follows the active one, or refuses it. An input without any policy is more often a
// failed command or a truncated file than meant, and would unprotect the whole node in silence. So it is accepted in
// three cases only: somebody asked for it (allowEmpty), the active set has no policy either, or the built-in default is
// active and s has other documents; the default then stays in force beside these.
func (s Set) After(active Set, allowEmpty bool) (Set, error) {
	switch {
	case len(s.Docs.Policies) > 0:
		return s, nil
	case allowEmpty:
		s.AllowEmpty = true
		return s, nil
	case len(active.Docs.Policies) == 0:
		s.AllowEmpty = active.AllowEmpty
		return s, nil
	case active.BuiltIn && (len(s.Docs.Grants)+len(s.Docs.Bindings) > 0 || s.Docs.Settings.Given()):
		return s.WithDefault(active.Default), nil
	}
	return Set{}, errNoPolicy(len(active.Docs.Policies))
}

// errNoPolicy refuses an input that would remove the last policy. The command thole exits 2 because of its reason.
func errNoPolicy(active int) error {
	now := "one policy"
	if active != 1 {
		now = fmt.Sprintf("%d policies", active)
	}
	return &api.Refusal{Code: http.StatusUnprocessableEntity, Reason: api.ReasonNoPolicy, Message: fmt.Sprintf(
		"the input has no document of kind Policy, and the active set has %s. "+
			"To remove all policies on purpose, run `thole cleanup`, which turns Thole off; or "+
			"`thole apply --allow-empty -f /dev/null`, which a daemon with --policies refuses", now)}
}

// Conditions are what is to be said of an active set.
func (s Set) Conditions() []condition.Condition {
	if len(s.Docs.Policies) > 0 || s.AllowEmpty {
		return nil
	}
	return []condition.Condition{{Code: condition.NoPolicies,
		Text: "the active set has no policy, so nothing is restricted. Load policies: `thole apply -f PATH`; " +
			"or confirm that there is to be none: `thole apply --allow-empty -f /dev/null`"}}
}

// Equal reports whether both were read from the same files.
func (s Set) Equal(t Set) bool {
	same := func(a, b policy.File) bool { return a.Name == b.Name && slices.Equal(a.Data, b.Data) }
	return s.Source == t.Source && s.Default == t.Default && slices.EqualFunc(s.Files, t.Files, same)
}

// Files are the files of a request.
func Files(files []api.File) []policy.File {
	out := make([]policy.File, len(files))
	for i, f := range files {
		out[i] = policy.File{Name: f.Name, Data: []byte(f.Data)}
	}
	return out
}
