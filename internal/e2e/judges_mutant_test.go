package e2e

import (
	"math/rand/v2"
	"testing"

	"thole/compiler/mutants"
	"thole/compiler/reference"
)

// caughtWithin is how many connections and flows of its situation a mutant of the table may pass unnoticed by the
// kernel.
const caughtWithin = 3000

// TestKernelCatchesMutants loads tables that ignore a situation: real sockets show it.
func TestKernelCatchesMutants(t *testing.T) {
	b := newBench(t)
	for _, m := range mutants.All {
		if m.Raw {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			b.mutant, b.judged = m, 0
			from := *seed
			if from == 0 {
				from = rand.Uint64()
			}
			for n := uint64(0); b.judged < caughtWithin; n++ {
				r := rand.New(rand.NewPCG(from, n))
				c := reference.MoreOf(m.Ignores, r, reference.Random(r, 4), 200) // a table costs more than a flow
				if diff := b.judge(c); diff != "" {
					t.Logf("caught by connection or flow %d: %s", b.judged, diff)
					return
				}
			}
			t.Errorf("no difference in %d; -seed %d", caughtWithin, from)
		})
	}
}
