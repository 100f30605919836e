package compiler_test

import (
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/simulator"
)

// What conntrack does not know, or does not track, reaches no workload over TCP or UDP, also if it carries nothing: a
// rule that reads conntrack's mark ends there, whatever it compares.
func TestUnknownToConntrackReachesNoWorkload(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`
apiVersion: thole/v1
kind: Policy
metadata: {name: open}
spec: {selector: {}, ingress: [{from: [{any: true}]}], egress: [{to: [{any: true}]}]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	const cgroup = 10
	web := policy.Workload{Name: "web", Kind: policy.KindRun, Labels: policy.Labels{"app": "web"},
		Cgroup: policy.Cgroup{Path: "web", ID: cgroup}}
	table := compile(t, compiler.Input{Policies: docs.Policies, Workloads: []policy.Workload{web}}).Table
	sim := simulator.New(&table)
	for _, state := range []uint32{ruleset.StateInvalid, ruleset.StateUntracked} {
		for _, proto := range []uint8{ruleset.ProtoTCP, ruleset.ProtoUDP} {
			for _, flags := range []uint8{0, ruleset.TCPSyn, ruleset.TCPSyn | ruleset.TCPAck, ruleset.TCPAck,
				ruleset.TCPRst, ruleset.TCPFin | ruleset.TCPAck} {
				for _, carries := range []bool{false, true} {
					p := packet(reference.Connection{Protocol: proto, Port: 80})
					p.State, p.Conntrack, p.Iif, p.Oif = state, nil, 2, 0
					p.TCPFlags, p.Carries = flags, carries
					p.Socket = &simulator.Socket{Cgroups: []uint64{cgroup}}
					if out := sim.Run(ruleset.Input, &p); out.Verdict != ruleset.Drop {
						t.Errorf("state %#x, protocol %d, flags %#x, carries %t: it reaches the workload", state, proto,
							flags, carries)
					}
				}
			}
		}
	}
}
