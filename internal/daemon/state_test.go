package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"thole/compiler/policy"
	"thole/internal/api"
)

func TestKey(t *testing.T) {
	state, err := openState(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := state.key()
	if err != nil || len(key) != keySize {
		t.Fatalf("key of %d bytes, %v", len(key), err)
	}
	again, err := state.key()
	if err != nil || !slices.Equal(key, again) {
		t.Errorf("the second time it is another: %v", err)
	}
	path := filepath.Join(state.dir, keyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := state.key(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestStateFilesAreReplacedAsAWhole(t *testing.T) {
	state, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.policies(); ok || err != nil {
		t.Errorf("policies of an empty directory: %v, %v", ok, err)
	}
	set, err := parseSet(api.SourceApplied, []policy.File{{Name: "a.yaml", Data: []byte(allowWeb)}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := state.savePolicies(set); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := state.policies()
	if !ok || err != nil || !got.equal(set) {
		t.Errorf("policies: %+v, %v, %v", got, ok, err)
	}
	names, err := filepath.Glob(filepath.Join(state.dir, ".*"))
	if err != nil || len(names) > 0 {
		t.Errorf("files are left: %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(state.dir, policiesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.policies(); ok || err == nil || !strings.Contains(err.Error(), policiesFile) {
		t.Errorf("a broken file: %v, %v", ok, err)
	}
}
