package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func rule(ss ...Statement) Table {
	return Table{Chains: []Chain{{Name: "c", Rules: []Rule{{Statements: ss}}}}}
}

func field(f Field) Expr { return Expr{Field: f} }

func TestNormaliseStatements(t *testing.T) {
	ipv4 := Match{Left: field(MetaNFProto), Value: NFProtoIPv4}
	ipv6 := Match{Left: field(MetaNFProto), Value: NFProtoIPv6}
	tcp := Match{Left: field(MetaL4Proto), Value: ProtoTCP}
	for _, test := range []struct {
		name     string
		in, want []Statement
	}{
		{
			"a mask of all",
			[]Statement{Match{Left: field(CtMark), Op: Masked, Mask: 1<<32 - 1, Value: 5}},
			[]Statement{Match{Left: field(CtMark), Value: 5}},
		},
		{
			"not a mask of all",
			[]Statement{Match{Left: field(CtMark), Op: MaskedNot, Mask: 1<<32 - 1, Value: 5}},
			[]Statement{Match{Left: field(CtMark), Op: NotEqual, Value: 5}},
		},
		{
			"a mask of the field",
			[]Statement{Match{Left: Expr{Field: CtMark, Mask: 0xff}, Value: 5}},
			[]Statement{Match{Left: field(CtMark), Op: Masked, Mask: 0xff, Value: 5}},
		},
		{
			"any bit of a mark",
			[]Statement{Match{Left: field(CtMark), Op: Any, Value: 6}},
			[]Statement{Match{Left: field(CtMark), Op: MaskedNot, Mask: 6}},
		},
		{
			"any bit of a set",
			[]Statement{Match{Left: field(CtState), Op: MaskedNot, Mask: 6}},
			[]Statement{Match{Left: field(CtState), Op: Any, Value: 6}},
		},
		{
			"what is not used",
			[]Statement{Match{Left: Expr{Field: CtMark, Level: 3}, Op: NotEqual, Mask: 7, Value: 5, To: Word{1}}},
			[]Statement{Match{Left: field(CtMark), Op: NotEqual, Value: 5}},
		},
		{
			"a range of one",
			[]Statement{Match{Left: field(THDport), Op: InRange, From: WordOf(80), To: WordOf(80)}},
			[]Statement{Match{Left: field(THDport), Value: 80}},
		},
		{
			"a family",
			[]Statement{Match{Left: field(IPSaddr), Value: 1}, Match{Left: field(IPDaddr), Value: 2}},
			[]Statement{ipv4, Match{Left: field(IPSaddr), Value: 1}, Match{Left: field(IPDaddr), Value: 2}},
		},
		{
			"a family that is there",
			[]Statement{ipv6, InSet{Key: []Expr{field(IP6Saddr)}, Set: "s"}},
			[]Statement{ipv6, InSet{Key: []Expr{field(IP6Saddr)}, Set: "s"}},
		},
		{"a reset", []Statement{Count{"x"}, Reject{TCPReset}}, []Statement{Count{"x"}, tcp, Reject{TCPReset}}},
		{
			"a key's mask of all",
			[]Statement{ByMap{Key: []Expr{{Field: CtMark, Mask: 1<<32 - 1}}, Map: "m"}},
			[]Statement{ByMap{Key: []Expr{field(CtMark)}, Map: "m"}},
		},
		{
			"bits set and kept",
			[]Statement{SetBits{Target: CtMark, And: 0xff, Or: 0x101}},
			[]Statement{SetBits{Target: CtMark, And: 0xfe, Or: 0x101}},
		},
		{"a verdict's chain", []Statement{Verdict{Kind: Drop, Chain: "x"}}, []Statement{Verdict{Kind: Drop}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := rule(test.in...)
			table.Normalise()
			if diff := cmp.Diff(test.want, table.Chains[0].Rules[0].Statements); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestNormaliseKeepsInput normalises a table whose slices somebody else has, too.
func TestNormaliseKeepsInput(t *testing.T) {
	make := func() Table {
		return Table{
			Counters: []string{"b", "a"},
			Sets: []Set{{Name: "s", Key: []Type{Mark}, Elements: []Element{
				{Key: []Value{Number(2)}, Number: 9}, {Key: []Value{Number(1)}}, {Key: []Value{Number(2)}},
			}}, {Name: "r"}},
			Chains: rule(InSet{Key: []Expr{{Field: CtMark, Mask: 1<<32 - 1}}, Set: "s"}, Reject{}).Chains,
		}
	}
	table := make()
	copied := table
	copied.Normalise()
	if diff := cmp.Diff(make(), table); diff != "" {
		t.Errorf("the input changed:\n%s", diff)
	}
	if got := copied.Sets[1].Elements; len(got) != 2 || got[0].Key[0] != Number(1) {
		t.Errorf("elements are %v", got)
	}
}

func TestSame(t *testing.T) {
	set := func(v Value) Table {
		return Table{Sets: []Set{{Name: "s", Key: []Type{CgroupV2}, Elements: []Element{{Key: []Value{v}}}}}}
	}
	for _, test := range []struct {
		name string
		a, b Table
		same bool
	}{
		{"paths with ids", set(CgroupValue("a", 1)), set(CgroupValue("b", 1)), true},
		{"ids", set(CgroupValue("a", 1)), set(CgroupValue("a", 2)), false},
		{"paths alone", set(CgroupValue("a", 0)), set(CgroupValue("b", 0)), false},
		{"comments", Table{Chains: []Chain{{Comment: "a"}}}, Table{Chains: []Chain{{Comment: "b"}}}, true},
		{"rules", rule(Count{"a"}), rule(Count{"b"}), false},
		{"what rules need", rule(Match{Left: field(IPSaddr)}), rule(Match{Left: field(MetaNFProto), Value: NFProtoIPv4},
			Match{Left: field(IPSaddr)}), true},
		{"foreign sets", Table{Sets: []Set{{Foreign: "x"}}}, Table{Sets: []Set{{}}}, false},
		{"foreign chains", Table{Chains: []Chain{{Foreign: "x"}}}, Table{Chains: []Chain{{}}}, false},
		{"foreign", Table{Foreign: []string{"x"}}, Table{}, false},
		{"names", Table{Name: "a"}, Table{Name: "b"}, false},
		{"priority of no hook", Table{Chains: []Chain{{Priority: 1}}}, Table{Chains: []Chain{{}}}, true},
		{"priority", Table{Chains: []Chain{{Hook: Input, Priority: 1}}}, Table{Chains: []Chain{{Hook: Input}}}, false},
	} {
		if got := Same(test.a, test.b); got != test.same {
			t.Errorf("%s: same is %v", test.name, got)
		}
	}
}

func TestValues(t *testing.T) {
	for _, test := range []struct {
		t    Type
		v    Value
		text string
	}{
		{Mark, Number(0x10), "0x00000010"},
		{Mark, Span(1, 1<<32-1), "0x00000001-0xffffffff"},
		{ClassID, Number(0x1000f), "1:f"},
		{InetProto, Number(6), "tcp"},
		{InetProto, Span(6, 17), "6-17"},
		{InetService, Number(443), "443"},
		{IPv4Addr, Address(netip.MustParseAddr("10.0.0.1")), "10.0.0.1"},
		{IPv4Addr, Prefix(netip.MustParsePrefix("10.1.2.3/8")), "10.0.0.0/8"},
		{IPv4Addr, Prefix(netip.MustParsePrefix("0.0.0.0/0")), "0.0.0.0/0"},
		{IPv4Addr, AddressRange(netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.2")), "10.0.0.0-10.0.0.2"},
		{IPv4Addr, AddressRange(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")), "10.0.0.1-10.0.0.2"},
		{IPv6Addr, Prefix(netip.MustParsePrefix("fd00::/9")), "fd00::/9"},
		{IPv6Addr, Prefix(netip.MustParsePrefix("::/0")), "::/0"},
		{IPv6Addr, Address(netip.MustParseAddr("::")), "::"},
		{CgroupV2, CgroupValue("a/b", 7), `"a/b"`},
		{CgroupV2, CgroupValue("", 7), "cgroup id 7"},
	} {
		if got := valueText(test.t, test.v); got != test.text {
			t.Errorf("got %s, want %s", got, test.text)
		}
	}
	if got := WordOf(1<<63 + 5).Uint64(); got != 1<<63+5 {
		t.Errorf("the word of a number is another number: %d", got)
	}
}

// TestDiffRules checks that what diffRules emits is both lists.
func TestDiffRules(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	list := func() []Rule {
		var out []Rule
		for range r.IntN(8) {
			out = append(out, Rule{Statements: []Statement{Count{string('a' + rune(r.IntN(3)))}}})
		}
		return out
	}
	for range 2000 {
		have, want := list(), list()
		var gotHave, gotWant []Rule
		diffRules(have, want, func(sign rune, r Rule) {
			if sign != '+' {
				gotHave = append(gotHave, r)
			}
			if sign != '-' {
				gotWant = append(gotWant, r)
			}
		})
		if !slices.EqualFunc(have, gotHave, equalRules) || !slices.EqualFunc(want, gotWant, equalRules) {
			t.Fatalf("%v and %v were read as %v and %v", have, want, gotHave, gotWant)
		}
	}
}
