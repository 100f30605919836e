package ruleset_test

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/ruleset"
	"thole/ruleset/rulesettest"
)

// small is a table that the tests change.
func small() *ruleset.Table {
	class := func(n uint64, path string, mark uint32, comment string) ruleset.Element {
		return ruleset.Element{Key: []ruleset.Value{ruleset.CgroupValue(path, n)}, Number: mark, Comment: comment}
	}
	lookup := ruleset.SetByMap{Target: ruleset.CtMark, Key: []ruleset.Expr{{Field: ruleset.SocketCgroup, Level: 2}},
		Map: "class"}
	rule := func(ss ...ruleset.Statement) ruleset.Rule { return ruleset.Rule{Statements: ss} }
	return &ruleset.Table{
		Name:     "thole",
		Counters: []string{"denied"},
		Sets: []ruleset.Set{{
			Name: "class", Key: []ruleset.Type{ruleset.CgroupV2}, Data: ruleset.Mark,
			Elements: []ruleset.Element{class(7, "thole/a", 0x10, "web"), class(8, "thole/b", 0x11, "db")},
		}},
		Chains: []ruleset.Chain{
			{Name: "dead", Rules: []ruleset.Rule{rule(ruleset.Count{Counter: "denied"}),
				rule(ruleset.Verdict{Kind: ruleset.Drop})}},
			{Name: "out", Hook: ruleset.Output,
				Rules: []ruleset.Rule{rule(lookup), rule(ruleset.Verdict{Kind: ruleset.Goto, Chain: "dead"})}},
		},
	}
}

func TestDiff(t *testing.T) {
	accept := ruleset.Rule{Statements: []ruleset.Statement{ruleset.Verdict{Kind: ruleset.Accept}}}
	for _, test := range []struct {
		name   string
		change func(t *ruleset.Table) *ruleset.Table
		text   string
		steps  []string
	}{
		{
			"nothing", func(t *ruleset.Table) *ruleset.Table {
				t.Chains[0].Comment = "x"
				t.Sets[0].Elements[0].Comment = "x"
				return t
			},
			"", nil,
		},
		{"an element", func(t *ruleset.Table) *ruleset.Table {
			t.Sets[0].Elements[0].Number = 0x12
			return t
		}, `- map class: "thole/a" : 0x00000010 # web
+ map class: "thole/a" : 0x00000012 # web
`, []string{"DeleteElements", "AddElements"}},
		{"a rule", func(t *ruleset.Table) *ruleset.Table {
			t.Chains[0].Rules = append(t.Chains[0].Rules, accept)
			return t
		}, "+ chain dead: accept\n", []string{"FlushChain", "AddRules"}},
		{
			"a hook", func(t *ruleset.Table) *ruleset.Table { t.Chains[1].Priority = -5; return t },
			`- chain out { type filter hook output priority filter; policy accept; }
+ chain out { type filter hook output priority filter - 5; policy accept; }
`,
			[]string{"FlushChain", "DeleteChain", "AddChain", "AddRules"},
		},
		{
			"a set's type", func(t *ruleset.Table) *ruleset.Table { t.Sets[0].Data = ruleset.ClassID; return t },
			`- map class { type cgroupsv2 : mark }
+ map class { type cgroupsv2 : classid }
- map class: "thole/a" : 0x00000010 # web
- map class: "thole/b" : 0x00000011 # db
+ map class: "thole/a" : 0:10 # web
+ map class: "thole/b" : 0:11 # db
`,
			[]string{"FlushChain", "DeleteSet", "AddSet", "AddElements", "AddRules"},
		},
		{
			"all objects", func(*ruleset.Table) *ruleset.Table {
				return &ruleset.Table{Name: "thole", Counters: []string{"new"}}
			},
			`- counter denied
+ counter new
- map class { type cgroupsv2 : mark }
- map class: "thole/a" : 0x00000010 # web
- map class: "thole/b" : 0x00000011 # db
- chain dead
- chain dead: counter name "denied"
- chain dead: drop
- chain out { type filter hook output priority filter; policy accept; }
- chain out: ct mark set socket cgroupv2 level 2 map @class
- chain out: goto dead
`,
			[]string{"FlushChain", "FlushChain", "DeleteSet", "DeleteChain", "DeleteChain", "DeleteCounter",
				"AddCounter"},
		},
		{"the table", func(*ruleset.Table) *ruleset.Table { return nil }, `- table inet thole
- counter denied
- map class { type cgroupsv2 : mark }
- map class: "thole/a" : 0x00000010 # web
- map class: "thole/b" : 0x00000011 # db
- chain dead
- chain dead: counter name "denied"
- chain dead: drop
- chain out { type filter hook output priority filter; policy accept; }
- chain out: ct mark set socket cgroupv2 level 2 map @class
- chain out: goto dead
`, []string{"DeleteTable"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			change := ruleset.Diff(small(), test.change(small()))
			if diff := cmp.Diff(test.text, change.String()); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.steps, stepNames(change)); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDiffForeign finds a foreign thing in what is loaded.
func TestDiffForeign(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *ruleset.Table)
		text  string
		steps []string
	}{
		{
			"in the table", func(t *ruleset.Table) { t.Foreign = []string{"flags 0x1"} }, "- foreign: flags 0x1\n",
			[]string{"DeleteTable", "AddTable", "AddCounter", "AddChain", "AddChain", "AddSet", "AddElements",
				"AddRules", "AddRules"},
		},
		{"a rule", func(t *ruleset.Table) {
			t.Chains[0].Rules[0].Statements = []ruleset.Statement{ruleset.Foreign{Description: "quota\n"}}
		}, "- chain dead: (foreign: quota\\n)\n+ chain dead: counter name \"denied\"\n",
			[]string{"FlushChain", "AddRules"}},
		{"a chain", func(t *ruleset.Table) { t.Chains[1].Foreign = "policy 0" }, `- chain out { foreign: policy 0 }
+ chain out { type filter hook output priority filter; policy accept; }
`, []string{"FlushChain", "DeleteChain", "AddChain", "AddRules"}},
		{"a set", func(t *ruleset.Table) {
			t.Sets[0].Foreign, t.Sets[0].Elements = "flags 0x10", nil
		}, `- map class { foreign: flags 0x10 }
+ map class { type cgroupsv2 : mark }
+ map class: "thole/a" : 0x00000010 # web
+ map class: "thole/b" : 0x00000011 # db
`, []string{"FlushChain", "DeleteSet", "AddSet", "AddElements", "AddRules"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			have := small()
			test.spoil(have)
			change := ruleset.Diff(have, small())
			if diff := cmp.Diff(test.text, change.String()); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.steps, stepNames(change)); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

func stepNames(c ruleset.Change) []string {
	var names []string
	for _, s := range c.Steps {
		names = append(names, stepName(s))
	}
	return names
}

func stepName(s ruleset.Step) string {
	switch s.(type) {
	case ruleset.AddTable:
		return "AddTable"
	case ruleset.DeleteTable:
		return "DeleteTable"
	case ruleset.AddCounter:
		return "AddCounter"
	case ruleset.DeleteCounter:
		return "DeleteCounter"
	case ruleset.AddSet:
		return "AddSet"
	case ruleset.DeleteSet:
		return "DeleteSet"
	case ruleset.AddElements:
		return "AddElements"
	case ruleset.DeleteElements:
		return "DeleteElements"
	case ruleset.AddChain:
		return "AddChain"
	case ruleset.DeleteChain:
		return "DeleteChain"
	case ruleset.FlushChain:
		return "FlushChain"
	default:
		return "AddRules"
	}
}

// TestDiffIsPure takes differences of random tables: none of a table to itself, and
// none that changes its arguments.
func TestDiffIsPure(t *testing.T) {
	for seed := range uint64(200) {
		random := func(n uint64) ruleset.Table {
			return rulesettest.Random(rand.New(rand.NewPCG(seed, n)), someCgroups)
		}
		a, b := random(0), random(1)
		if c := ruleset.Diff(&a, &a); !c.Empty() {
			t.Errorf("seed %d: a table differs from itself:\n%s", seed, c)
		}
		c := ruleset.Diff(&a, &b)
		if made, err := rulesettest.Apply(&a, c); err != nil || !ruleset.Same(*made, b) {
			t.Errorf("seed %d: the steps make another table, or fail: %v", seed, err)
		}
		if c.Empty() != ruleset.Same(a, b) || c.Empty() != (c.String() == "") {
			t.Errorf("seed %d: empty %v, same %v, text %q", seed, c.Empty(), ruleset.Same(a, b), c)
		}
		if !reflect.DeepEqual(random(0), a) || !reflect.DeepEqual(random(1), b) {
			t.Errorf("seed %d: Diff changed its arguments", seed)
		}
	}
}
