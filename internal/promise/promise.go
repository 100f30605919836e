package promise

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Hold fails the test where the text is not that of the file; update writes the file anew.
func Hold(t *testing.T, file, text string, update bool) {
	t.Helper()
	if update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(before), "\n"), strings.Split(text, "\n")); diff != "" {
		t.Errorf("what was promised changes (-before +now): -update-promise, and CHANGELOG.md, Breaks:\n%s", diff)
	}
}

// Fields lists the fields that a type has in JSON, a line each, with those of its parts below it.
func Fields(indent string, t reflect.Type) string {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if kind(t) != "object" {
		return ""
	}
	var b strings.Builder
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "" && f.Anonymous:
			b.WriteString(Fields(indent, f.Type))
			continue
		case name == "-" || !f.IsExported():
			continue
		case name == "":
			name = f.Name
		}
		fmt.Fprintf(&b, "%s%s %s", indent, name, kind(f.Type))
		if options != "" {
			fmt.Fprintf(&b, ", %s", options)
		}
		b.WriteString("\n" + Fields(indent+"  ", f.Type))
	}
	return b.String()
}

// kind is what a type is in JSON.
func kind(t reflect.Type) string {
	text := reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()
	switch {
	case t.Kind() == reflect.Pointer:
		return kind(t.Elem())
	case t.Implements(text):
		return "text" // times, addresses
	case t.Kind() == reflect.Slice:
		return "list of " + kind(t.Elem())
	case t.Kind() == reflect.Map:
		return "object of " + kind(t.Elem())
	case t.Kind() == reflect.Struct:
		return "object"
	case t.Kind() == reflect.Bool, t.Kind() == reflect.String:
		return t.Kind().String()
	default:
		return "number"
	}
}
