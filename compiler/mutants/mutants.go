package mutants

import (
	"slices"
	"strings"

	"thole/compiler/reference"
	"thole/ruleset"
)

// A Mutant is a table that does not do what it should in a situation.
type Mutant struct {
	Name    string
	Ignores reference.Situation
	Change  func(*ruleset.Table)

	// Rare: real sockets show it seldom, because it takes raw ones, a socket in TIME_WAIT, data before an answer that
	// is denied, or two addresses of which policies say different things.
	Rare bool
}

// All has a table for each situation. The names of chains are those of docs/ARCHITECTURE.md.
var All = []Mutant{
	{
		"no answer is judged: the listener that was found decides", reference.SharedListener,
		accepting("answer_here"), false,
	},
	{
		"no answer is judged: nobody that was found decides", reference.BoundListener,
		accepting("answer_here"), false,
	},
	{
		"data for a socket that is not found stays in the window", reference.BoundListener,
		leavingOutRules("input_data_nobody", "bound to a device"), true,
	},
	{
		"a listener behind a TIME_WAIT is not looked for", reference.HiddenListener,
		leavingOutRules("input_syn_nobody", "hides the listener"), true,
	},
	{"whoever sends on a decided connection of TCP", reference.SecondSender, accepting("output_same"), true},
	{
		"whoever sends on a decided flow of UDP to the outside", reference.SecondSender,
		accepting("leaves_same"), false,
	},
	{"whoever answers over UDP", reference.SecondAnswerer, accepting("output_reply_udp"), false},
	{"an answer is for the present owner of the port", reference.PortChanged, accepting("input_reply"), false},
	{
		"unlabelled processes say which workload they are", reference.PacketMark,
		leavingOutRules("output_by_nobody", "nobody but us"), false,
	},
	{
		"the priority of a SYN says who listens", reference.PacketPriority,
		leavingOutStatement("input_syn_nobody", ruleset.SetBits{Target: ruleset.MetaPriority}), false,
	},
	{
		"marks of other programs are numbers of workloads", reference.ConntrackMark,
		leavingOutRules("input_reply_nobody", "an unlabelled process sent it"), false,
	},
	{
		"the address that is reached outside counts alone", reference.CalledElsewhere,
		leavingOutRules("leave", "NAT changed"), true,
	},
	{
		"the receiver on this node counts alone", reference.CalledElsewhere,
		leavingOutRules("ask", "called another address"), false,
	},
	{
		"the packet around another one is its sender's", reference.Tunnelled,
		leavingOutRules("output_leaves", "around a packet"), false,
	},
	{
		"marks of other programs are denied answers", reference.ConntrackMark,
		leavingOutRules("answer_unlabelled", "another program's"), false,
	},
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
