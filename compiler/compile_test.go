package compiler_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/chains"
	"thole/compiler/compilertest"
	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/compiler/reference"
)

func compile(t *testing.T, in compiler.Input) compiler.Result {
	t.Helper()
	in.Options.Comments = true
	r, err := compiler.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func random(seed uint64) compiler.Input {
	c := reference.Random(rand.New(rand.NewPCG(seed, 1)), 6)
	in := compiler.Input{Policies: c.Policies}
	for _, w := range c.Workloads {
		if w.Kind != policy.KindAddress {
			in.Workloads = append(in.Workloads, *w)
		}
	}
	return in
}

// The order of the input does not matter.
func TestCompileIsCanonical(t *testing.T) {
	for seed := range uint64(200) {
		in := random(seed)
		want := compile(t, in).Table.Text()
		slices.Reverse(in.Policies)
		slices.Reverse(in.Workloads)
		if diff := cmp.Diff(want, compile(t, in).Table.Text()); diff != "" {
			t.Fatalf("seed %d:\n%s", seed, diff)
		}
	}
}

// Who compiles with the numbers of the loaded table gets the loaded table; so a
// daemon that starts changes nothing.
func TestLoadedContinues(t *testing.T) {
	for seed := range uint64(200) {
		in := random(seed)
		if len(in.Workloads) == 0 {
			continue
		}
		in.Options.Epoch = uint16(1 + seed)
		first := compile(t, in)
		// Something else runs in between, so that numbers are not those of a fresh table.
		in.Numbers = first.Numbers
		gone := in.Workloads[0]
		in.Workloads = in.Workloads[1:]
		in.Numbers = compile(t, in).Numbers
		in.Workloads = append(in.Workloads, gone)
		loaded := compile(t, in)

		in.Numbers, in.Options.Epoch = compilertest.Loaded(&loaded.Table)
		if in.Options.Epoch != uint16(1+seed) {
			t.Fatalf("seed %d: epoch %d", seed, in.Options.Epoch)
		}
		if diff := cmp.Diff(loaded.Table.Text(), compile(t, in).Table.Text()); diff != "" {
			t.Fatalf("seed %d:\n%s", seed, diff)
		}
	}
}

// One workload more of a class that is there costs three elements, however many there are.
func TestOneMoreWorkload(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`
apiVersion: thole/v1
kind: Policy
metadata: {name: same}
spec: {selector: {}, ingress: [{from: [{sameLabels: all}]}], egress: [{to: [{sameLabels: all}, {cidr: 0.0.0.0/0}]}]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	in := compiler.Input{Policies: docs.Policies}
	add := func(i int) {
		in.Workloads = append(in.Workloads, policy.Workload{
			Name: fmt.Sprint("w", i), Kind: policy.KindRun, Labels: policy.Labels{"app": fmt.Sprint("a", i%20)},
			Cgroup: policy.Cgroup{Path: fmt.Sprintf("thole.slice/w%d.scope", i), ID: uint64(100 + i)},
		})
	}
	for i := range 200 {
		add(i)
	}
	before := compile(t, in)
	add(200)
	in.Numbers = before.Numbers
	after := compile(t, in)
	if n := elements(after) - elements(before); n != 3 {
		t.Errorf("%d elements more, want 3", n)
	}
	if after.Len() != 20 {
		t.Errorf("%d classes, want 20", after.Len())
	}
}

func elements(r compiler.Result) int {
	n := 0
	for _, s := range r.Table.Sets {
		n += len(s.Elements)
	}
	return n
}

// EpochOf finds what Compile wrote.
func TestEpochOf(t *testing.T) {
	for _, epoch := range []uint16{1, 2, 1000, mark.MaxEpoch} {
		in := random(1)
		in.Options.Epoch = epoch
		result := compile(t, in)
		if got := chains.EpochOf(&result.Table); got != epoch {
			t.Errorf("EpochOf = %d; want %d", got, epoch)
		}
	}
	if got := chains.EpochOf(nil); got != 0 {
		t.Errorf("EpochOf(nil) = %d", got)
	}
}
