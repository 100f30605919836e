package thole

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents returns the project's pages with their text.
func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, name := range append(names, "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(text)
	}
	if len(pages) < 10 {
		t.Fatalf("%d pages, want at least 10", len(pages))
	}
	return pages
}

// lines calls f for each line of a page that is outside of fenced blocks, with its number.
func lines(text string, f func(number int, line string)) {
	fenced, number := false, 0
	for line := range strings.Lines(text) {
		number++
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		} else if !fenced {
			f(number, strings.TrimRight(line, "\n"))
		}
	}
}

var (
	code = regexp.MustCompile("`([^`]+)`")
	file = regexp.MustCompile(`^[\w.*/-]+$`)
	// bare are the endings of files that are named without their directory, as in "`compiler/lower.go`, `fleet.go`".
	bare = regexp.MustCompile(`^[\w*]+\.(go|md|sh)$`)
)

// notFiles look like files of the project.
var notFiles = []string{
	"datapath/too-many", // a reason in thole status
}

// TestDocumentsNameFiles: each file and directory of the project that a page names in backticks exists. A name without
// a directory is a file in the directory of the name before it, in the same line: "`compiler/lower.go`, `fleet.go`".
func TestDocumentsNameFiles(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var top []string
	for _, e := range entries {
		top = append(top, e.Name())
	}
	found := 0
	for page, text := range documents(t) {
		lines(text, func(number int, line string) {
			dir := "."
			for _, match := range code.FindAllStringSubmatch(line, -1) {
				name := match[1]
				first, _, below := strings.Cut(name, "/")
				switch {
				case !file.MatchString(name) || slices.Contains(notFiles, name) || first == "bin":
					continue
				case below && slices.Contains(top, first):
					dir = name
					if info, err := os.Stat(name); err != nil || !info.IsDir() {
						dir = path.Dir(name)
					}
				case !below && bare.MatchString(name) && !slices.Contains(top, name):
					name = path.Join(dir, name)
				default:
					continue
				}
				found++
				if paths, err := filepath.Glob(name); err != nil || len(paths) == 0 {
					t.Errorf("%s:%d: there is no file %s", page, number, name)
				}
			}
		})
	}
	if found < 50 {
		t.Errorf("the pages name %d files, want at least 50: is the pattern still right?", found)
	}
}

// TestDocumentsLink: each link from one page to another leads to a file that exists and to a heading of it.
func TestDocumentsLink(t *testing.T) {
	pages := documents(t)
	link := regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`)
	for page, text := range pages {
		lines(text, func(number int, line string) {
			for _, match := range link.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
				target := page
				if strings.Contains(match[1], "://") {
					continue
				}
				if match[1] != "" {
					target = path.Join(path.Dir(page), match[1])
				}
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s:%d: %v", page, number, err)
				}
				if match[2] != "" && !slices.Contains(anchors(pages[target]), match[2]) {
					t.Errorf("%s:%d: %s has no heading #%s", page, number, target, match[2])
				}
			}
		})
	}
}

// anchors returns the headings of a page as links name them.
func anchors(text string) []string {
	var all []string
	lines(text, func(_ int, line string) {
		if strings.HasPrefix(line, "#") {
			title := strings.ToLower(strings.TrimLeft(line, "# "))
			title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")
			all = append(all, strings.ReplaceAll(title, " ", "-"))
		}
	})
	return all
}

// TestDocumentsNameTests: each test that a page names exists. A name that ends with "…" stands for several.
func TestDocumentsNameTests(t *testing.T) {
	var tests strings.Builder
	err := filepath.WalkDir(".", func(name string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		tests.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(Test[A-Z]\w*)(…?)`)
	for page, text := range documents(t) {
		for _, match := range named.FindAllStringSubmatch(text, -1) {
			declaration := "\nfunc " + match[1]
			if match[2] == "" {
				declaration += "("
			}
			if !strings.Contains(tests.String(), declaration) {
				t.Errorf("%s: there is no test %s", page, match[0])
			}
		}
	}
}

// TestDocumentsNameTargets: each target of make that a page names exists, and CONTRIBUTING names all that are for
// people.
func TestDocumentsNameTargets(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	pages := documents(t)
	inCode := regexp.MustCompile("(?m)(?:`|^[#$] )make ([a-z-]+)")
	for page, text := range pages {
		for _, match := range inCode.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(string(makefile), "\n"+match[1]+":") {
				t.Errorf("%s: the Makefile has no target %s", page, match[1])
			}
		}
	}
	for _, target := range []string{"test", "test-race", "test-vm", "demo", "bench", "soak", "soak-long", "fuzz",
		"lint"} {
		if !strings.Contains(pages["CONTRIBUTING.md"], "`make "+target+"`") {
			t.Errorf("CONTRIBUTING.md does not name make %s", target)
		}
	}
}
