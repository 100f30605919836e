package pki

import (
	"fmt"
	"regexp"
	"strings"

	"thole/compiler/policy"
)

// Labels and names are those of policies; only what a grant says of a value is this package's own.

func checkNode(s string) error {
	if err := policy.CheckName(s); err != nil {
		return fmt.Errorf("node name: %v", err)
	}
	return nil
}

// valuePrefix is how a label value may begin.
var valuePrefix = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,61}$`)

// checkPattern accepts what a grant may say of a value.
func checkPattern(s string) error {
	prefix, open := strings.CutSuffix(s, wildcard)
	if !open {
		return policy.CheckUserLabelValue(s)
	}
	if prefix != "" && !valuePrefix.MatchString(prefix) {
		return fmt.Errorf("invalid prefix %q: before the * at the end must be letters, digits, - _ . "+
			"after a letter or digit", s)
	}
	return nil
}
