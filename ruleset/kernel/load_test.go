package kernel

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/rulesettest"
)

func everything(h *nstest.Host) ruleset.Table {
	return rulesettest.Everything(
		rulesettest.Cgroup{Path: "thole/a", ID: h.MkCgroup("thole/a")},
		rulesettest.Cgroup{Path: "thole/b", ID: h.MkCgroup("thole/b")},
	)
}

// mustRead returns what is loaded.
func mustRead(t testing.TB, c *Conn) *ruleset.Table {
	t.Helper()
	got, err := c.Read("thole")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// mustApply makes want of have.
func mustApply(t testing.TB, c *Conn, have, want *ruleset.Table) {
	t.Helper()
	if err := c.Apply(ruleset.Diff(have, want)); err != nil {
		t.Fatal(err)
	}
}

// checkTable compares what is loaded with what was wanted.
func checkTable(t testing.TB, what string, got *ruleset.Table, want ruleset.Table) {
	t.Helper()
	if got == nil {
		t.Errorf("%s: there is no table", what)
	} else if !ruleset.Same(*got, want) {
		t.Errorf("%s: what is loaded (-) is not what was wanted (+):\n%.4000s", what, ruleset.Diff(got, &want))
	}
}

func TestEverything(t *testing.T) {
	h, c := open(t)
	want := everything(h)

	mustApply(t, c, nil, &want)
	checkTable(t, "netlink", mustRead(t, c), want)
	byNetlink := h.NftList()

	if err := h.Nft(want.Text()); err != nil {
		t.Fatalf("%v\n%s", err, want.Text())
	}
	checkTable(t, "text", mustRead(t, c), want)
	if diff := cmp.Diff(byNetlink, h.NftList()); diff != "" {
		t.Errorf("nft lists what was loaded by netlink (-) and by text (+) differently:\n%s", diff)
	}
}
