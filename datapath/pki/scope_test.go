package pki

import (
	"bytes"
	"crypto/ed25519"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"thole/compiler/policy"
)

// golden is the encoding of the scope in the package comment.
func golden(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/scope.hex")
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	der, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestGoldenScope(t *testing.T) {
	der, err := typical(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(der, golden(t)) {
		t.Errorf("got\n%x, want\n%x", der, golden(t))
	}
	scope, err := decodeScope(golden(t))
	if err != nil || !reflect.DeepEqual(scope, typical(t)) {
		t.Errorf("got %v (%v), want %v", scope, err, typical(t))
	}
}

// TestOneEncoding: everything that says the same in another way is refused.
func TestOneEncoding(t *testing.T) {
	words := func(s ...string) []asn1.RawValue {
		var all []asn1.RawValue
		for _, w := range s {
			all = append(all, text(w))
		}
		return all
	}
	grants := func(g ...[]asn1.RawValue) wireScope {
		return wireScope{Grants: g, Addresses: [][]byte{{192, 0, 2, 1, 32}}}
	}
	printable := words("app", "web")
	printable[1].Tag = asn1.TagPrintableString
	mapped := append(netip.MustParseAddr("::ffff:192.0.2.1").AsSlice(), 128)
	for name, test := range map[string]struct {
		wire wireScope
		ok   bool
	}{
		"one grant":              {grants(words("app", "web")), true},
		"no grant":               {grants(), true},
		"the empty value":        {grants(words("app", "")), true},
		"a prefix and values":    {grants(words("app", "a", "b*", "bcd")), true},
		"keys descending":        {grants(words("b", "x"), words("a", "x")), false},
		"a key twice":            {grants(words("a", "x"), words("a", "y")), false},
		"values descending":      {grants(words("a", "y", "x")), false},
		"a value twice":          {grants(words("a", "x", "x")), false},
		"any and others":         {grants(words("a", "*", "x")), false},
		"no values":              {grants(words("a")), false},
		"no key":                 {grants(words()), false},
		"the empty key":          {grants(words("", "x")), false},
		"a wildcard key":         {grants(words("*", "x")), false},
		"a prefix of keys":       {grants(words("a*", "x")), false},
		"a star in the middle":   {grants(words("a", "x*y")), false},
		"two stars":              {grants(words("a", "x**")), false},
		"a dash before the star": {grants(words("a", "-*")), false},
		"the daemon's key":       {grants(words("thole/node", "x")), false},
		"a tool's key":           {grants(words("com.docker.compose.service", "x")), false},
		"a value that is none":   {grants(words("a", "x y")), false},
		"another kind of string": {grants(printable), false},
		"granted and required": {wireScope{Grants: [][]asn1.RawValue{words("a", "x")},
			Require: [][]asn1.RawValue{words("a", "x")}, Addresses: [][]byte{{192, 0, 2, 1, 32}}}, false},
		"required: three words": {wireScope{Require: [][]asn1.RawValue{words("a", "x", "y")},
			Addresses: [][]byte{{192, 0, 2, 1, 32}}}, false},
		"required: a prefix": {wireScope{Require: [][]asn1.RawValue{words("a", "x*")},
			Addresses: [][]byte{{192, 0, 2, 1, 32}}}, false},
		"required twice": {wireScope{Require: [][]asn1.RawValue{words("a", "x"), words("a", "x")},
			Addresses: [][]byte{{192, 0, 2, 1, 32}}}, false},
		"no address":              {wireScope{}, false},
		"addresses descending":    {wireScope{Addresses: [][]byte{{192, 0, 2, 2, 32}, {192, 0, 2, 1, 32}}}, false},
		"an address twice":        {wireScope{Addresses: [][]byte{{192, 0, 2, 1, 32}, {192, 0, 2, 1, 32}}}, false},
		"bits behind the prefix":  {wireScope{Addresses: [][]byte{{192, 0, 2, 1, 24}}}, false},
		"a prefix of 33":          {wireScope{Addresses: [][]byte{{192, 0, 2, 1, 33}}}, false},
		"an address of 3 bytes":   {wireScope{Addresses: [][]byte{{192, 0, 2, 24}}}, false},
		"an empty address":        {wireScope{Addresses: [][]byte{{}}}, false},
		"IPv4 in IPv6":            {wireScope{Addresses: [][]byte{mapped}}, false},
		"loopback":                {wireScope{Addresses: [][]byte{{127, 0, 0, 1, 32}}}, false},
		"a group":                 {wireScope{Addresses: [][]byte{{224, 0, 0, 1, 32}}}, false},
		"everything, explicitly":  {wireScope{Addresses: [][]byte{{0, 0, 0, 0, 0}, make([]byte, 17)}}, true},
		"everything, IPv4 alone":  {wireScope{Addresses: [][]byte{{0, 0, 0, 0, 0}}}, true},
		"IPv6 before IPv4":        {wireScope{Addresses: [][]byte{make([]byte, 17), {0, 0, 0, 0, 0}}}, false},
		"a value of 63, a key of": {grants(words(strings.Repeat("k", 63), strings.Repeat("v", 63))), true},
		"a value of 64":           {grants(words("a", strings.Repeat("v", 64))), false},
		"a key of 64":             {grants(words(strings.Repeat("k", 64), "v")), false},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := asn1.Marshal(test.wire)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeScope(der); (err == nil) != test.ok {
				t.Errorf("got error %v", err)
			} else if err != nil {
				want(t, err, ErrMalformed)
			}
		})
	}
	_, err := decodeScope(append(golden(t), 5, 0))
	want(t, err, ErrMalformed)
	long := bytes.Clone(golden(t)) // the outer length as 81 32
	long = append([]byte{0x30, 0x81}, long[1:]...)
	_, err = decodeScope(long)
	want(t, err, ErrMalformed)
}

func TestWordsOfTheCommandLine(t *testing.T) {
	for word, wanted := range map[string]string{
		"app=web,db": "app=db,web", "app=web,web": "app=web", "env=prod-*": "env=prod-*", "env=*": "env=*",
		"app=": "app=", "a=b=c": "a=b=c",
	} {
		if got, err := ParseGrants([]string{word}); err != nil || got.String() != wanted {
			t.Errorf("%q: %v (%v)", word, got, err)
		}
	}
	if got, err := ParseGrants([]string{"app=web", "app=db", "app="}); err != nil || got.String() != "app=,db,web" {
		t.Errorf("%v (%v)", got, err)
	}
	for _, words := range [][]string{{"app"}, {""}, {"app=web,"}, {"app=,web"}} {
		if got, err := ParseGrants(words); err == nil {
			t.Errorf("%q: %v", words, got)
		}
	}
	for _, words := range [][]string{{"team"}, {"team=a", "team=b"}} {
		if got, err := ParseRequire(words); err == nil {
			t.Errorf("%q: %v", words, got)
		}
	}
	if got, err := ParseAddresses([]string{"any", "192.0.2.0/24", "192.0.2.0/24"}); err != nil ||
		fmt.Sprint(got) != "[0.0.0.0/0 192.0.2.0/24 ::/0]" {
		t.Errorf("%v (%v)", got, err)
	}
	for _, word := range []string{"", "any*", "192.0.2", "fe80::1%eth0", "192.0.2.0/33"} {
		if got, err := ParseAddresses([]string{word}); err == nil {
			t.Errorf("%q: %v", word, got)
		}
	}
}

// TestLargestCertificate: what is issued is verified, up to the limit, and no more is
// issued.
func TestLargestCertificate(t *testing.T) {
	a := newAuthority(t)
	trust := trustIn(t, a)
	key := newKey(t).Public().(ed25519.PublicKey)
	largest := 0
	for n := 1; ; n++ {
		scope := typical(t)
		for i := range n {
			scope.Grants["app"] = append(scope.Grants["app"], fmt.Sprintf("v%02d", i))
		}
		der, err := a.Issue("web-1", key, scope, For(now, day))
		if err != nil {
			if !strings.Contains(err.Error(), fmt.Sprint(MaxCertificate)) {
				t.Error(err)
			}
			break
		}
		largest = len(der)
		verify(t, trust, der)
	}
	if largest > MaxCertificate || largest < MaxCertificate-5 {
		t.Errorf("the largest certificate has %d bytes, the limit is %d", largest, MaxCertificate)
	}
}

// TestLargestList: the same for a list.
func TestLargestList(t *testing.T) {
	a := newAuthority(t)
	revoked := make(map[Serial]time.Time)
	for len(revoked) < 34_000 {
		revoked[newSerial()] = now
	}
	der, err := a.List(1, revoked, now)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := NewTrust([][]byte{a.cert.Raw}, [][]byte{der}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries, %d bytes, read in %v", len(revoked), len(der), time.Since(start))
	for len(revoked) < 45_000 {
		revoked[newSerial()] = now
	}
	if _, err := a.List(1, revoked, now); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxListSize)) {
		t.Errorf("a list without end: %v", err)
	}
	_, err = NewTrust([][]byte{a.cert.Raw}, [][]byte{make([]byte, maxListSize+1)})
	want(t, err, ErrMalformed)
}

// FuzzGrants: what is read is written again byte for byte, and everything in it is a
// word that policies know.
func FuzzGrants(f *testing.F) {
	f.Add(golden(f))
	for _, grant := range []string{"a=", "env=prod-*", "example.com/a=*"} {
		der, err := scopeOf(f, []string{grant}, nil, []string{"any"}).encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		scope, err := decodeScope(der)
		if err != nil {
			want(t, err, ErrMalformed)
			return
		}
		again, err := scope.encode()
		if err != nil || !bytes.Equal(again, der) {
			t.Errorf("%x is read as %v, which is %x (%v)", der, scope, again, err)
		}
		for key, values := range scope.Grants {
			if !policy.IsUserLabel(key) {
				t.Errorf("%q can be asserted", key)
			}
			for _, value := range values {
				if exact := !strings.HasSuffix(value, "*"); exact && !scope.Grants.Allow(key, value) {
					t.Errorf("%s=%q is granted and not allowed", key, value)
				}
			}
		}
		id := &Identity{Node: "n", Grants: scope.Grants, Require: scope.Require}
		if _, err := id.MayAssert(scope.Require); err != nil {
			t.Error(err)
		}
	})
}

// FuzzVerify: whatever comes instead of a certificate is refused, with a reason.
func FuzzVerify(f *testing.F) {
	a := newAuthority(f)
	trust := trustIn(f, a)
	der := issue(f, a, typical(f))
	f.Add(der)
	f.Add(listOf(f, a, 1, newSerial()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := trust.Verify(data, now); err == nil && !bytes.Equal(data, der) {
			t.Errorf("%x is believed", data)
		}
		// What nobody signed is looked at, too; it must not do any harm.
		_, _ = inspectCertificate(data, now)
		_, _, _ = parseList(data)
		_, _, _ = ParseRequest(data)
		_, _ = Inspect(data, now)
		_, _ = parseTrust(data)
	})
}
