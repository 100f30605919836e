package policy

import (
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true},
		{"", "a", false},
		{"a", "a", true},
		{"a", "b", false},
		{"*", "", true},
		{"*", "anything", true},
		{"a*", "abc", true},
		{"*c", "abc", true},
		{"a*c*e", "abcde", true},
		{"a*c*e", "abcd", false},
		{"?", "a", true},
		{"?", "", false},
		{"a?c", "abc", true},
		{"**b", "aab", true},
		{"*a*a*a*a*b", strings.Repeat("a", 200), false},
		{"[a]", "a", false},
		{"[a]", "[a]", true},
		{`dev\x2d*`, `dev\x2dsda`, true},
	}
	for _, tt := range tests {
		if got := Glob(tt.pattern, tt.name); got != tt.want {
			t.Errorf("Glob(%q, %q) = %v; want %v", tt.pattern, tt.name, got, tt.want)
		}
	}
}
