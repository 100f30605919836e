package compiler_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
)

// maxDepth is NFT_JUMP_STACK_SIZE (linux/netfilter/nf_tables.h): the kernel refuses a table in which more chains
// than that can follow one another, also by goto and out of a map.
const maxDepth = 16

// With all that a table may have, its chains are not nested deeper than the kernel admits.
func TestChainsAreNotTooDeep(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`
apiVersion: thole/v1
kind: Policy
metadata: {name: enforced}
spec:
  selector: {}
  ingress: [{from: [{workloads: {}}, {unlabelled: true}, {cidr: 10.0.0.0/8}], ports: [80/tcp, 80/udp]}]
  egress: [{to: [{workloads: {}}, {unlabelled: true}, {cidr: 10.0.0.0/8}], ports: [80/tcp, 80/udp]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: audited}
spec:
  selector: {}
  enforcement: audit
  ingress: [{from: [{workloads: {}}], ports: [81/tcp]}]
  egress: [{to: [{workloads: {}}], ports: [81/tcp]}]
`)}})
	if err != nil {
		t.Fatal(err)
	}
	in := compiler.Input{
		Policies: docs.Policies,
		Workloads: []policy.Workload{
			{Name: "a", Kind: policy.KindRun, Labels: policy.Labels{"app": "a"},
				Cgroup: policy.Cgroup{Path: "a", ID: 10}},
			{Name: "b", Kind: policy.KindContainer, Labels: policy.Labels{"app": "b"},
				Cgroup: policy.Cgroup{Path: "docker/b", ID: 11},
				Own: []policy.Network{{Bridge: docker0, Port: "veth0",
					Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}}}},
		},
		Parents: []policy.Cgroup{{Path: "docker", ID: 12}},
		Bridges: []policy.Bridge{{Name: docker0, Networks: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}},
		Fleet:   &compiler.Fleet{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Queue: 5448},
		Remotes: []policy.Remote{{Labels: policy.Labels{"app": "c"}, Node: "n",
			Address: netip.MustParseAddr("10.0.0.9")}},
	}
	tooDeep(t, in)
	for n := range uint64(1000) { // what audit policies say of ports makes the longest lists
		c := reference.Random(rand.New(rand.NewPCG(n, 0)), 4)
		in.Policies = c.Policies
		in.Workloads, in.Unlabelled = withContainers(c)
		tooDeep(t, in)
		if t.Failed() {
			t.Fatalf("%s", c)
		}
	}
}

// tooDeep fails the test if the kernel would refuse the table for its depth.
func tooDeep(t *testing.T, in compiler.Input) {
	t.Helper()
	table := compile(t, in).Table
	deepest := map[string][]string{}
	for _, c := range table.Chains {
		if path := deepestFrom(&table, c.Name, deepest); c.Hook != ruleset.NoHook && len(path) > maxDepth {
			t.Errorf("%d chains: %v", len(path), path)
		}
	}
}

// deepestFrom returns the longest list of chains that can follow one another.
func deepestFrom(t *ruleset.Table, name string, known map[string][]string) []string {
	if path, ok := known[name]; ok {
		return path
	}
	var best []string
	follow := func(v ruleset.Verdict) {
		if v.Chain == "" {
			return
		}
		if path := deepestFrom(t, v.Chain, known); len(path) > len(best) {
			best = path
		}
	}
	for _, c := range t.Chains {
		if c.Name != name {
			continue
		}
		for _, r := range c.Rules {
			for _, s := range r.Statements {
				switch s := s.(type) {
				case ruleset.Verdict:
					follow(s)
				case ruleset.ByMap:
					for _, set := range t.Sets {
						if set.Name == s.Map {
							for _, e := range set.Elements {
								follow(e.Verdict)
							}
						}
					}
				}
			}
		}
	}
	known[name] = append([]string{name}, best...)
	return known[name]
}
