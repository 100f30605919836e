package ruleset_test

import (
	"flag"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/ruleset"
	"thole/ruleset/rulesettest"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	file = "testdata/" + file
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

var someCgroups = []rulesettest.Cgroup{{Path: "thole/a", ID: 101}, {Path: "thole/b", ID: 102}}

func everything() ruleset.Table {
	return rulesettest.Everything(someCgroups[0], someCgroups[1])
}

func TestText(t *testing.T) {
	golden(t, "everything.nft", everything().Text())
}

// TestTextIsCanonical prints tables in another order.
func TestTextIsCanonical(t *testing.T) {
	for seed := range uint64(200) {
		table := rulesettest.Random(rand.New(rand.NewPCG(seed, 0)), someCgroups)
		before := table.Text()
		shuffle := rand.New(rand.NewPCG(seed, 1))
		shuffle.Shuffle(len(table.Counters), func(i, j int) {
			table.Counters[i], table.Counters[j] = table.Counters[j], table.Counters[i]
		})
		shuffle.Shuffle(len(table.Sets), func(i, j int) { table.Sets[i], table.Sets[j] = table.Sets[j], table.Sets[i] })
		shuffle.Shuffle(len(table.Chains), func(i, j int) {
			table.Chains[i], table.Chains[j] = table.Chains[j], table.Chains[i]
		})
		for _, s := range table.Sets {
			e := s.Elements
			shuffle.Shuffle(len(e), func(i, j int) { e[i], e[j] = e[j], e[i] })
		}
		if diff := cmp.Diff(before, table.Text()); diff != "" {
			t.Fatalf("seed %d: the order shows:\n%s", seed, diff)
		}
		table.Normalise()
		if diff := cmp.Diff(before, table.Text()); diff != "" {
			t.Fatalf("seed %d: Normalise shows:\n%s", seed, diff)
		}
	}
}

// TestHostileText checks that what users write cannot leave its place: each line of
// the script is one that is there without it, or one with a comment more.
func TestHostileText(t *testing.T) {
	for _, hostile := range []string{
		"\n}\ntable inet evil {", "\r\n accept", "\x00", "\x1b]0;title\a", "\u2028accept", "\u202e", "\v\f\u0085accept",
		"\xff\n",
		`"; accept; log prefix "`, "$x", "\\", `\"`, "*", "#",
	} {
		table := ruleset.Table{
			Name: "thole",
			Sets: []ruleset.Set{{
				Name: "s", Key: []ruleset.Type{ruleset.CgroupV2}, Comment: hostile,
				Elements: []ruleset.Element{
					{Key: []ruleset.Value{ruleset.CgroupValue(hostile+`"`, 7)}, Comment: hostile},
					{Key: []ruleset.Value{ruleset.CgroupValue("", 8)}, Comment: hostile},
				},
			}},
			Chains: []ruleset.Chain{{
				Name: "c", Comment: hostile,
				Rules: []ruleset.Rule{
					{Comment: hostile, Statements: []ruleset.Statement{ruleset.Log{Prefix: hostile}}},
					{Statements: []ruleset.Statement{ruleset.Foreign{Description: hostile}}},
				},
			}},
		}
		var code []string
		for line := range strings.Lines(table.Text()) {
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "log prefix") {
				code = append(code, line)
			}
		}
		want := []string{"table inet thole", "delete table inet thole", "table inet thole {", "set s {",
			"type cgroupsv2", "}", "chain c {", "}", "}"}
		if diff := cmp.Diff(want, code); diff != "" {
			t.Errorf("%q (-want +got):\n%s", hostile, diff)
		}
		for _, r := range table.Text() {
			if r < ' ' && r != '\n' && r != '\t' || r == '\u2028' || r == '\u202e' || r == '\u0085' {
				t.Errorf("%q: the text has %q", hostile, r)
			}
		}
		if prefix := prefixOf(table); strings.ContainsAny(prefix, "\"$\n") {
			t.Errorf("%q: the prefix is %q", hostile, prefix)
		}
	}
}

// prefixOf returns the log prefix of table's first rule, normalised.
func prefixOf(table ruleset.Table) string {
	table.Normalise()
	return table.Chains[0].Rules[0].Statements[0].(ruleset.Log).Prefix
}

func TestLongPrefix(t *testing.T) {
	for _, prefix := range []string{strings.Repeat("x", 127), strings.Repeat("x", 128), strings.Repeat("é", 64),
		strings.Repeat("x", 500)} {
		table := ruleset.Table{Chains: []ruleset.Chain{{Rules: []ruleset.Rule{{
			Statements: []ruleset.Statement{ruleset.Log{Prefix: prefix}},
		}}}}}
		if got := prefixOf(table); len(got) > 127 || len(got) < 126 || !strings.HasPrefix(prefix, got) {
			t.Errorf("%q became %q", prefix, got)
		}
	}
}
