package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"thole/compiler/policy/strict"
)

// What follows are the syntaxes of single words. They are pure, and their errors
// say what was found and what is allowed, not where.

var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	labelName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// CheckName accepts names of documents. They become names of nftables counters,
// prefixes of the kernel's log lines and words on a command line, without quotes.
func CheckName(s string) error {
	if len(s) > 63 || !subdomain.MatchString(s) {
		return fmt.Errorf("invalid name %s: must be at most 63 lower-case letters, digits, - and . "+
			"with a letter or digit at both ends and around each dot", strict.Quote(s))
	}
	return nil
}

// checkLabelKey accepts what Kubernetes accepts as a label key.
func checkLabelKey(s string) error {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		prefix, name = "prefix", s
	}
	if len(prefix) > 253 || !subdomain.MatchString(prefix) || !labelName.MatchString(name) {
		return fmt.Errorf("invalid label key %s: must be at most 63 letters, digits, - _ . with a letter or digit at "+
			"both ends, optionally after a DNS name and /", strict.Quote(s))
	}
	return nil
}

// reservedKeys are the prefixes of keys that no document may give. They can be selected.
var reservedKeys = []string{daemonPrefix, "com.docker.", "org.opencontainers.", "io.kubernetes.", "desktop.docker."}

// reservedPrefix returns the prefix that reserves a key, or "".
func reservedPrefix(key string) string {
	for _, prefix := range reservedKeys {
		if strings.HasPrefix(key, prefix) {
			return prefix
		}
	}
	return ""
}

// CheckContainerLabel accepts the labels that a container may have. Docker takes any
// text, and people write sentences, paths and rules. What is no word of a selector
// cannot be selected by its value, but it is compared (sameLabels).
func CheckContainerLabel(key, value string) error {
	for _, s := range []string{key, value} {
		switch {
		case len(s) > MaxLabelText:
			return fmt.Errorf("the label %s has %d bytes; allowed: %d for the key and for the value", strict.Quote(key),
				len(s), MaxLabelText)
		case !IsLabelText(s):
			return fmt.Errorf("the label %s has a control character; allowed: printable text", strict.Quote(key))
		}
	}
	if key == "" {
		return errors.New("a label has no key; allowed: KEY=VALUE")
	}
	return nil
}

// IsLabelText reports whether s is a value that a label of a container may have.
func IsLabelText(s string) bool {
	return len(s) <= MaxLabelText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// UnusableValue stands for the value of a container's label that no policy can name, as one of several lines: the key
// is there all the same. Such a label does not count. An allow rule with NotIn does not match it, because nobody knows
// its value.
const UnusableValue = "\x00"

// CheckUserLabelKey accepts the keys that a document may give.
func CheckUserLabelKey(s string) error {
	switch prefix := reservedPrefix(s); prefix {
	case "":
		return checkLabelKey(s)
	case "thole/":
		return fmt.Errorf("the label key %s can be used in selectors only, because only the daemon sets keys that "+
			"begin with thole/; allowed: other keys", strict.Quote(s))
	default:
		return fmt.Errorf("the label key %s can be used in selectors only, because tools set keys that begin with "+
			"%s; allowed: other keys", strict.Quote(s), prefix)
	}
}

// MaxLabelText bounds, in bytes, the values of labels that tools set; PATH_MAX, as paths are
// the longest of them.
const MaxLabelText = 4096

// CheckUserLabelValue accepts what Kubernetes accepts as a label value.
func CheckUserLabelValue(s string) error {
	if s != "" && !labelName.MatchString(s) {
		return fmt.Errorf("invalid label value %s: must be at most 63 letters, digits, - _ . with a letter or digit "+
			"at both ends, or \"\"", strict.Quote(s))
	}
	return nil
}

// checkLabelValue accepts the values of a key: CheckUserLabelValue, but labels that tools
// and the daemon set have values of any form: thole/exe is a path.
func checkLabelValue(key, s string) error {
	switch {
	case IsUserLabel(key):
		return CheckUserLabelValue(s)
	case len(s) > MaxLabelText:
		return fmt.Errorf("a label value of %d bytes; allowed: %d", len(s), MaxLabelText)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("a control character in %s; allowed: printable text", strict.Quote(s))
	}
	return nil
}

// Where a CIDR peer can never match, because it speaks of this node itself.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// parsePrefix reads a network that a CIDR peer can name.
func parsePrefix(s string) (netip.Prefix, error) {
	const allowed = ": must be a network such as 10.0.0.0/8 or fd00::/8"
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return p, fmt.Errorf("%s has no prefix length; allowed: %s/%d", s, s, a.BitLen())
		}
		return p, fmt.Errorf("invalid network %s"+allowed, strict.Quote(s))
	}
	switch {
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%s is IPv4 in IPv6; allowed: IPv4 itself, %s", s, unmapped(p))
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits set after its prefix; allowed: %s", s, p.Masked())
	case isLoopback(p):
		return p, fmt.Errorf("%s is an address of this node, which cidr never matches; allowed: "+
			"networks outside (for this node: unlabelled: true, or any: true)", s)
	}
	return p, nil
}

func isLoopback(p netip.Prefix) bool {
	for _, l := range loopback {
		if within := l.Contains(p.Addr()) && p.Bits() >= l.Bits(); within {
			return true
		}
	}
	return false
}

// unmapped is the IPv4 network that p, one of IPv4 in IPv6, stands for.
func unmapped(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr().Unmap(), max(p.Bits()-96, 0)).Masked()
}

// parseExcept reads a network that is taken out of another.
func parseExcept(s string, from netip.Prefix) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	switch {
	case err != nil:
		return p, err
	case p == from:
		return p, fmt.Errorf("%s is all of cidr; allowed: a part of it", s)
	case !from.Contains(p.Addr()) || p.Bits() < from.Bits():
		return p, fmt.Errorf("%s is not inside cidr; allowed: a part of %s", s, from)
	}
	return p, nil
}
