package main

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/inventory"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/internal/enforce"
)

// An inventory of what runs is read back as the same workloads, with the same labels that count, that do not, and that
// are doubtful. So the same policies say the same of them.
func TestInventoryIsReadBack(t *testing.T) {
	const cases = 2000
	workloads, doubtful, named := 0, 0, 0
	for seed := range uint64(cases) {
		c := reference.Random(rand.New(rand.NewPCG(seed, 18)), 4)
		docs := policy.Documents{Policies: c.Policies, Settings: c.Settings}
		found, unlabelled := c.Found("docker0", "veth0")
		want, _ := docs.Identify(found, unlabelled)

		var b bytes.Buffer
		if err := writeInventory(&b, enforce.Describe(c.Policies, want, nil, nil).Workloads()); err != nil {
			t.Fatal(err)
		}
		written, err := policy.ParseInventory(policy.File{Name: "inventory.yaml", Data: b.Bytes()})
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, b.String())
		}
		written.Settings = c.Settings
		if err := written.CheckLabels(); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, b.String())
		}
		read, err := inventory.Workloads(written.Bindings)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, b.String())
		}
		got, none := docs.Identify(read, nil)
		if diff := cmp.Diff(identities(want), identities(got), cmpopts.EquateEmpty()); diff != "" || len(none) > 0 {
			t.Fatalf("seed %d: %d are no workloads any more (-node +inventory):\n%s\n%s", seed, len(none), diff,
				b.String())
		}
		for i := range got {
			workloads++
			doubtful += min(1, len(got[i].AllDoubtful()))
			named += map[bool]int{true: 1}[got[i].Named]
		}
	}
	if workloads < cases || doubtful < cases/4 || named < cases/40 {
		t.Errorf("%d workloads, %d with doubtful labels, %d by a policy: too few", workloads, doubtful, named)
	}
}

// An identity is what policies see of a workload.
type identity struct {
	Labels, Facts, Doubtful, DoubtfulFacts policy.Labels
	Named                                  bool
}

func identities(workloads []policy.Workload) map[string]identity {
	all := map[string]identity{}
	for _, w := range workloads {
		all[w.Name] = identity{w.Labels, maps.Clone(w.Facts), w.Doubtful, w.DoubtfulFacts, w.Named}
	}
	return all
}
