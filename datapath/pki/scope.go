package pki

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/policy"
)

// wildcard grants every value of a key; behind a prefix, every value that begins so.
const wildcard = "*"

// Grants are the labels that a node may assert: a key and its values. A value is
// exact, or a prefix and "*", or "*" alone.
type Grants map[string][]string

// Allow reports whether the label may be asserted.
func (g Grants) Allow(key, value string) bool {
	return slices.ContainsFunc(g[key], func(pattern string) bool {
		prefix, open := strings.CutSuffix(pattern, wildcard)
		if !open {
			return value == pattern
		}
		return strings.HasPrefix(value, prefix) && policy.IsLabelText(value)
	})
}

func (g Grants) String() string {
	words := make([]string, 0, len(g))
	for _, key := range slices.Sorted(maps.Keys(g)) {
		words = append(words, key+"="+strings.Join(g[key], ","))
	}
	return strings.Join(words, " ")
}

// A Scope is what a certificate says beside who the node is: what it may assert, what
// is added to that, and the addresses from which and at which it may speak.
type Scope struct {
	Grants    Grants
	Require   map[string]string
	Addresses []netip.Prefix
}

// anyAddress is the explicit permission to speak from everywhere.
var anyAddress = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// ParseGrants reads grants as people write them: "app=web,db", "env=prod-*", "tier=*".
func ParseGrants(words []string) (Grants, error) {
	grants := Grants{}
	for _, word := range words {
		key, values, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("the grant %q has no values; allowed: KEY=VALUE,…, KEY=PREFIX* or KEY=* for any",
				word)
		}
		for value := range strings.SplitSeq(values, ",") {
			if value == "" && values != "" {
				return nil, fmt.Errorf("the grant %q has an empty value; if that is meant, give %q too", word, key+"=")
			}
			grants[key] = append(grants[key], value)
		}
		slices.Sort(grants[key])
		grants[key] = slices.Compact(grants[key])
	}
	return grants, nil
}

// ParseRequire reads required labels: "team=a".
func ParseRequire(words []string) (map[string]string, error) {
	require := map[string]string{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("the required label %q has no value; allowed: KEY=VALUE", word)
		}
		if old, ok := require[key]; ok && old != value {
			return nil, fmt.Errorf("the label %s cannot be required to be %q and %q", key, old, value)
		}
		require[key] = value
	}
	return require, nil
}

// ParseAddresses reads addresses and networks; "any" stands for all of both families.
func ParseAddresses(words []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, word := range words {
		if word == "any" {
			networks = append(networks, anyAddress...)
			continue
		}
		if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
			networks = append(networks, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("invalid address %q: must be an address, "+
				"a network such as 192.0.2.0/24, or any", word)
		}
		networks = append(networks, p)
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return slices.Compact(networks), nil
}

// check accepts a scope whose words are right, whatever their order.
func (s Scope) check() error {
	for _, key := range slices.Sorted(maps.Keys(s.Grants)) {
		if err := s.checkGrant(key); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.Require)) {
		if err := policy.CheckUserLabelKey(key); err != nil {
			return err
		}
		if err := policy.CheckUserLabelValue(s.Require[key]); err != nil {
			return err
		}
	}
	if len(s.Addresses) == 0 {
		return errors.New("no address is given from which the node may speak; allowed: addresses, networks, or any")
	}
	for _, p := range s.Addresses {
		if err := checkNetwork(p); err != nil {
			return err
		}
	}
	return nil
}

func (s Scope) checkGrant(key string) error {
	if strings.Contains(key, wildcard) {
		return fmt.Errorf("%q: a label's key is granted by its name, without *", key)
	}
	if err := policy.CheckUserLabelKey(key); err != nil {
		return err
	}
	if _, ok := s.Require[key]; ok {
		return fmt.Errorf("the label %s is required, so it cannot be granted too", key)
	}
	values := s.Grants[key]
	if len(values) == 0 {
		return fmt.Errorf("the grant of %s has no values", key)
	}
	if len(values) > 1 && slices.Contains(values, wildcard) {
		return fmt.Errorf("the grant %s=* allows any value: leave the others out", key)
	}
	for _, value := range values {
		if err := checkPattern(value); err != nil {
			return err
		}
	}
	return nil
}

func checkNetwork(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return fmt.Errorf("invalid network %s: must be IPv4 or IPv6", p)
	case p != p.Masked():
		return fmt.Errorf("%s has bits set after its prefix; allowed: %s", p, p.Masked())
	case p.Addr().IsLoopback() || p.Addr().IsMulticast():
		return fmt.Errorf("invalid address %s: must be an address of a node", p)
	}
	return nil
}

// wireScope is the scope's DER; see the package comment.
type wireScope struct {
	Grants    [][]asn1.RawValue
	Require   [][]asn1.RawValue
	Addresses [][]byte
}

func text(s string) asn1.RawValue {
	return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)}
}

// encode returns the one encoding of a scope.
func (s Scope) encode() ([]byte, error) {
	var wire wireScope
	for _, key := range slices.Sorted(maps.Keys(s.Grants)) {
		grant := []asn1.RawValue{text(key)}
		for _, value := range slices.Compact(slices.Sorted(slices.Values(s.Grants[key]))) {
			grant = append(grant, text(value))
		}
		wire.Grants = append(wire.Grants, grant)
	}
	for _, key := range slices.Sorted(maps.Keys(s.Require)) {
		wire.Require = append(wire.Require, []asn1.RawValue{text(key), text(s.Require[key])})
	}
	networks := slices.SortedFunc(slices.Values(s.Addresses), netip.Prefix.Compare)
	for _, p := range slices.Compact(networks) {
		wire.Addresses = append(wire.Addresses, append(p.Addr().AsSlice(), byte(p.Bits())))
	}
	return asn1.Marshal(wire)
}

// decodeScope is the inverse of encode and reads nothing else: what encode would not
// have written, in this order, is refused.
func decodeScope(der []byte) (Scope, error) {
	if len(der) > MaxCertificate {
		return Scope{}, fmt.Errorf("%w scope: %d bytes", ErrMalformed, len(der))
	}
	var wire wireScope
	if rest, err := asn1.Unmarshal(der, &wire); err != nil || len(rest) > 0 {
		return Scope{}, fmt.Errorf("%w scope", ErrMalformed)
	}
	s, err := wire.scope()
	if err != nil {
		return Scope{}, fmt.Errorf("%w scope: %v", ErrMalformed, err)
	}
	if err := s.check(); err != nil {
		return Scope{}, fmt.Errorf("%w scope: %v", ErrMalformed, err)
	}
	if again, err := s.encode(); err != nil || !bytes.Equal(again, der) {
		return Scope{}, fmt.Errorf("%w scope: it is not in its canonical encoding", ErrMalformed)
	}
	return s, nil
}

func (w wireScope) scope() (Scope, error) {
	s := Scope{Grants: Grants{}, Require: map[string]string{}}
	for _, grant := range w.Grants {
		if len(grant) < 2 {
			return s, errors.New("a grant without values")
		}
		for _, value := range grant[1:] {
			key := string(grant[0].Bytes)
			s.Grants[key] = append(s.Grants[key], string(value.Bytes))
		}
	}
	for _, label := range w.Require {
		if len(label) != 2 {
			return s, errors.New("a required label that is not a key and a value")
		}
		s.Require[string(label[0].Bytes)] = string(label[1].Bytes)
	}
	for _, network := range w.Addresses {
		if len(network) != 5 && len(network) != 17 {
			return s, fmt.Errorf("a network of %d bytes", len(network))
		}
		last := len(network) - 1
		addr, _ := netip.AddrFromSlice(network[:last]) // 4 or 16 bytes: it is one
		s.Addresses = append(s.Addresses, netip.PrefixFrom(addr, int(network[last])))
	}
	return s, nil
}
