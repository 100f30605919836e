package state

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/policyset"
)

const aGrant = "apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\n" +
	"spec: {users: [alice], labels: {app: [web]}}\n"

const onePolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]
`

func TestKey(t *testing.T) {
	state, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := state.Key()
	if err != nil || len(key) != keySize {
		t.Fatalf("key of %d bytes, %v", len(key), err)
	}
	again, err := state.Key()
	if err != nil || !slices.Equal(key, again) {
		t.Errorf("the second time it is another: %v", err)
	}
	path := filepath.Join(state.Path(), KeyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Key(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestStateFilesAreReplacedAsAWhole(t *testing.T) {
	state, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.Policies(); ok || err != nil {
		t.Errorf("policies of an empty directory: %v, %v", ok, err)
	}
	set, err := policyset.Parse(api.SourceApplied, []policy.File{{Name: "a.yaml", Data: []byte(onePolicy)}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := state.SavePolicies(set); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := state.Policies()
	if !ok || err != nil || !got.Equal(set) {
		t.Errorf("policies: %+v, %v, %v", got, ok, err)
	}
	names, err := filepath.Glob(filepath.Join(state.Path(), ".*"))
	if err != nil || len(names) > 0 {
		t.Errorf("files are left: %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(state.Path(), PoliciesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.Policies(); ok || err == nil || !strings.Contains(err.Error(), PoliciesFile) {
		t.Errorf("a broken file: %v, %v", ok, err)
	}
}

func parsed(t *testing.T, text string) policyset.Set {
	t.Helper()
	set, err := policyset.Parse(api.SourceApplied, []policy.File{{Name: "x.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A stored set is read back unchanged. An older program finds the built-in default as the first file.
func TestStoredSets(t *testing.T) {
	beside, err := parsed(t, aGrant).After(policyset.Default(), false)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := parsed(t, "").After(policyset.Default(), true)
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]policyset.Set{"default and grant": beside, "empty": empty,
		"policy": parsed(t, onePolicy)} {
		state, err := Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := state.SavePolicies(set); err != nil {
			t.Fatal(err)
		}
		got, ok, err := state.Policies()
		if err != nil || !ok || !got.Equal(set) || got.BuiltIn != set.BuiltIn || got.AllowEmpty != set.AllowEmpty ||
			len(got.Docs.Policies) != len(set.Docs.Policies) || len(got.Docs.Grants) != len(set.Docs.Grants) {
			t.Errorf("%s: got %+v, %v, %v; want %+v", name, got, ok, err, set)
		}
		var stored StoredSet
		if _, err := state.readJSON(PoliciesFile, &stored); err != nil {
			t.Fatal(err)
		}
		if docs, err := policy.Parse(policyset.Files(stored.Files)); err != nil ||
			len(docs.Policies) != len(set.Docs.Policies) {
			t.Errorf("%s: an older program reads %d policies, %v", name, len(docs.Policies), err)
		}
	}
}
