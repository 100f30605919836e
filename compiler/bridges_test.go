package compiler_test

import (
	"net/netip"
	"slices"
	"testing"

	"thole/compiler"
	"thole/ruleset"
)

// What comes from a container that is not known yet waits, where there is a queue. What
// is known, and what can be no container's address, never does.
func TestHold(t *testing.T) {
	const server, container = 7, 8
	workload := func(name string, cgroup uint64) compiler.Workload {
		return compiler.Workload{Name: name, Kind: compiler.KindContainer, Labels: compiler.Labels{"app": name}, Cgroup: compiler.Cgroup{Path: name, ID: cgroup}}
	}
	known := workload("known", container)
	known.Own = []compiler.Network{{Bridge: docker0, Port: "veth1", Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("fd00:17::2")}}}
	in := compiler.Input{
		Workloads: []compiler.Workload{workload("server", server), known},
		Bridges:   []compiler.Bridge{{Name: docker0, Networks: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00:17::/64")}}},
	}
	for _, hold := range []uint16{0, 5449} {
		in.Hold = hold
		table := compile(t, in).Table
		sim := ruleset.NewSimulator(&table)
		for _, tt := range []struct {
			name, bridge, from string
			want               ruleset.VerdictKind
			held               bool // if there is a queue
		}{
			{"known", docker0, "172.17.0.2", ruleset.Accept, false},
			{"known", docker0, "fd00:17::2", ruleset.Accept, false},
			{"not known yet", docker0, "172.17.0.3", ruleset.Drop, true},
			{"not known yet", docker0, "fd00:17::3", ruleset.Drop, true},
			{"no address of the bridge", docker0, "10.0.0.1", ruleset.Drop, false},
			{"link-local", docker0, "fe80::1", ruleset.Drop, false},
			{"not from the bridge", "eth0", "172.17.0.3", ruleset.Accept, false},
		} {
			to := "172.17.0.1"
			from := netip.MustParseAddr(tt.from)
			if from.Is6() {
				to = "fd00:17::1"
			}
			got := sim.Run(ruleset.Input, &ruleset.Packet{
				Direction: ruleset.DirOriginal, State: ruleset.StateNew, Conntrack: &ruleset.Conntrack{},
				Socket: &ruleset.Socket{Cgroups: []uint64{server}}, Iif: 5, IifName: tt.bridge,
				L4Proto: ruleset.ProtoUDP, From: from, To: netip.MustParseAddr(to), FromPort: 5000, Port: 53,
			})
			held := tt.held && hold != 0
			if got.Queued != held || slices.Contains(got.Counted, "held") != held || !held && got.Verdict != tt.want {
				t.Errorf("queue %d: %s (%s on %s): %+v", hold, tt.name, tt.from, tt.bridge, got)
			}
		}
	}
}
