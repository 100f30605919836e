package strict

import (
	"strings"
	"testing"
)

// TestBadText has what a text file cannot hold.
func TestBadText(t *testing.T) {
	for _, c := range []struct{ name, data, want string }{
		{"null bytes", "kind: Policy\nx: \x00", "f.yaml:2:4: the character U+0000; allowed: printable characters, " +
			"spaces and line feeds"},
		{"not UTF-8", "# caf\xe9", "f.yaml:1:6: the byte 0xe9 is not UTF-8; allowed: text in UTF-8"},
		{"UTF-16", "\xff\xfea\x00", "f.yaml:1:1: the byte 0xff is not UTF-8; allowed: text in UTF-8"},
		{"byte order mark", "\ufeffkind: Policy", "f.yaml:1:1: a byte order mark; allowed: UTF-8 without one"},
		{"escape sequence", "# \x1b[31m", "f.yaml:1:3: the character U+001B; allowed: printable characters, spaces " +
			"and line feeds"},
		{"carriage return alone", "a: b\rc: d\r\n", "f.yaml:1:5: the character U+000D; allowed: printable " +
			"characters, spaces and line feeds"},
		{"next line", "# a\u0085b", "f.yaml:1:4: the character U+0085; allowed: printable characters, spaces and " +
			"line feeds"},
		{"line separator", "# a\u2028b", "f.yaml:1:4: the character U+2028; allowed: printable characters, spaces " +
			"and line feeds"},
		{"right to left", "# é\u202e", "f.yaml:1:4: the character U+202E; allowed: printable characters, spaces and " +
			"line feeds"},
		{"tab in a second document", "---\n---\n \tx: y", "f.yaml:3:2: a tab; allowed: spaces"},
		{"size", strings.Repeat("#", maxFileSize+1),
			"f.yaml:1:1: a file of 1048577 bytes; allowed: 1048576, divide it"},
		{"documents", strings.Repeat("---\n", maxDocuments+1), "f.yaml:4097:1: more than 4096 documents in one " +
			"file; allowed: 4096, divide the file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewDecoder("f.yaml")
			d.EachDocument([]byte(c.data), func(Node) {})
			err := d.Err()
			if err == nil || err.Error() != c.want {
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"abc", "abc", 0},
		{"abc", "", 3},
		{"", "abc", 3},
		{"ingres", "ingress", 1},
		{"form", "from", 1},
		{"kitten", "sitting", 3},
		{"ca", "abc", 3},
		{"any", "all", 2},
	} {
		if got := distance(c.a, c.b, 10); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.a, c.b, c.want); got != c.want {
			t.Errorf("distance(%q, %q) with its own limit = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
