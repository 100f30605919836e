package kernel

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/ruleset"
	"thole/ruleset/rulesettest"
)

// tableOf returns a table of one set.
func tableOf(s ruleset.Set) *ruleset.Table {
	return &ruleset.Table{Name: "thole", Sets: []ruleset.Set{s}}
}

// marks returns a map of n entries.
func marks(n int) *ruleset.Table {
	s := ruleset.Set{Name: "big", Key: []ruleset.Type{ruleset.Mark, ruleset.Mark, ruleset.ClassID},
		Data: ruleset.VerdictType}
	for i := range n {
		s.Elements = append(s.Elements, ruleset.Element{
			Key: []ruleset.Value{ruleset.Number(uint64(i / 100)), ruleset.Number(uint64(i % 100)),
				ruleset.Number(1)},
			Verdict: ruleset.Verdict{Kind: ruleset.Drop},
		})
	}
	return tableOf(s)
}

// TestIntervalChanges changes sets of ranges in place: ranges that grow, shrink, split,
// join and map to something else, old ones over new ones.
func TestIntervalChanges(t *testing.T) {
	for _, key := range [][]ruleset.Type{
		{ruleset.InetService},
		{ruleset.Mark},
		{ruleset.IPv4Addr},
		{ruleset.IPv6Addr},
		{ruleset.ICMPType},
		{ruleset.InetProto, ruleset.InetService},
		{ruleset.Mark, ruleset.IPv4Addr, ruleset.InetProto, ruleset.InetService},
	} {
		for _, data := range []ruleset.Type{ruleset.None, ruleset.Mark, ruleset.VerdictType} {
			t.Run(fmt.Sprintf("%v:%v", key, data), func(t *testing.T) {
				_, c := open(t)
				var have *ruleset.Table
				eachSeed(t, func(r *rand.Rand) {
					s := ruleset.Set{Name: "ranges", Key: key, Data: data, Interval: true}
					s.Elements = rulesettest.RandomElements(r, s, 12)
					want := tableOf(s)
					change := ruleset.Diff(have, want)
					if err := c.Apply(change); err != nil {
						t.Errorf("%v\n%s", err, change)
						return
					}
					checkTable(t, "changed", mustRead(t, c), *want)
					have = want
				})
			})
		}
	}
}

// TestLargeBatch loads, empties and reads 60,000 elements.
func TestLargeBatch(t *testing.T) {
	_, c := open(t)
	want, none := marks(60_000), marks(0)
	mustApply(t, c, nil, want)
	checkTable(t, "loaded", mustRead(t, c), *want)
	mustApply(t, c, want, none)
	checkTable(t, "emptied", mustRead(t, c), *none)
	mustApply(t, c, none, want)
	if err := c.Delete("thole"); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, c); got != nil {
		t.Errorf("the table is still there")
	}
}

// TestReadUncounted reads a hash table that still grows, as on a kernel that does not
// tell how many elements it has.
func TestReadUncounted(t *testing.T) {
	_, c := open(t)
	want := marks(60_000)
	mustApply(t, c, nil, want)
	got := want.Sets[0]
	got.Elements = nil
	r := reader{conn: c, family: inet, table: &ruleset.Table{Name: "thole"}}
	if err := r.elements(&got, nil); err != nil {
		t.Fatal(err)
	}
	checkTable(t, "read", tableOf(got), *want)
}

// TestNetNS opens another network namespace than the thread's.
func TestNetNS(t *testing.T) {
	h, inside := open(t)
	want := marks(3)
	mustApply(t, inside, nil, want)
	var ns *os.File
	var err error
	if doErr := h.Do(func() { ns, err = os.Open("/proc/thread-self/ns/net") }); doErr != nil || err != nil {
		t.Fatal(doErr, err)
	}
	defer ns.Close()
	c, err := Open(Options{NetNS: int(ns.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	checkTable(t, "from outside", mustRead(t, c), *want)
}

func TestDelete(t *testing.T) {
	h, c := open(t)
	const other = "table inet other {\n\tchain c {\n\t\taccept\n\t}\n}\n"
	if err := h.Nft(other); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete("thole"); err != nil {
		t.Errorf("with no table: %v", err)
	}
	want := everything(h)
	mustApply(t, c, nil, &want)
	if err := c.Delete("thole"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(other, h.NftList()); diff != "" {
		t.Errorf("another's table changed:\n%s", diff)
	}
}

// TestFailure makes changes that the kernel refuses: nothing of them is loaded.
func TestFailure(t *testing.T) {
	h, c := open(t)
	base := everything(h)
	mustApply(t, c, nil, &base)
	listed := h.NftList()

	busy := func() ruleset.Change {
		want := *marks(3000)
		change := ruleset.Diff(&base, &want)
		change.Steps = append(change.Steps[len(change.Steps)-2:], ruleset.DeleteChain{Name: "dead"})
		return change
	}
	cycle := base
	cycle.Chains = append([]ruleset.Chain{}, base.Chains...)
	for i := range cycle.Chains {
		if cycle.Chains[i].Name == "settle" {
			cycle.Chains[i].Rules = []ruleset.Rule{{Statements: []ruleset.Statement{
				ruleset.Verdict{Kind: ruleset.Jump, Chain: "settle"},
			}}}
		}
	}
	absent := base
	absent.Sets = append([]ruleset.Set{{Name: "absent", Key: []ruleset.Type{ruleset.Mark}}}, base.Sets...)

	for _, test := range []struct {
		name   string
		change ruleset.Change
		errno  error
	}{
		{"a chain in use", busy(), unix.EBUSY},
		{"a chain that jumps to itself", ruleset.Diff(&base, &cycle), unix.EMLINK},
		{"a table that is there", ruleset.Diff(nil, &base), unix.EEXIST},
		{"a set that is not there", ruleset.Diff(&absent, &base), unix.ENOENT},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := c.Apply(test.change)
			var failed *ApplyError
			if !errors.As(err, &failed) || !errors.Is(err, test.errno) {
				t.Fatalf("the error is %v, not %v", err, test.errno)
			}
			if diff := cmp.Diff(listed, h.NftList()); diff != "" {
				t.Errorf("something was loaded:\n%s", diff)
			}
			t.Log(err)
		})
	}
}

// TestOutcome checks what an error says of what is loaded.
func TestOutcome(t *testing.T) {
	_, c := open(t)
	one, two, three := marks(1), marks(2), marks(3)
	mustApply(t, c, nil, one)
	for _, test := range []struct {
		name       string
		have, want *ruleset.Table
		outcome    Outcome
	}{
		{"the change was loaded before", nil, one, Loaded},
		{"nothing was loaded", one, invalid(one), NotLoaded},
		{"something else is loaded", two, three, Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			change := ruleset.Diff(test.have, test.want)
			change.Steps = append(change.Steps, ruleset.DeleteChain{Name: "absent"})
			var failed *ApplyError
			if err := c.Apply(change); !errors.As(err, &failed) || failed.Outcome != test.outcome {
				t.Errorf("got %v, want: %s", err, test.outcome)
			}
		})
	}
}

// invalid returns t with a chain that the kernel does not take.
func invalid(t *ruleset.Table) *ruleset.Table {
	bad := *t
	bad.Chains = []ruleset.Chain{{Name: strings.Repeat("x", 500)}}
	return &bad
}

// TestUnloadable checks changes that cannot be written as a batch.
func TestUnloadable(t *testing.T) {
	_, c := open(t)
	set := func(key ruleset.Type, values ...ruleset.Value) *ruleset.Table {
		return tableOf(ruleset.Set{Name: "s", Key: []ruleset.Type{key}, Elements: []ruleset.Element{{Key: values}}})
	}
	rule := func(s ruleset.Statement) *ruleset.Table {
		return &ruleset.Table{Name: "thole", Chains: []ruleset.Chain{{
			Name:  "c",
			Rules: []ruleset.Rule{{Statements: []ruleset.Statement{s}}},
		}}}
	}
	for _, test := range []struct {
		want *ruleset.Table
		text string
	}{
		{set(ruleset.CgroupV2, ruleset.CgroupValue("thole/a", 0)), `set s: the id of cgroup "thole/a" is not known`},
		{set(ruleset.Mark, ruleset.Span(1, 2)), "set s: a range in a set without flags interval"},
		{set(ruleset.Mark, ruleset.Span(2, 1)), "set s: a range ends before it begins"},
		{set(ruleset.Mark), "set s: an element has 0 fields, not 1"},
		{set(ruleset.VerdictType), "set s: verdict cannot be the type of a key"},
		{rule(ruleset.Foreign{Description: "x"}), "chain c, rule 1: cannot load what is foreign: x"},
		{rule(ruleset.InSet{Set: "s"}), "chain c, rule 1: no set or map @s"},
		{
			rule(ruleset.Match{Left: ruleset.Expr{Field: ruleset.SocketCgroup}}),
			"chain c, rule 1: socket cgroupv2 can be looked up in a set only",
		},
		{rule(ruleset.SetBits{Target: ruleset.CtState}), "chain c, rule 1: ct state cannot be set"},
		{rule(ruleset.Verdict{}), "chain c, rule 1: unknown verdict 0"},
	} {
		if err := c.Apply(ruleset.Diff(nil, test.want)); err == nil || err.Error() != test.text {
			t.Errorf("got  %v\nwant %s", err, test.text)
		}
	}
	if got := mustRead(t, c); got != nil {
		t.Error("something was loaded")
	}
}

// TestReadWhileWritten reads a table that another connection changes all the time:
// each read is one of the two states that it changes between, or says that it could
// not be.
func TestReadWhileWritten(t *testing.T) {
	h, c := open(t)
	writer := openIn(t, h)
	one, two := lookedUp(marks(300), "a"), lookedUp(marks(20), "b")
	mustApply(t, c, nil, one)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for have, want := range alternate(200, one, two) {
			if err := writer.Apply(ruleset.Diff(have, want)); err != nil {
				t.Error(err)
			}
		}
	}()
	for done := false; !done; {
		select {
		case <-written:
			done = true
		default:
		}
		got, err := c.Read("thole")
		switch {
		case errors.Is(err, errInterrupted) && !done:
		case err != nil:
			t.Error(err)
		case got == nil || !ruleset.Same(*got, *one) && !ruleset.Same(*got, *two):
			t.Error("a half-written table was read")
		}
	}
}

// alternate yields a to b, b to a, and so on.
func alternate(n int, a, b *ruleset.Table) iter.Seq2[*ruleset.Table, *ruleset.Table] {
	return func(yield func(a, b *ruleset.Table) bool) {
		for range n {
			if !yield(a, b) {
				return
			}
			a, b = b, a
		}
	}
}

// lookedUp adds a chain to t.
func lookedUp(t *ruleset.Table, chain string) *ruleset.Table {
	t.Chains = []ruleset.Chain{{Name: chain, Rules: []ruleset.Rule{{Statements: []ruleset.Statement{
		ruleset.ByMap{Key: []ruleset.Expr{{Field: ruleset.CtMark}, {Field: ruleset.MetaMark},
			{Field: ruleset.MetaPriority}}, Map: "big"},
	}}}}}
	return t
}

// TestCounters checks that a change does not touch what a counter counted.
func TestCounters(t *testing.T) {
	h, c := open(t)
	table := func(rules ...ruleset.Rule) *ruleset.Table {
		return &ruleset.Table{
			Name: "thole", Counters: []string{"all", "none"},
			Chains: []ruleset.Chain{{Name: "out", Hook: ruleset.Output, Rules: rules}},
		}
	}
	counting := ruleset.Rule{Statements: []ruleset.Statement{
		ruleset.Match{Left: ruleset.Expr{Field: ruleset.MetaL4Proto}, Value: ruleset.ProtoUDP},
		ruleset.Count{Counter: "all"},
	}}
	one, two := table(counting), table(counting, counting)
	mustApply(t, c, nil, one)
	probe.Start(h.In("sender"), "sender").OpenUDP("udp", "127.0.0.1:0").Send("127.0.0.1:9", "12345678")
	mustApply(t, c, one, two)
	got, err := c.Counters("thole")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Counter{"all": {Packets: 1, Bytes: 20 + 8 + 8}, "none": {}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	if got, err := c.Counters("absent"); err != nil || len(got) != 0 {
		t.Errorf("of no table: %v, %v", got, err)
	}
}

// TestOneFamily mends tables of which another program removed one.
func TestOneFamily(t *testing.T) {
	for _, gone := range []string{"inet", "bridge"} {
		t.Run(gone, func(t *testing.T) {
			h, c := open(t)
			want := everything(h)
			mustApply(t, c, nil, &want)
			if err := h.Nft("delete table " + gone + " thole\n"); err != nil {
				t.Fatal(err)
			}
			left := mustRead(t, c)
			if left == nil || (left.Name == "") != (gone == "inet") || (left.Bridge == nil) != (gone == "bridge") {
				t.Fatalf("read %+v", left)
			}
			mustApply(t, c, left, &want)
			checkTable(t, "mended", mustRead(t, c), want)
			if err := h.Nft("delete table " + gone + " thole\n"); err != nil {
				t.Fatal(err)
			}
			if err := c.Delete("thole"); err != nil {
				t.Fatal(err)
			}
			if left := mustRead(t, c); left != nil {
				t.Errorf("left: %+v", left)
			}
		})
	}
}

// TestQueue loads what nft can load only where the kernel has the expression queue.
func TestQueue(t *testing.T) {
	h, c := open(t)
	is, err := c.NativeQueue()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the expression queue: %t", is)
	if !is && nstest.NativeQueue() {
		t.Error("this kernel has the expression queue, and it was not found")
	}
	want := ruleset.Table{Name: "thole", Chains: []ruleset.Chain{{
		Name: "prerouting", Hook: ruleset.Prerouting, Priority: -300,
		Rules: []ruleset.Rule{{Statements: []ruleset.Statement{ruleset.Queue{Number: 5447}}}},
	}}}
	want.Normalise()
	mustApply(t, c, nil, &want)
	checkTable(t, "loaded", mustRead(t, c), want)
	if !is {
		return
	}
	byNetlink := h.NftList()
	if code := h.Shell("nft --debug=netlink list table inet thole"); !strings.Contains(code, "[ queue num 5447 ]") {
		t.Errorf("no expression queue was loaded:\n%s", code)
	}
	if err := h.Nft(want.Text()); err != nil {
		t.Fatalf("%v\n%s", err, want.Text())
	}
	checkTable(t, "text", mustRead(t, c), want)
	if diff := cmp.Diff(byNetlink, h.NftList()); diff != "" {
		t.Errorf("nft lists what was loaded by netlink (-) and by text (+) differently:\n%s", diff)
	}
}
