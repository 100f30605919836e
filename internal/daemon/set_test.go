package daemon

import (
	"errors"
	"strings"
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
)

const (
	aGrant = "apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\nspec: {users: [alice], labels: {app: " +
		"[web]}}\n"
	aWorkload = "apiVersion: thole/v1\nkind: Workload\nmetadata: {name: w, labels: {app: web}}\nspec: {unit: " +
		"w.service}\n"
)

func parsed(t *testing.T, source string, texts ...string) policySet {
	t.Helper()
	var files []policy.File
	for _, text := range texts {
		files = append(files, policy.File{Name: source + ".yaml", Data: []byte(text)})
	}
	set, err := parseSet(source, files)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Which inputs may take the place of which active set.
func TestSetAfter(t *testing.T) {
	applied := parsed(t, api.SourceApplied, allowWeb)
	beside, err := parsed(t, api.SourceApplied, aGrant).after(defaultSet(), false)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := parsed(t, api.SourceApplied, "").after(applied, true)
	if err != nil {
		t.Fatal(err)
	}
	type want struct {
		policies   int // -1: it is refused
		builtIn    bool
		allowEmpty bool
	}
	refused := want{policies: -1}
	for _, tt := range []struct {
		name       string
		active     policySet
		input      string
		allowEmpty bool
		want       want
	}{
		{"a policy after the default", defaultSet(), allowWeb, false, want{policies: 1}},
		{"nothing after the default", defaultSet(), "", false, refused},
		{"a grant after the default", defaultSet(), aGrant, false, want{policies: 1, builtIn: true}},
		{"a workload after the default", defaultSet(), aWorkload, false, want{policies: 1, builtIn: true}},
		{"a grant after the default beside a grant", beside, aGrant, false, want{policies: 1, builtIn: true}},
		{"nothing after the default beside a grant", beside, "# none\n", false, refused},
		{"nothing after a policy", applied, "", false, refused},
		{"a grant after a policy", applied, aGrant, false, refused},
		{"nothing, as is wanted", applied, "", true, want{allowEmpty: true}},
		{"a grant, as is wanted", defaultSet(), aGrant, true, want{allowEmpty: true}},
		{"a policy, where nothing is allowed", applied, allowWeb, true, want{policies: 1}},
		{"nothing after nothing", empty, "", false, want{allowEmpty: true}},
		{"a policy after nothing", empty, allowWeb, false, want{policies: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, err := parsed(t, api.SourceApplied, tt.input).after(tt.active, tt.allowEmpty)
			if tt.want == refused {
				refusal, ok := errors.AsType[*api.Refusal](err)
				if !ok || refusal.Reason != api.ReasonNoPolicy || !strings.Contains(refusal.Message, "--allow-empty") {
					t.Errorf("got %+v, error %v; want it refused", set, err)
				}
				return
			}
			got := want{len(set.docs.Policies), set.builtIn, set.allowEmpty}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, error %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// A stored set is read back unchanged. An older program finds the built-in default as the first file.
func TestStoredSets(t *testing.T) {
	beside, err := parsed(t, api.SourceApplied, aGrant).after(defaultSet(), false)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := parsed(t, api.SourceApplied, "").after(defaultSet(), true)
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]policySet{"default and grant": beside, "empty": empty,
		"policy": parsed(t, api.SourceApplied, allowWeb)} {
		state, err := openState(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := state.savePolicies(set); err != nil {
			t.Fatal(err)
		}
		got, ok, err := state.policies()
		if err != nil || !ok || !got.equal(set) || got.builtIn != set.builtIn || got.allowEmpty != set.allowEmpty ||
			len(got.docs.Policies) != len(set.docs.Policies) || len(got.docs.Grants) != len(set.docs.Grants) {
			t.Errorf("%s: got %+v, %v, %v; want %+v", name, got, ok, err, set)
		}
		var stored storedSet
		if _, err := state.readJSON(policiesFile, &stored); err != nil {
			t.Fatal(err)
		}
		if docs, err := policy.Parse(compilerFiles(stored.Files)); err != nil ||
			len(docs.Policies) != len(set.docs.Policies) {
			t.Errorf("%s: an older program reads %d policies, %v", name, len(docs.Policies), err)
		}
	}
}

// The built-in default stays what it is when the policies are read again.
func TestReloadOfDefault(t *testing.T) {
	b := newBench(t)
	if _, err := b.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.status(); !s.BuiltIn || s.Source != api.SourceDefault {
		t.Errorf("after a reload: %+v", s)
	}
	if _, err := b.client.Apply(t.Context(),
		api.ApplyRequest{Files: []api.File{{Name: "g.yaml", Data: aGrant}}}); err != nil {
		t.Errorf("a grant beside the default: %v", err)
	}
}
