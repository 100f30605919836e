package compiler_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"thole/compiler"
	"thole/compiler/reference"
	"thole/ruleset"
)

// caughtWithin is how many random flows a mutant of a judge may pass unnoticed. Most are caught within the first hundred.
const caughtWithin = 20_000

// marks are the situations that make no difference: to leave them out changes no verdict, so only together with a table that
// heeds them a judge that leaves them out can be told from one that does not.
var marks = []reference.Situation{reference.PacketMark, reference.PacketPriority, reference.ConntrackMark}

// TestMutantsOfEvaluatorAndSimulator leaves out one situation at a time, first in what the evaluator judges, then in what the
// simulator runs. The other judge disagrees.
func TestMutantsOfEvaluatorAndSimulator(t *testing.T) {
	for _, s := range reference.FlowSituations {
		if slices.Contains(marks, s) {
			continue
		}
		t.Run("the evaluator ignores "+string(s), func(t *testing.T) {
			caught(t, func(c reference.Case, f reference.Flow, run simulation) bool {
				return !slices.Equal(reference.JudgeFlow(c.Policies, f.Without(s)), run(f))
			}, nil)
		})
		t.Run("the simulator ignores "+string(s), func(t *testing.T) {
			caught(t, func(c reference.Case, f reference.Flow, run simulation) bool {
				return !slices.Equal(reference.JudgeFlow(c.Policies, f), run(f.Without(s)))
			}, nil)
		})
	}
}

// TestMutantsOfTheTable changes the table so that it ignores, or heeds, what it should not. The evaluator disagrees.
func TestMutantsOfTheTable(t *testing.T) {
	for _, m := range tableMutants {
		t.Run(m.name, func(t *testing.T) {
			caught(t, func(c reference.Case, f reference.Flow, run simulation) bool {
				return !slices.Equal(reference.JudgeFlow(c.Policies, f), run(f))
			}, m.change)
		})
		if !slices.Contains(marks, m.ignores) {
			continue
		}
		t.Run(m.name+", and the simulator ignores "+string(m.ignores), func(t *testing.T) {
			caught(t, func(_ reference.Case, f reference.Flow, run simulation) bool {
				return !slices.Equal(run(f.Without(m.ignores)), run(f))
			}, m.change)
		})
	}
}

// A simulation says which packets of a flow a table lets pass.
type simulation func(reference.Flow) []bool

// caught looks for a flow in which differs holds, with a table that was changed.
func caught(t *testing.T, differs func(reference.Case, reference.Flow, simulation) bool, change func(*ruleset.Table)) {
	t.Helper()
	from := *seed
	if from == 0 {
		from = rand.Uint64()
	}
	for flows, n := 0, uint64(0); flows < caughtWithin; n++ {
		c := reference.Random(rand.New(rand.NewPCG(from, n)), 1+int(n%4))
		run := simulated(t, c, change)
		for _, f := range c.Flows {
			if flows++; differs(c, f, run) {
				t.Logf("caught by flow %d", flows)
				return
			}
		}
	}
	t.Errorf("no difference in %d flows; -seed %d", caughtWithin, from)
}

func simulated(t *testing.T, c reference.Case, change func(*ruleset.Table)) simulation {
	t.Helper()
	workloads, unlabelled := withContainers(c)
	result, err := compiler.Compile(compiler.Input{
		Policies: c.Policies, Workloads: workloads, Unlabelled: unlabelled,
		Bridges: []compiler.Bridge{{Name: docker0}}, Options: compiler.Options{Epoch: 7},
	})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&result.Table)
	}
	sim, host := ruleset.NewSimulator(&result.Table), hostOf(c)
	return func(f reference.Flow) []bool { return host.simulateFlow(sim, f) }
}

// A tableMutant is a table that does not do what it should in a situation.
type tableMutant struct {
	name    string
	ignores reference.Situation
	change  func(*ruleset.Table)
}

// Each situation has a table that ignores it. The names of chains are those of docs/ARCHITECTURE.md.
var tableMutants = []tableMutant{
	{"no answer is judged: the listener that was found decides", reference.SharedListener, accepting("answer_here")},
	{"data for a socket that is not found stays in the window", reference.BoundListener, without("input_data_nobody", "bound to a device")},
	{"a listener behind a TIME_WAIT is not looked for", reference.HiddenListener, without("input_syn_nobody", "hides the listener")},
	{"whoever sends on a decided connection of TCP", reference.SecondSender, accepting("output_same")},
	{"whoever sends on a decided flow of UDP to the outside", reference.SecondSender, accepting("leaves_same")},
	{"whoever answers over UDP", reference.SecondAnswerer, accepting("output_reply_udp")},
	{"an answer is for the present owner of the port", reference.PortChanged, accepting("input_reply")},
	{"unlabelled processes say which workload they are", reference.PacketMark, without("output_by_nobody", "nobody but us")},
	{"the priority of a SYN says who listens", reference.PacketPriority, withoutRule("input_syn_nobody", ruleset.SetBits{Target: ruleset.MetaPriority})},
	{"marks of other programs are numbers of workloads", reference.ConntrackMark, without("input_reply_nobody", "an unlabelled process sent it")},
	{"marks of other programs are denied answers", reference.ConntrackMark, without("answer_unlabelled", "another program's")},
}

// accepting returns a change that has a chain accept everything.
func accepting(chain string) func(*ruleset.Table) {
	return func(t *ruleset.Table) {
		chainOf(t, chain).Rules = []ruleset.Rule{{Statements: []ruleset.Statement{ruleset.Verdict{Kind: ruleset.Accept}}}}
	}
}

// without returns a change that leaves out the rules whose comment contains a text.
func without(chain, comment string) func(*ruleset.Table) {
	return leavingOut(chain, func(r ruleset.Rule) bool { return strings.Contains(r.Comment, comment) })
}

// withoutRule returns a change that leaves out the rules that are one statement alone.
func withoutRule(chain string, s ruleset.Statement) func(*ruleset.Table) {
	return leavingOut(chain, func(r ruleset.Rule) bool { return len(r.Statements) == 1 && r.Statements[0] == s })
}

func leavingOut(chain string, is func(ruleset.Rule) bool) func(*ruleset.Table) {
	return func(t *ruleset.Table) {
		c := chainOf(t, chain)
		before := len(c.Rules)
		if c.Rules = slices.DeleteFunc(c.Rules, is); len(c.Rules) == before {
			panic("chain " + chain + " has no such rule")
		}
	}
}

func chainOf(t *ruleset.Table, name string) *ruleset.Chain {
	i := slices.IndexFunc(t.Chains, func(c ruleset.Chain) bool { return c.Name == name })
	if i < 0 {
		panic("there is no chain " + name)
	}
	return &t.Chains[i]
}
