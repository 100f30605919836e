package policyset

import (
	"errors"
	"strings"
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
)

const (
	aPolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]
`
	aGrant = "apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\nspec: {users: [alice], labels: {app: " +
		"[web]}}\n"
	aWorkload = "apiVersion: thole/v1\nkind: Workload\nmetadata: {name: w, labels: {app: web}}\nspec: {unit: " +
		"w.service}\n"
	someSettings = "apiVersion: thole/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {trustImages: [a/*]}\n"
)

func parsed(t *testing.T, source string, texts ...string) Set {
	t.Helper()
	var files []policy.File
	for _, text := range texts {
		files = append(files, policy.File{Name: source + ".yaml", Data: []byte(text)})
	}
	set, err := Parse(source, files)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A stored set can be read even if this version would refuse it as a new one.
func TestParseStored(t *testing.T) {
	files := []policy.File{{Name: "old.yaml", Data: []byte("apiVersion: thole/v1\nkind: Workload\n" +
		"metadata: {name: w, labels: {traefik.enable: \"true\"}}\nspec: {unit: w.service}\n")}}
	if _, err := Parse(api.SourceApplied, files); err == nil {
		t.Error("labels of which none counts are accepted")
	}
	if set, err := ParseStored(api.SourceApplied, files); err != nil || len(set.Docs.Bindings) != 1 {
		t.Errorf("%+v, %v", set, err)
	}
}

// Which inputs may take the place of which active set.
func TestSetAfter(t *testing.T) {
	applied := parsed(t, api.SourceApplied, aPolicy)
	beside, err := parsed(t, api.SourceApplied, aGrant).After(Default(), false)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := parsed(t, api.SourceApplied, "").After(applied, true)
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
		active     Set
		input      string
		allowEmpty bool
		want       want
	}{
		{"a policy after the default", Default(), aPolicy, false, want{policies: 1}},
		{"nothing after the default", Default(), "", false, refused},
		{"a grant after the default", Default(), aGrant, false, want{policies: 1, builtIn: true}},
		{"a workload after the default", Default(), aWorkload, false, want{policies: 1, builtIn: true}},
		{"settings after the default", Default(), someSettings, false, want{policies: 1, builtIn: true}},
		{"settings after a policy", applied, someSettings, false, refused},
		{"a grant after the default beside a grant", beside, aGrant, false, want{policies: 1, builtIn: true}},
		{"nothing after the default beside a grant", beside, "# none\n", false, refused},
		{"nothing after a policy", applied, "", false, refused},
		{"a grant after a policy", applied, aGrant, false, refused},
		{"nothing, as is wanted", applied, "", true, want{allowEmpty: true}},
		{"a grant, as is wanted", Default(), aGrant, true, want{allowEmpty: true}},
		{"a policy, where nothing is allowed", applied, aPolicy, true, want{policies: 1}},
		{"nothing after nothing", empty, "", false, want{allowEmpty: true}},
		{"a policy after nothing", empty, aPolicy, false, want{policies: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, err := parsed(t, api.SourceApplied, tt.input).After(tt.active, tt.allowEmpty)
			if tt.want == refused {
				refusal, ok := errors.AsType[*api.Refusal](err)
				if !ok || refusal.Reason != api.ReasonNoPolicy || !strings.Contains(refusal.Message, "--allow-empty") {
					t.Errorf("got %+v, error %v; want it refused", set, err)
				}
				return
			}
			got := want{len(set.Docs.Policies), set.BuiltIn, set.AllowEmpty}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, error %v; want %+v", got, err, tt.want)
			}
		})
	}
}
