package baseline

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

	"thole/internal/nstest"
)

// Commit is the commit whose program tests compare with: it has the faults that were closed since. Tests that run
// with both programs use only flags that this one has.
const Commit = "2c6b93c5761e122f652b6ff3f71e0708a7b147a7"

// program builds the program of Commit, unless an earlier test did so on this machine.
var program = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "thole-old", Commit[:7]+"-"+runtime.Version())
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
	return path, errors.Join(build(source, path), os.RemoveAll(source))
})

// build builds the program in a directory, from git's archive of the commit.
func build(source, path string) error {
	if err := exec.Command("git", "cat-file", "-e", Commit+"^{commit}").Run(); err != nil {
		return fmt.Errorf("this clone does not have the commit %s: it is shallow; run `git fetch --unshallow`",
			Commit[:7])
	}
	script := `set -eu; top=$(git rev-parse --show-toplevel); git -C "$top" archive "$1" | tar -x -C "$2"
		go -C "$2" build -trimpath -o "$2/built" ./cmd/thole && mv "$2/built" "$3"`
	if out, err := exec.Command("sh", "-c", script, "sh", Commit, source, path).CombinedOutput(); err != nil {
		return fmt.Errorf("building the program of %s: %v\n%s", Commit[:7], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Program returns the path of the program of Commit.
func Program(t testing.TB) string {
	t.Helper()
	nstest.Need(t, "git", "go")
	path, err := program()
	if err != nil {
		t.Fatalf("nstest: %v", err)
	}
	return path
}
