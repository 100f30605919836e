package policies_test

import (
	"bytes"
	"io/fs"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler"
	"thole/policies"
)

// files reads all examples.
func files(t *testing.T) []compiler.File {
	t.Helper()
	names, err := fs.Glob(policies.Files, "*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no files (%v)", err)
	}
	var all []compiler.File
	for _, name := range names {
		data, err := fs.ReadFile(policies.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, compiler.File{Name: name, Data: data})
	}
	return all
}

// TestFiles: each file is a set by itself and says first what it does.
func TestFiles(t *testing.T) {
	for _, f := range files(t) {
		t.Run(f.Name, func(t *testing.T) {
			docs, err := compiler.Parse([]compiler.File{f})
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
	docs, err := compiler.Parse(files(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range docs.Policies {
		names = append(names, p.Name)
	}
	want := []string{
		"allow-from-network", "audit-rollout", "database", "deny-all", "dns-local", "ingress-proxy", "same-labels", "web",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

// TestDefault: the built-in policy is what docs/POLICY.md ("Which policies are active") says of it.
func TestDefault(t *testing.T) {
	got, err := compiler.Parse([]compiler.File{{Name: "same-labels.yaml", Data: policies.Default}})
	if err != nil {
		t.Fatal(err)
	}
	same := compiler.Rule{Peers: []compiler.Peer{{SameLabels: &compiler.SameLabels{All: true}}}}
	world := compiler.Rule{Peers: []compiler.Peer{
		{CIDR: &compiler.CIDR{Prefix: netip.MustParsePrefix("0.0.0.0/0")}},
		{CIDR: &compiler.CIDR{Prefix: netip.MustParsePrefix("::/0")}},
	}}
	names := compiler.Rule{
		Peers: []compiler.Peer{{Unlabelled: true}},
		Ports: []compiler.Port{{Protocol: compiler.UDP, From: 53, To: 53}, {Protocol: compiler.TCP, From: 53, To: 53}},
	}
	want := compiler.Documents{Policies: []compiler.Policy{{
		Name:    "same-labels",
		Ingress: compiler.Side{Isolates: true, Allow: []compiler.Rule{same}},
		Egress:  compiler.Side{Isolates: true, Allow: []compiler.Rule{same, world, names}},
	}}}
	opts := cmp.Options{cmpopts.IgnoreTypes(compiler.Position{}), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("default (-want +got):\n%s", diff)
	}
}
