package thole

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// What a reader can hold in mind. Tests have no limit but that of columns.
const (
	maxPackageLines  = 3000
	maxStructFields  = 24
	maxFunctionLines = 60 // without the lines of composite literals: tables
	maxColumns       = 120
	tabColumns       = 4
)

// larger are what is over a limit yet, and how large it may be: little more than it is. It leaves this list when it is
// small enough.
var larger = map[string]int{
	"lines over 120 columns in compiler/golden_test.go":            3,
	"lines over 120 columns in compiler/policy/decode_test.go":     2,
	"lines over 120 columns in compiler/policy/parse_fuzz_test.go": 3,
	"lines over 120 columns in compiler/policy/parse_test.go":      1,
	"lines over 120 columns in compiler/policy/parse_yaml.go":      1,
	"lines over 120 columns in compiler/warnings_test.go":          3,
	"lines over 120 columns in internal/attack/container_test.go":  5,
	"lines over 120 columns in internal/attack/found_test.go":      3,
	"lines over 120 columns in internal/attack/held_test.go":       1,
	"lines over 120 columns in internal/attack/tunnel_test.go":     1,
	"lines over 120 columns in internal/daemon/chaos_test.go":      1,
	"lines over 120 columns in internal/nstest/tunnel_vm_test.go":  1,
	"lines over 120 columns in ruleset/diff_test.go":               1,
	"lines over 120 columns in ruleset/kernel/conntrack_test.go":   1,
	"package compiler":                3780,
	"package internal/daemon":         4240,
	"struct internal/api.Status":      30,
	"struct internal/daemon.enforcer": 51,
}

// A measure is a size of something.
type measure struct {
	name        string
	size, limit int
}

// Packages, structs and functions are small, and lines fit on a screen.
func TestSizes(t *testing.T) {
	measures, err := measureAll()
	if err != nil {
		t.Fatal(err)
	}
	over := map[string]bool{}
	for _, m := range measures {
		limit := m.limit
		if known, ok := larger[m.name]; ok {
			limit = known
		}
		if m.size > limit {
			t.Errorf("%s: %d, want at most %d", m.name, m.size, limit)
		}
		over[m.name] = over[m.name] || m.size > m.limit
	}
	for _, name := range slices.Sorted(maps.Keys(larger)) {
		if !over[name] {
			t.Errorf("%s is small enough now: take it out of the list", name)
		}
	}
}

func measureAll() ([]measure, error) {
	var all []measure
	lines := map[string]int{} // of packages
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all = append(all, columns(path, string(data))...)
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		lines[filepath.Dir(path)] += strings.Count(string(data), "\n")
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, data, 0)
		if err != nil {
			return err
		}
		all = append(all, declarations(filepath.Dir(path), files, file)...)
		return nil
	})
	for dir, n := range lines {
		all = append(all, measure{"package " + dir, n, maxPackageLines})
	}
	return all, err
}

// columns returns the number of lines of a file that are too long. Lines inside raw strings count: they are read, too.
func columns(path, text string) []measure {
	long := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if utf8.RuneCountInString(line)+(tabColumns-1)*strings.Count(line, "\t") > maxColumns {
			long++
		}
	}
	return []measure{{fmt.Sprintf("lines over %d columns in %s", maxColumns, path), long, 0}}
}

func declarations(dir string, files *token.FileSet, file *ast.File) (all []measure) {
	lineOf := func(p token.Pos) int { return files.Position(p).Line }
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Body != nil {
				n := lineOf(d.Body.Rbrace) - lineOf(d.Body.Lbrace) - 1
				name := "function " + dir + "." + functionName(d)
				all = append(all, measure{name, n - literalLines(d.Body, lineOf), maxFunctionLines})
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok {
					if st, ok := s.Type.(*ast.StructType); ok {
						name := "struct " + dir + "." + s.Name.Name
						all = append(all, measure{name, st.Fields.NumFields(), maxStructFields})
					}
				}
			}
		}
	}
	return all
}

func functionName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	of := d.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	if generic, ok := of.(*ast.IndexExpr); ok {
		of = generic.X
	}
	if name, ok := of.(*ast.Ident); ok {
		return name.Name + "." + d.Name.Name
	}
	return d.Name.Name
}

// literalLines counts the lines between the braces of the outermost composite literals.
func literalLines(body ast.Node, lineOf func(token.Pos) int) (n int) {
	ast.Inspect(body, func(node ast.Node) bool {
		literal, ok := node.(*ast.CompositeLit)
		if !ok {
			return true
		}
		n += max(0, lineOf(literal.Rbrace)-lineOf(literal.Lbrace)-1)
		return false
	})
	return n
}
