package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestPKIWalkThrough runs the commands in docs/PKI.md as they are written.
func TestPKIWalkThrough(t *testing.T) {
	page, err := os.ReadFile("../../docs/PKI.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok {
			script.WriteString("exec sh -euc '" + strings.ReplaceAll(command, "'", "''") + "'\n")
		}
	}
	if n := strings.Count(script.String(), "\n"); n < 10 {
		t.Fatalf("only %d commands in docs/PKI.md", n)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "walk.txtar"), []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: dir, RequireExplicitExec: true})
}
