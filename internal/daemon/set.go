package daemon

import (
	"fmt"
	"net/http"
	"slices"
	"sync"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/policies"
)

// A policySet is a valid set of documents and the files that it was read from.
type policySet struct {
	source string // SourceDefault, …
	files  []policy.File
	docs   policy.Documents // those of files, and the built-in default's policies where these are in force

	named func() map[string]bool // the label keys that the policies name; nil: there are no policies

	builtIn    bool // the built-in default's policies are in force, beside the documents of files
	allowEmpty bool // it has no policy, and somebody asked for that
}

// parseSet reads files as one set. Whether it may take the place of the active one is for after to say.
func parseSet(source string, files []policy.File) (policySet, error) {
	docs, err := policy.Parse(files)
	if err != nil {
		return policySet{}, err
	}
	named := sync.OnceValue(func() map[string]bool { return compiler.NamedKeys(docs.Policies) })
	return policySet{source: source, files: files, docs: docs, named: named}, nil
}

// names reports whether a policy names a label key.
func (s *policySet) names(key string) bool { return s.named != nil && s.named()[key] }

// defaultFile is the built-in default as a policy file.
func defaultFile() policy.File {
	return policy.File{Name: "same-labels.yaml", Data: policies.Default}
}

// defaultSet is the set that is active until one is given.
func defaultSet() policySet {
	set, err := parseSet(api.SourceDefault, []policy.File{defaultFile()})
	if err != nil {
		panic("the embedded default is no policy set: " + err.Error()) // a test parses it
	}
	set.builtIn = true
	return set
}

// withDefault puts the built-in default's policies beside documents that hold no policy.
func (s policySet) withDefault() policySet {
	of := defaultSet()
	s.docs.Policies, s.named, s.builtIn = of.docs.Policies, of.named, true
	return s
}

// after returns s as the set that follows the active one, or refuses it. An input without any policy is more often a
// failed command or a truncated file than meant, and would unprotect the whole node in silence. So it is accepted in
// three cases only: somebody asked for it (allowEmpty), the active set has no policy either, or the built-in default is
// active and s has other documents; the default then stays in force beside these.
func (s policySet) after(active policySet, allowEmpty bool) (policySet, error) {
	switch {
	case len(s.docs.Policies) > 0:
		return s, nil
	case allowEmpty:
		s.allowEmpty = true
		return s, nil
	case len(active.docs.Policies) == 0:
		s.allowEmpty = active.allowEmpty
		return s, nil
	case active.builtIn && len(s.docs.Grants)+len(s.docs.Bindings) > 0:
		return s.withDefault(), nil
	}
	return policySet{}, errNoPolicy(len(active.docs.Policies))
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

// equal reports whether both were read from the same files.
func (s policySet) equal(t policySet) bool {
	return s.source == t.source && slices.EqualFunc(s.files, t.files, func(a, b policy.File) bool {
		return a.Name == b.Name && slices.Equal(a.Data, b.Data)
	})
}

func compilerFiles(files []api.File) []policy.File {
	out := make([]policy.File, len(files))
	for i, f := range files {
		out[i] = policy.File{Name: f.Name, Data: []byte(f.Data)}
	}
	return out
}
