package mutants

import (
	"slices"
	"strings"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
)

// A Mutant is a table that does not do what it should in a situation.
type Mutant struct {
	Name    string
	Ignores reference.Situation
	Change  func(*ruleset.Table)  // of the compiled table; nil: none
	Input   func(*compiler.Input) // of what it is compiled of; nil: none

	// Raw: only a raw socket shows it (internal/attack, TestRawSegmentOfLivingConnection).
	Raw bool
}

// Compile returns the mutant's table of an input; the zero Mutant is the right one.
func (m Mutant) Compile(in compiler.Input) (*ruleset.Table, error) {
	if m.Input != nil {
		m.Input(&in)
	}
	result, err := compiler.Compile(in)
	if err == nil && m.Change != nil {
		m.Change(&result.Table)
	}
	return &result.Table, err
}

// All has a table for each situation. The names of chains are those of docs/ARCHITECTURE.md.
var All = []Mutant{
	{
		Name: "no answer is judged: the listener that was found decides", Ignores: reference.SharedListener,
		Change: accepting("answer_here"),
	},
	{
		Name: "no answer is judged: nobody that was found decides", Ignores: reference.BoundListener,
		Change: accepting("answer_here"),
	},
	{
		Name: "data for a socket that is not found stays in the window", Ignores: reference.BoundListener,
		Change: leavingOutRules("input_data_nobody", "bound to a device"),
	},
	{
		Name: "a listener behind a TIME_WAIT is not looked for", Ignores: reference.HiddenListener,
		Change: leavingOutRules("input_syn_nobody", "hides the listener"),
	},
	{
		Name: "whoever sends on a decided connection of TCP", Ignores: reference.SecondSender,
		Change: accepting("output_same"), Raw: true,
	},
	{
		Name: "whoever sends on a decided flow of UDP to the outside", Ignores: reference.SecondSender,
		Change: accepting("leaves_same"),
	},
	{
		Name: "whoever answers over UDP", Ignores: reference.SecondAnswerer,
		Change: accepting("output_reply_udp"),
	},
	{
		Name: "an answer is for the present owner of the port", Ignores: reference.PortChanged,
		Change: accepting("input_reply"),
	},
	{
		Name: "unlabelled processes say which workload they are", Ignores: reference.PacketMark,
		Change: leavingOutRules("output_by_nobody", "nobody but us"),
	},
	{
		Name: "the priority of a SYN says who listens", Ignores: reference.PacketPriority,
		Change: leavingOutStatement("input_syn_nobody", ruleset.SetBits{Target: ruleset.MetaPriority}),
	},
	{
		Name: "marks of other programs are numbers of workloads", Ignores: reference.ConntrackMark,
		Change: leavingOutRules("input_reply_nobody", "an unlabelled process sent it"),
	},
	{
		Name: "the address that is reached outside counts alone", Ignores: reference.CalledElsewhere,
		Change: leavingOutRules("leave", "NAT changed"),
	},
	{
		Name: "the receiver on this node counts alone", Ignores: reference.CalledElsewhere,
		Change: leavingOutRules("ask", "called another address"),
	},
	{
		Name: "the packet around another one is its sender's", Ignores: reference.Tunnelled,
		Change: leavingOutRules("output_leaves", "around a packet"),
	},
	{
		Name: "marks of other programs are denied answers", Ignores: reference.ConntrackMark,
		Change: leavingOutRules("answer_unlabelled", "another program's"),
	},
	{Name: "whoever owns a shared network counts alone", Ignores: reference.SharedNetwork, Input: sharingNothing},
}

// sharingNothing has nobody share a network namespace.
func sharingNothing(in *compiler.Input) {
	in.Workloads, in.Unlabelled = slices.Clone(in.Workloads), slices.Clone(in.Unlabelled)
	for i := range in.Workloads {
		in.Workloads[i].Sharing = policy.Sharing{}
	}
	for i := range in.Unlabelled {
		in.Unlabelled[i].Sharing = policy.Sharing{}
	}
}

// accepting returns a change that has a chain accept everything.
func accepting(chain string) func(*ruleset.Table) {
	return func(t *ruleset.Table) {
		accept := ruleset.Verdict{Kind: ruleset.Accept}
		chainOf(t, chain).Rules = []ruleset.Rule{{Statements: []ruleset.Statement{accept}}}
	}
}

// leavingOutRules returns a change that leaves out the rules whose comment contains a text.
func leavingOutRules(chain, comment string) func(*ruleset.Table) {
	return leavingOut(chain, func(r ruleset.Rule) bool { return strings.Contains(r.Comment, comment) })
}

// leavingOutStatement returns a change that leaves out the rules that are one statement alone.
func leavingOutStatement(chain string, s ruleset.Statement) func(*ruleset.Table) {
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
