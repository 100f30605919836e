package pki

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NodeLabel is the label that a verifier adds to what a node asserts: its name.
const NodeLabel = "thole/node"

// maxText bounds a label's value that is not granted word by word, as the compiler
// bounds those of containers.
const maxText = 4096

// What follows are the compiler's rules for labels, which this package can not import.
// A test holds them together.
var (
	subdomain   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	valuePrefix = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,61}$`)
	foreignKeys = []string{"thole/", "com.docker.", "org.opencontainers.", "io.kubernetes.", "desktop.docker."}
)

func checkNode(s string) error {
	if len(s) > 63 || !subdomain.MatchString(s) {
		return fmt.Errorf("invalid node name %q: must be at most 63 lower-case letters, digits, - and . with a letter or digit at both ends and around each dot", s)
	}
	return nil
}

func checkKey(s string) error {
	for _, prefix := range foreignKeys {
		if strings.HasPrefix(s, prefix) {
			return fmt.Errorf("the label %q cannot be granted: keys that begin with %s are set by tools or by the daemon", s, prefix)
		}
	}
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		prefix, name = "prefix", s
	}
	if len(prefix) > 253 || !subdomain.MatchString(prefix) || !labelName.MatchString(name) {
		return fmt.Errorf("invalid label key %q: must be at most 63 letters, digits, - _ . with a letter or digit at both ends, optionally after a DNS name and /", s)
	}
	return nil
}

func checkValue(s string) error {
	if s != "" && !labelName.MatchString(s) {
		return fmt.Errorf("invalid label value %q: must be at most 63 letters, digits, - _ . with a letter or digit at both ends, or \"\"", s)
	}
	return nil
}

// checkPattern accepts what a grant may say of a value.
func checkPattern(s string) error {
	prefix, open := strings.CutSuffix(s, wildcard)
	if !open {
		return checkValue(s)
	}
	if prefix != "" && !valuePrefix.MatchString(prefix) {
		return fmt.Errorf("invalid prefix %q: before the * at the end must be letters, digits, - _ . after a letter or digit", s)
	}
	return nil
}

// isText reports whether a value is one that a container's label may have.
func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
