package kernel

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/rulesettest"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of the first random table; 0: by the clock")
	count = flag.Int("tables", 60, "how many random tables")
)

// eachSeed runs f for a number of seeds, which failures name.
func eachSeed(t *testing.T, f func(r *rand.Rand)) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	s := first
	defer func() { // also after t.Fatal
		if t.Failed() {
			t.Logf("to repeat: -run %s -seed %d -tables 1", t.Name(), s)
		}
	}()
	for ; s < first+uint64(*count); s++ {
		if f(rand.New(rand.NewPCG(s, 0))); t.Failed() {
			return
		}
	}
}

func someCgroups(h *nstest.Host) []rulesettest.Cgroup {
	var out []rulesettest.Cgroup
	for _, path := range []string{"thole", "thole/a b", `thole/x\x2dy`, "@5", "$é*", "ü'#;}"} {
		out = append(out, rulesettest.Cgroup{Path: path, ID: h.MkCgroup(path)})
	}
	return out
}

// TestRandomTables loads tables by netlink and by text and reads them back.
func TestRandomTables(t *testing.T) {
	h, c := open(t)
	cgroups := someCgroups(h)
	eachSeed(t, func(r *rand.Rand) {
		want := rulesettest.Random(r, cgroups)
		now := mustRead(t, c)
		if err := c.Apply(ruleset.Diff(nil, nil)); err != nil {
			t.Error(err)
		}
		if now != nil {
			if err := c.Delete("thole"); err != nil {
				t.Error(err)
			}
		}
		if err := c.Apply(ruleset.Diff(nil, &want)); err != nil {
			t.Errorf("%v\n%s", err, want.Text())
			return
		}
		checkTable(t, "netlink", mustRead(t, c), want)
		byNetlink := h.NftList()
		if err := h.Nft(want.Text()); err != nil {
			t.Errorf("%v\n%s", err, want.Text())
			return
		}
		checkTable(t, "text", mustRead(t, c), want)
		if byText := h.NftList(); byText != byNetlink {
			t.Errorf("nft lists what was loaded by netlink and by text differently:\n%s\n%s", byNetlink, byText)
		}
	})
}

// TestRandomChanges makes one table of another, and reads back the other. Counters
// that both have keep what they counted.
func TestRandomChanges(t *testing.T) {
	h, c := open(t)
	cgroups := someCgroups(h)
	var have *ruleset.Table
	eachSeed(t, func(r *rand.Rand) {
		want := rulesettest.Random(r, cgroups)
		change := ruleset.Diff(have, &want)
		if err := c.Apply(change); err != nil {
			t.Errorf("%v\n%s%+v", err, change, change.Steps)
			return
		}
		got := mustRead(t, c)
		checkTable(t, "changed", got, want)
		if again := ruleset.Diff(got, &want); !again.Empty() {
			t.Errorf("still to do:\n%s", again)
		}
		have = &want
	})
}
