package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// OldCommit is the commit whose program tests compare with: it has the faults that were closed since. Tests that run
// with both programs use only flags that this one has.
const OldCommit = "2c6b93c5761e122f652b6ff3f71e0708a7b147a7"

// oldProgram builds the program of OldCommit, unless an earlier test did so on this machine.
var oldProgram = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "thole-old", OldCommit[:7]+"-"+runtime.Version())
	path := filepath.Join(dir, "thole")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	source, err := os.MkdirTemp(dir, "source-")
	if err != nil {
		return "", err
	}
	return path, errors.Join(buildOld(source, path), os.RemoveAll(source))
})

// buildOld builds the program in a directory, from git's archive of the commit.
func buildOld(source, path string) error {
	if err := exec.Command("git", "cat-file", "-e", OldCommit+"^{commit}").Run(); err != nil {
		return fmt.Errorf("this clone does not have the commit %s: it is shallow; run `git fetch --unshallow`",
			OldCommit[:7])
	}
	script := `set -eu; top=$(git rev-parse --show-toplevel); git -C "$top" archive "$1" | tar -x -C "$2"
		go -C "$2" build -trimpath -o "$2/built" ./cmd/thole && mv "$2/built" "$3"`
	if out, err := exec.Command("sh", "-c", script, "sh", OldCommit, source, path).CombinedOutput(); err != nil {
		return fmt.Errorf("building the program of %s: %v\n%s", OldCommit[:7], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Old returns the path of the program of OldCommit.
func Old(t testing.TB) string {
	t.Helper()
	Need(t, "git", "go")
	path, err := oldProgram()
	if err != nil {
		t.Fatalf("nstest: %v", err)
	}
	return path
}
