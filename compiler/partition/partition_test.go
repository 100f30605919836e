package partition_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

func parse(t *testing.T) []policy.Policy {
	t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`
apiVersion: thole/v1
kind: Policy
metadata: {name: p}
spec:
  selector: {}
  ingress:
  - from: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
    ports: ["80/tcp", "8000-8010/udp", icmp/echo-request]
  - from: [{cidr: 10.1.2.0/24}, {cidr: 2001:db8::/32}]
    ports: ["80-90/tcp"]
`)}})
	if err != nil {
		t.Fatal(err)
	}
	return docs.Policies
}

// Two addresses are in one class if the same rules match them.
func TestAddresses(t *testing.T) {
	policies := parse(t)
	classes := partition.Addresses(policies)
	for _, tt := range []struct {
		address string
		rules   []int // of ingress, that match it
	}{
		{"9.255.255.255", nil}, {"10.0.0.0", []int{0}}, {"10.0.255.255", []int{0}}, {"10.1.0.0", nil},
		{"10.1.2.0", []int{1}}, {"10.1.2.255", []int{1}}, {"10.1.3.0", nil}, {"10.2.0.0", []int{0}},
		{"10.255.255.255", []int{0}}, {"11.0.0.0", nil}, {"224.0.0.1", nil}, {"::", nil}, {"2001:db8::", []int{1}},
		{"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", []int{1}}, {"2001:db9::", nil}, {"ff02::1", nil},
	} {
		var rules []int
		class := classes.Of(netip.MustParseAddr(tt.address))
		for i := range policies[0].Ingress.Allow {
			if slices.Contains(class.Lists, classes.ListOf(&policies[0].Ingress.Allow[i])) {
				rules = append(rules, i)
			}
		}
		if diff := cmp.Diff(tt.rules, rules); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.address, diff)
		}
	}
	if n := len(classes.Classes); n != 3 {
		t.Errorf("%d classes, want 3", n)
	}
}

// The ports of a rule are divided where another rule divides them.
func TestPorts(t *testing.T) {
	policies := parse(t)
	classes := partition.Ports(policies)
	for i, want := range [][][]partition.Span{
		{
			{{Proto: 6, From: 80, To: 80}},
			{{Proto: 17, From: 8000, To: 8010}, {Proto: 1, From: 8, To: 8}, {Proto: 58, From: 128, To: 128}},
		},
		{{{Proto: 6, From: 80, To: 80}}, {{Proto: 6, From: 81, To: 90}}},
	} {
		var got [][]partition.Span
		for _, at := range classes.Of(policies[0].Ingress.Allow[i].Ports) {
			got = append(got, classes.Classes[at].Spans)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rule %d (-want +got)\n%s", i, diff)
		}
	}
}

// Of prefixes that overlap, the widest one stays, and of equal ones the first.
func TestDisjoint(t *testing.T) {
	prefix := netip.MustParsePrefix
	got := partition.Disjoint([]netip.Prefix{prefix("10.1.0.0/16"), prefix("10.0.0.0/8"), prefix("10.0.0.0/8"),
		prefix("fd00::1/64")})
	want := []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/64")}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
