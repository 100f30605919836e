package thole

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// apache2 is the SHA-256 of the text of the Apache License 2.0, as the Apache Software Foundation publishes it.
const apache2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

func TestLicenseText(t *testing.T) {
	text, err := os.ReadFile("LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	if got := hex.EncodeToString(sum[:]); got != apache2 {
		t.Errorf("LICENSE has the SHA-256 %s, want %s: the unchanged text of the Apache License 2.0", got, apache2)
	}
}

// TestLicenseOfPackages: each package has a doc.go that begins with the identifier of the license and has the package
// comment.
func TestLicenseOfPackages(t *testing.T) {
	const first = "// SPDX-License-Identifier: Apache-2.0\n\n// "
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{.Dir}}", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		packages++
		text, err := os.ReadFile(filepath.Join(dir, "doc.go"))
		if err != nil {
			t.Errorf("%s: %v: each package has a doc.go", name, err)
			continue
		}
		if !strings.HasPrefix(string(text), first) {
			t.Errorf("%s: doc.go does not begin with %q and the package comment", name,
				strings.TrimSuffix(first, "// "))
		}
	}
	if packages < 20 {
		t.Errorf("go list found %d packages, want at least 20", packages)
	}
}
