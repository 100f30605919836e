package compiler_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"thole/compiler"
	"thole/compiler/mutants"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/simulator"
)

// caughtWithin is how many random cases a mutant of a judge may pass unnoticed. Most are caught within the first
// thousand; the rarest was caught by the 12,000th.
const caughtWithin = 100_000

// marks are the situations that make no difference: to leave them out changes no verdict, so only together with a table
// that heeds them a judge that leaves them out can be told from one that does not.
var marks = []reference.Situation{reference.PacketMark, reference.PacketPriority, reference.ConntrackMark}

// TestMutantsOfEvaluatorAndSimulator leaves out one situation at a time, first in what the evaluator judges, then in
// what the simulator runs. The other judge disagrees.
func TestMutantsOfEvaluatorAndSimulator(t *testing.T) {
	for _, s := range slices.Concat(reference.FlowSituations, reference.ConnectionSituations) {
		if slices.Contains(marks, s) {
			continue
		}
		t.Run("the evaluator ignores "+string(s), func(t *testing.T) {
			caught(t, func(j judges) bool { return j.disagree(without(s), nothing) }, mutants.Mutant{})
		})
		if s == reference.Tunnelled || s == reference.SharedNetwork { // see marks; packets do not show who shares it
			continue
		}
		t.Run("the simulator ignores "+string(s), func(t *testing.T) {
			caught(t, func(j judges) bool { return j.disagree(nothing, without(s)) }, mutants.Mutant{})
		})
	}
}

// TestMutantsOfTheTable changes the table so that it ignores, or heeds, what it should not. The evaluator disagrees;
// and where the situation makes no difference with the right table, so does a simulator that ignores it.
func TestMutantsOfTheTable(t *testing.T) {
	for _, m := range mutants.All {
		t.Run(m.Name, func(t *testing.T) {
			caught(t, func(j judges) bool { return j.disagree(nothing, nothing) }, m)
		})
		if !slices.Contains(marks, m.Ignores) && m.Ignores != reference.Tunnelled {
			continue
		}
		t.Run(m.Name+", and the simulator ignores "+string(m.Ignores), func(t *testing.T) {
			caught(t, func(j judges) bool { return j.simulatorsDiffer(without(m.Ignores)) }, m)
		})
	}
}

// A blindness changes a flow or a connection into what a judge sees that ignores a situation.
type blindness struct{ ignores reference.Situation }

var nothing = blindness{}

func without(s reference.Situation) blindness { return blindness{s} }

// judges are the evaluator and the simulator with one case, and the flow or the connection that they judge.
type judges struct {
	reference.Case
	host
	sim        *simulator.Simulator
	flow       *reference.Flow
	connection reference.Connection
}

// disagree reports whether the two judge differently, each with a blindness.
func (j judges) disagree(evaluator, simulator blindness) bool {
	if j.flow != nil {
		return !slices.Equal(reference.JudgeFlow(j.Set, j.flow.Without(evaluator.ignores)), j.run(simulator))
	}
	want := reference.Judge(j.Set, j.connection.Without(evaluator.ignores))
	if j.connection.Has(reference.Tunnelled) && evaluator.ignores == reference.Tunnelled {
		want.Allowed = want.Allowed && reference.Judge(j.Set, around(j.connection)).Allowed
	}
	return want.Allowed != j.run(simulator)[0]
}

// around is the packet around a packet of c, as a connection of its sender's.
func around(c reference.Connection) reference.Connection {
	to := reference.Endpoint{Address: c.Tunnel}
	return reference.Connection{From: c.From, To: to, Protocol: ruleset.ProtoUDP, Port: tunnelPort, IPv6: c.IPv6}
}

// simulatorsDiffer reports whether the simulator says otherwise without a situation.
func (j judges) simulatorsDiffer(b blindness) bool { return !slices.Equal(j.run(nothing), j.run(b)) }

// run says which packets pass, or whether the first one of a connection does.
func (j judges) run(b blindness) []bool {
	if j.flow != nil {
		return j.simulateFlow(j.sim, j.flow.Without(b.ignores))
	}
	return []bool{j.simulate(j.sim, j.connection.Without(b.ignores)).Allowed}
}

// caught looks for a flow or a connection in which found holds, with a table that was changed.
func caught(t *testing.T, found func(judges) bool, m mutants.Mutant) {
	t.Helper()
	from := *seed
	if from == 0 {
		from = rand.Uint64()
	}
	for tried, n := 0, uint64(0); tried < caughtWithin; n++ {
		c := reference.Random(rand.New(rand.NewPCG(from, n)), 1+int(n%4))
		j := judges{Case: c, host: hostOf(c), sim: simulator.New(tableOf(t, c, m))}
		for i := range c.Flows {
			j.flow = &c.Flows[i]
			if tried++; found(j) {
				t.Logf("caught by case %d", tried)
				return
			}
		}
		j.flow = nil
		for _, j.connection = range c.Connections {
			if elsewhere(c, j.connection) {
				continue
			}
			if tried++; found(j) {
				t.Logf("caught by case %d", tried)
				return
			}
		}
	}
	t.Errorf("no difference in %d cases; -seed %d", caughtWithin, from)
}

// tableOf is a mutant's table of a case.
func tableOf(t *testing.T, c reference.Case, m mutants.Mutant) *ruleset.Table {
	t.Helper()
	workloads, unlabelled := withContainers(c)
	table, err := m.Compile(compiler.Input{
		Policies: c.Policies, Workloads: workloads, Unlabelled: unlabelled,
		Bridges: bridges, Options: compiler.Options{Epoch: 7},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}
