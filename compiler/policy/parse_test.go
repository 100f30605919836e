package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var updateBad = flag.Bool("update-bad", false, "write the messages of testdata/bad as they are now")

// frames are the documents around what the files of an archive hold.
var frames = map[string]func(text string) string{
	"yaml":     func(text string) string { return text },
	"document": func(text string) string { return text },
	"policy":   policyWith,
	"cidr": func(peer string) string {
		return policyWith("selector: {}\ningress:\n- from:\n  - " + peer)
	},
	"port": func(port string) string {
		return policyWith("selector: {}\ningress:\n- ports:\n  - " + port)
	},
	"grant": func(spec string) string {
		return "apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\nspec:\n" + indent(spec)
	},
	"workload": func(text string) string { return "apiVersion: thole/v1\nkind: Workload\n" + text },
	"settings": func(text string) string { return "apiVersion: thole/v1\nkind: Settings\n" + text },
}

func policyWith(spec string) string {
	return "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n" + indent(spec)
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}

// TestBad parses what stands in testdata/bad: each NAME has a NAME.error behind it,
// its one message.
func TestBad(t *testing.T) {
	archives, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(archives) != len(frames) {
		t.Fatalf("archives %q, want one for each of %d frames (%v)", archives, len(frames), err)
	}
	for _, name := range archives {
		kind := strings.TrimSuffix(filepath.Base(name), ".txtar")
		t.Run(kind, func(t *testing.T) { testBad(t, name, frames[kind]) })
	}
}

func testBad(t *testing.T, name string, frame func(string) string) {
	archive, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: archive.Comment}
	for i, f := range archive.Files {
		if strings.HasSuffix(f.Name, ".error") {
			continue
		}
		message := parseBad(t, f.Name, frame(string(f.Data))) + "\n"
		errorFile := txtar.File{Name: f.Name + ".error", Data: []byte(message)}
		got.Files = append(got.Files, f, errorFile)
		want := "(no " + errorFile.Name + ")"
		if next := archive.Files[min(i+1, len(archive.Files)-1)]; next.Name == errorFile.Name {
			want = string(next.Data)
		}
		if message != want && !*updateBad {
			t.Errorf("%s\n got %s\nwant %s", f.Name, message, want)
		}
	}
	if *updateBad {
		if err := os.WriteFile(name, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// parseBad returns the message of Parse.
func parseBad(t *testing.T, name, text string) string {
	t.Helper()
	docs, err := Parse([]File{{Name: name, Data: []byte(text)}})
	if err == nil {
		if err = docs.CheckLabels(); err == nil {
			t.Errorf("%s: accepted", name)
			return "no error"
		}
		docs = Documents{}
	}
	if diff := cmp.Diff(Documents{}, docs); diff != "" {
		t.Errorf("%s: documents beside an error:\n%s", name, diff)
	}
	checkPosition(t, []File{{Name: name, Data: []byte(text)}}, err)
	return err.Error()
}

// checkPosition fails unless err is a SyntaxError at a place that exists.
func checkPosition(t *testing.T, files []File, err error) {
	t.Helper()
	var syntax *SyntaxError
	if !errors.As(err, &syntax) {
		t.Fatalf("%T, want *SyntaxError: %v", err, err)
	}
	at := syntax.Position
	for _, f := range files {
		lines := strings.Split(string(f.Data), "\n")
		if f.Name != at.File || at.Line < 1 || at.Line > len(lines) {
			continue
		}
		if at.Column < 1 || at.Column > len([]rune(lines[at.Line-1]))+1 {
			continue
		}
		return
	}
	t.Errorf("the position is in no file: %v", err)
}

// TestBadSet has mistakes that no file makes alone, and which of several is told.
func TestBadSet(t *testing.T) {
	good := policyWith("selector: {}\ningress: []")
	workload := func(name, spec string) string {
		return fmt.Sprintf("apiVersion: thole/v1\nkind: Workload\nmetadata: {name: %s, labels: {app: %s}}\nspec: %s\n",
			name, name, spec)
	}
	for _, c := range []struct {
		name, a, b, want string
	}{
		{"one name", good, "\n" + good,
			`b.yaml:4:18: a second Policy "p", the first is at a.yaml:3:18; allowed: each name once`},
		{"one unit", workload("a", "{unit: a.service}"), workload("b", "{unit: a.service}"),
			`b.yaml:3:18: the unit a.service is bound already, at a.yaml:3:18; allowed: one Workload for each`},
		{"one user", workload("a", "{user: 1000}"), workload("b", `{user: "1000"}`),
			`b.yaml:3:18: the user 1000 is bound already, at a.yaml:3:18; allowed: one Workload for each`},
		{"one cgroup", workload("a", "{cgroup: a/b}"), workload("b", "{cgroup: a/b}"),
			`b.yaml:3:18: the cgroup a/b is bound already, at a.yaml:3:18; allowed: one Workload for each`},
		{"one container", workload("a", "{container: c}"), workload("b", "{container: c}"),
			`b.yaml:3:18: the container c is bound already, at a.yaml:3:18; allowed: one Workload for each`},
		{"one address", workload("a", "{address: 'fd00::1'}"), workload("b", "{address: 'fd00:0::1'}"),
			`b.yaml:3:18: the address fd00::1 is bound already, at a.yaml:3:18; allowed: one Workload for each`},
		{"first file first", good + "---\nnonsense", "\x00",
			`a.yaml:8:1: the document is the text "nonsense"; ` +
				`allowed: a mapping with apiVersion, kind, metadata, spec`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]File{{"a.yaml", []byte(c.a)}, {"b.yaml", []byte(c.b)}})
			if err == nil || err.Error() != c.want {
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
}

// TestNoName has a file without a name, as standard input is.
func TestNoName(t *testing.T) {
	_, err := Parse([]File{{Data: []byte("\n  x")}})
	want := `-:2:3: the document is the text "x"; allowed: a mapping with apiVersion, kind, metadata, spec`
	if err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}
