package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// pages returns the documents that show commands or policies, with their text.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(names) < 8 {
		t.Fatalf("%d documents, %v", len(names), err)
	}
	texts := map[string]string{}
	for _, name := range append(names, "../../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(filepath.Dir(name))+"/"+filepath.Base(name)] = string(text)
	}
	return texts
}

// TestDocsCommands: each command line of thole that a document shows names a command and flags that exist. Such a line
// is in backticks or at a prompt.
func TestDocsCommands(t *testing.T) {
	shown := regexp.MustCompile("(?m)(?:`|^[#$] (?:sudo )?|&& )(thole (?:[^`#\n]|[^ ]#)+)")
	root := newRoot(&process{})
	seen, of := 0, map[string]int{}
	for page, text := range pages(t) {
		for _, match := range shown.FindAllStringSubmatch(text, -1) {
			line := match[1]
			// What follows is the shell's, or another command.
			for _, end := range []string{" && ", " > ", " &", "; ", " | "} {
				line, _, _ = strings.Cut(line, end)
			}
			seen++
			of[page]++
			checkShown(t, root, page, line)
		}
	}
	if seen < 60 || of["docs/CONTAINERS.md"] < 10 || of["docs/SYSTEMD.md"] < 10 {
		t.Errorf("the documents show %d commands, want at least 60: is the pattern still right? Of each: %v", seen, of)
	}
}

// checkShown checks the names of a command and of its flags.
func checkShown(t *testing.T, root *cobra.Command, page, line string) {
	t.Helper()
	words := strings.Fields(line)[1:]
	cmd := root
	for len(words) > 0 && cmd.HasSubCommands() {
		// "get workloads\|policies" names several, "pki …" and "pki COMMAND" any.
		name, _, _ := strings.Cut(words[0], `\|`)
		i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
		if i < 0 {
			break
		}
		cmd, words = cmd.Commands()[i], words[1:]
	}
	if cmd.HasSubCommands() && len(words) > 0 && regexp.MustCompile(`^[a-z]`).MatchString(words[0]) {
		t.Errorf("%s: %q: there is no command %s %s", page, line, cmd.CommandPath(), words[0])
	}
	for i, word := range words {
		if word == "--" || cmd.Name() == "run" && !strings.HasPrefix(word, "-") &&
			(i == 0 || !strings.HasPrefix(words[i-1], "-")) {
			return // the rest is another program's
		}
		name, _, _ := strings.Cut(word, "=")
		switch {
		case word == "--help" || word == "-" || !strings.HasPrefix(word, "-"):
		case strings.HasPrefix(name, "--") && cmd.Flags().Lookup(name[2:]) == nil:
			t.Errorf("%s: %q: %s has no flag %s", page, line, cmd.CommandPath(), name)
		case !strings.HasPrefix(name, "--") && cmd.Flags().ShorthandLookup(name[1:2]) == nil:
			t.Errorf("%s: %q: %s has no flag %s", page, line, cmd.CommandPath(), name)
		}
	}
}

// shell runs thole in this process and returns its exit status and what it printed.
func shell(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	proc := thisProcess()
	proc.args, proc.stdin, proc.stdout, proc.stderr = args, strings.NewReader(""), &out, &errs
	code = execute(context.Background(), proc)
	return code, out.String(), errs.String()
}

// write writes a file into a new directory, enters this, and returns the file's name.
func write(t *testing.T, name, text string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestDocsPolicies: what a reader copies from a document can be tried by a dry run.
func TestDocsPolicies(t *testing.T) {
	texts := pages(t)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	seen := 0
	for page, text := range texts {
		for i, block := range blocks.FindAllStringSubmatch(text, -1) {
			seen++
			file := write(t, "block.yaml", block[1])
			inventory := "inventory.yaml"
			workload := "apiVersion: thole/v1\nkind: Workload\nmetadata: {name: i, labels: {i: i}}\nspec: {cgroup: " +
				"i.slice}\n"
			if err := os.WriteFile(inventory, []byte(workload), 0o600); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(block[1], "labelSources") { // an inventory
				file, inventory = inventory, file
			}
			if code, _, stderr := shell("apply", "-f", file, "--inventory", inventory, "--dry-run"); code != 0 {
				t.Errorf("%s, block %d of YAML: %s%s", page, i+1, stderr, block[1])
			}
		}
	}
	if seen < 7 {
		t.Errorf("the documents have %d blocks of YAML, want at least 7", seen)
	}
}

// TestDocsError: the error that docs/POLICY.md shows is the one that its mistake gives.
func TestDocsError(t *testing.T) {
	shown := regexp.MustCompile("(?m)^db.yaml:.*$").FindString(pages(t)["docs/POLICY.md"])
	file := write(t, "db.yaml", `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchlabels: {app: db}}
  ingress: []
`)
	code, _, stderr := shell("apply", "-f", file, "--inventory", file, "--dry-run")
	if want := "thole: reading policies: " + shown + "\n"; code != 1 || stderr != want {
		t.Errorf("exit status %d\n%swant\n%s", code, stderr, want)
	}
}

// TestDocsCommandTable: the README's table has each command that "thole --help" lists, but those about thole itself.
func TestDocsCommandTable(t *testing.T) {
	readme := ""
	for page, text := range pages(t) {
		if page != "docs/README.md" && strings.HasSuffix(page, "/README.md") {
			readme = text
		}
	}
	for _, cmd := range newRoot(&process{}).Commands() {
		if cmd.Hidden || cmd.Name() == "completion" || cmd.Name() == "version" || cmd.Name() == "help" {
			continue
		}
		if !regexp.MustCompile("(?m)^\\| `thole " + cmd.Name() + "\\b").MatchString(readme) {
			t.Errorf("the README's table of commands lacks thole %s", cmd.Name())
		}
	}
}
