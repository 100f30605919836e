package kernel

import (
	"testing"

	"thole/ruleset"
)

func TestZZ(t *testing.T) {
	_, c := open(t)
	want := marks(60_000)
	bad := 0
	for i := range 60 {
		mustApply(t, c, nil, want)
		got := mustRead(t, c)
		if !ruleset.Same(*got, *want) {
			bad++
			t.Logf("%d: %d elements", i, len(got.Sets[0].Elements))
		}
		if err := c.Delete("thole"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("bad %d", bad)
}
