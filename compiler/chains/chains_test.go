package chains_test

import (
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/chains"
	"thole/ruleset"
)

// inputs are all combinations of what chains depend on.
func inputs() []chains.Input {
	var list []chains.Input
	for bits := range 1 << 6 {
		in := chains.Input{Epoch: 7, Queue: 1, Bridges: bits&1 != 0, MemberNumbers: bits&2 != 0, Fleet: bits&4 != 0}
		if bits&8 != 0 {
			in.Levels = []chains.Level{{Depth: 3, Bound: true, Unknown: true}, {Depth: 2, Free: true},
				{Depth: 1, Bound: true}}
		}
		if bits&16 != 0 {
			for stage := chains.AtIngress; stage <= chains.AtCalled; stage++ {
				in.Audits = append(in.Audits, chains.Audit{Policy: "p", Stage: stage})
			}
			in.Audits = append(in.Audits, chains.Audit{Policy: "q", Stage: chains.AtEgress, Unsaid: true})
		}
		if bits&32 != 0 {
			in.Deny = chains.DenyReject
		}
		list = append(list, in)
	}
	return list
}

// Each chain that a rule or an element of a map leads to is there, once.
func TestChainsAreThere(t *testing.T) {
	for _, in := range inputs() {
		names := map[string]bool{}
		built := chains.Build(in)
		for _, c := range built {
			if names[c.Name] {
				t.Fatalf("%+v: two chains %s", in, c.Name)
			}
			names[c.Name] = true
		}
		wanted := []string{chains.Settle, chains.Refuse, chains.EgressUnsaid, chains.CalledAllowed,
			chains.CalledAllowedButAudited}
		for _, a := range in.Audits {
			wanted = append(wanted, a.Name())
		}
		for v := range statements[ruleset.Verdict](built) {
			wanted = append(wanted, v.Chain)
		}
		for _, name := range wanted {
			if name != "" && !names[name] {
				t.Errorf("%+v: there is no chain %s", in, name)
			}
		}
	}
}

// Each counter that a rule adds to is in the list, and each set that packets are added to is a dynamic one, with a
// bound.
func TestCountersAndDynamicSets(t *testing.T) {
	for _, in := range inputs() {
		built, counters := chains.Build(in), chains.Counters(in)
		for c := range statements[ruleset.Count](built) {
			if !slices.Contains(counters, c.Counter) {
				t.Errorf("%+v: counter %s is not in the list", in, c.Counter)
			}
		}
		bounded := map[string]bool{}
		for _, s := range chains.DynamicSets(in.Epoch, in.Fleet) {
			bounded[s.Name] = s.Size > 0 && s.Timeout > 0
		}
		for u := range statements[ruleset.Update](built) {
			if !bounded[u.Set] {
				t.Errorf("%+v: set %s has no bound", in, u.Set)
			}
		}
	}
}

// Each set and map that a rule looks up is declared, with as many parts of its key.
func TestSetsAreDeclared(t *testing.T) {
	for _, in := range inputs() {
		declared := slices.Concat(chains.ClassSets(), chains.BridgeSets(), chains.FleetSets(),
			chains.DynamicSets(in.Epoch, in.Fleet))
		for _, l := range in.Levels {
			declared = slices.Concat(declared, chains.WorkloadSets(l.Depth, 0), chains.FreeSets(l.Depth),
				chains.UnknownSets(l.Depth))
		}
		parts := map[string]int{}
		for _, s := range declared {
			parts[s.Name] = len(s.Key)
		}
		check := func(name string, key []ruleset.Expr) {
			if parts[name] != len(key) {
				t.Errorf("%+v: a rule looks up %d parts in set %s, which has %d", in, len(key), name, parts[name])
			}
		}
		built := chains.Build(in)
		for s := range statements[ruleset.InSet](built) {
			check(s.Set, s.Key)
		}
		for s := range statements[ruleset.ByMap](built) {
			check(s.Map, s.Key)
		}
		for s := range statements[ruleset.SetByMap](built) {
			check(s.Map, s.Key)
		}
		for s := range statements[ruleset.Update](built) {
			check(s.Set, s.Key)
		}
	}
}

// statements returns all statements of a type.
func statements[S ruleset.Statement](list []ruleset.Chain) iter.Seq[S] {
	return func(yield func(S) bool) {
		for _, c := range list {
			for _, r := range c.Rules {
				for _, s := range r.Statements {
					if s, ok := s.(S); ok && !yield(s) {
						return
					}
				}
			}
		}
	}
}

// EpochOf finds the epoch that the rules write.
func TestEpochOf(t *testing.T) {
	for _, in := range inputs() {
		for _, epoch := range []uint16{1, 2, 1000, 4094} {
			in.Epoch = epoch
			if got := chains.EpochOf(&ruleset.Table{Chains: chains.Build(in)}); got != epoch {
				t.Errorf("EpochOf = %d; want %d", got, epoch)
			}
		}
	}
	if got := chains.EpochOf(nil); got != 0 {
		t.Errorf("EpochOf(nil) = %d", got)
	}
}

// Ports have a short name, which is a part of a chain's name.
func TestPortsHaveNames(t *testing.T) {
	for _, tt := range []struct {
		ports chains.Ports
		want  string
	}{
		{chains.Ports{Protocol: ruleset.ProtoTCP, From: 80, To: 80}, "tcp80"},
		{chains.Ports{Protocol: ruleset.ProtoUDP, From: 5000, To: 5010}, "udp5000to5010"},
		{chains.Ports{Protocol: ruleset.ProtoSCTP, From: 0, To: 65535}, "sctp"},
		{chains.Ports{Protocol: ruleset.ProtoICMP, From: 8, To: 8}, "icmp8"},
		{chains.Ports{Protocol: ruleset.ProtoICMPv6, From: 0, To: 255}, "icmpv6"},
	} {
		if diff := cmp.Diff(tt.want, tt.ports.String()); diff != "" {
			t.Error(diff)
		}
	}
}
