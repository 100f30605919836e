package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"thole/watch/filewatch"
)

// A directory without policy files gives none, and takes away nothing of what other paths give.
func TestSourcesWithAnEmptyDirectory(t *testing.T) {
	proc, _, _ := testProcess()
	empty := t.TempDir()
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte("# a file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{{file, empty}, {empty, file}} {
		if files, err := readSources(proc, paths); err != nil || len(files) != 1 || files[0].Name != file {
			t.Errorf("%v: %v, %v", paths, files, err)
		}
	}
	files, err := readSources(proc, []string{empty, empty})
	if !errors.Is(err, filewatch.ErrNoPolicyFile) || files != nil {
		t.Errorf("empty directories: %v, %v", files, err)
	}
}
