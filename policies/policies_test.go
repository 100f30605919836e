package policies_test

import (
	"bytes"
	"io/fs"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/policies"
)

// files reads all examples.
func files(t *testing.T) []policy.File {
	t.Helper()
	names, err := fs.Glob(policies.Files, "*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no files (%v)", err)
	}
	var all []policy.File
	for _, name := range names {
		data, err := fs.ReadFile(policies.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, policy.File{Name: name, Data: data})
	}
	return all
}

// TestFiles: each file is a set by itself and says first what it does.
func TestFiles(t *testing.T) {
	for _, f := range files(t) {
		t.Run(f.Name, func(t *testing.T) {
			docs, err := policy.Parse([]policy.File{f})
			if err != nil {
				t.Fatal(err)
			}
			if len(docs.Policies) == 0 {
				t.Error("no policy")
			}
			if !bytes.HasPrefix(f.Data, []byte("# ")) {
				t.Error("does not begin with a comment")
			}
		})
	}
}

// TestTogether: the directory is a set too, so no two files share a name.
func TestTogether(t *testing.T) {
	docs, err := policy.Parse(files(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range docs.Policies {
		names = append(names, p.Name)
	}
	want := []string{
		"allow-from-network", "audit-rollout", "database", "deny-all", "dns-local", "ingress-proxy", "same-labels",
		"web",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

// TestDefault: the built-in policy is what docs/POLICY.md ("Which policies are active") says of it.
func TestDefault(t *testing.T) {
	got, err := policy.Parse([]policy.File{{Name: "same-labels.yaml", Data: policies.Default}})
	if err != nil {
		t.Fatal(err)
	}
	same := policy.Rule{Peers: []policy.Peer{{SameLabels: &policy.SameLabels{All: true}}}}
	world := policy.Rule{Peers: []policy.Peer{
		{CIDR: &policy.CIDR{Prefix: netip.MustParsePrefix("0.0.0.0/0")}},
		{CIDR: &policy.CIDR{Prefix: netip.MustParsePrefix("::/0")}},
	}}
	names := policy.Rule{
		Peers: []policy.Peer{{Unlabelled: true}},
		Ports: []policy.Port{{Protocol: policy.UDP, From: 53, To: 53}, {Protocol: policy.TCP, From: 53, To: 53}},
	}
	want := policy.Documents{Policies: []policy.Policy{{
		Name:    "same-labels",
		Ingress: policy.Side{Isolates: true, Allow: []policy.Rule{same}},
		Egress:  policy.Side{Isolates: true, Allow: []policy.Rule{same, world, names}},
	}}}
	opts := cmp.Options{cmpopts.IgnoreTypes(policy.Position{}), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("default (-want +got):\n%s", diff)
	}
}
