package thole

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
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
	for _, m := range measures {
		if m.size > m.limit {
			t.Errorf("%s: %d, want at most %d", m.name, m.size, m.limit)
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
