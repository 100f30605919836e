package e2e

import (
	"net/netip"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/policies"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// The table of a node in a fleet is read back as it was written.
func TestFleetTableIsReadBack(t *testing.T) {
	h := nstest.New(t)
	docs, err := policy.Parse([]policy.File{{Name: "same-labels.yaml", Data: policies.Default}})
	must(t, err)
	cgroup := policy.Cgroup{Path: "thole.slice/web", ID: h.MkCgroup("thole.slice/web")}
	result, err := compiler.Compile(compiler.Input{
		Policies: docs.Policies,
		Workloads: []policy.Workload{{Name: "web", Kind: policy.KindRun, Labels: policy.Labels{"app": "web"},
			Cgroup: cgroup}},
		Fleet: &compiler.Fleet{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("fd00::/8")}, Queue: 5448},
		Remotes: []policy.Remote{{Labels: policy.Labels{"app": "web"}, Address: netip.MustParseAddr("10.0.0.2")}},
	})
	must(t, err)
	var loaded *ruleset.Table
	must(t, h.Do(func() {
		conn, openErr := kernel.Open(kernel.Options{})
		must(t, openErr)
		defer conn.Close()
		must(t, conn.Apply(ruleset.Diff(nil, &result.Table)))
		loaded, err = conn.Read("thole")
	}))
	must(t, err)
	if change := ruleset.Diff(loaded, &result.Table); !change.Empty() {
		t.Errorf("what was read differs from what was written:\n%s", change)
	}
}
