package compiler_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
)

var differences = flag.Int("differences", 1000, "random steps of workloads that begin and end")

// What a Difference makes of a Result is what Compile makes of the workloads that there
// are then, and its patch of the table is what Diff finds.
func TestDifference(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	small := 0
	for n := uint64(0); n < uint64(*differences); n++ {
		r := rand.New(rand.NewPCG(*seed, n))
		m := newMoving(r)
		for range 8 {
			if m.step(t, n) {
				small++
			}
			n++
		}
	}
	if small < *differences/5 {
		t.Errorf("only %d of %d steps were made without Compile", small, *differences)
	}
	t.Logf("%d of %d steps were made without Compile", small, *differences)
}

// moving are the workloads of a random case, which begin and end.
type moving struct {
	*rand.Rand
	in     compiler.Input // Workloads are those that run
	kinds  []policy.Workload
	made   int
	result compiler.Result
}

func newMoving(r *rand.Rand) *moving {
	c := reference.Random(r, 1+r.IntN(5))
	kinds, _ := withContainers(c)
	for len(kinds) == 0 {
		c = reference.Random(r, 1+r.IntN(5))
		kinds, _ = withContainers(c)
	}
	m := &moving{Rand: r, in: compiler.Input{Policies: c.Policies, Parents: []policy.Cgroup{{Path: "docker", ID: 9}},
		Options: compiler.Options{Epoch: uint16(1 + r.IntN(50))}}}
	if r.IntN(2) == 0 {
		m.in.Bridges = []policy.Bridge{{Name: docker0}}
	}
	for i := range r.IntN(3) {
		m.in.Unlabelled = append(m.in.Unlabelled,
			policy.Unlabelled{Cgroup: policy.Cgroup{Path: fmt.Sprintf("docker/%d/free", r.IntN(20)),
				ID: uint64(20 + i)}})
	}
	m.kinds = kinds
	for range r.IntN(20) {
		m.in.Workloads = append(m.in.Workloads, m.begin())
	}
	return m
}

// begin returns a workload that no other has the cgroup of, with the labels of some in the case.
func (m *moving) begin() policy.Workload {
	w := m.kinds[m.IntN(len(m.kinds))]
	m.made++
	w.Name = fmt.Sprint("w", m.made)
	w.Cgroup = policy.Cgroup{Path: fmt.Sprintf("docker/%d", m.IntN(1000)), ID: 1<<40 + uint64(m.made)}
	if m.IntN(10) == 0 {
		w.Cgroup.Path += "/below"
	}
	if m.IntN(10) != 0 {
		w.Own = nil
	}
	if slices.ContainsFunc(m.in.Workloads, func(o policy.Workload) bool { return o.Cgroup.Path == w.Cgroup.Path }) {
		w.Cgroup.Path += fmt.Sprint("#", m.made)
	}
	return w
}

// step has some begin and some end, and returns whether that needed no Compile.
func (m *moving) step(t *testing.T, n uint64) (small bool) {
	had := compiled(t, m.in)
	m.in.Numbers = had.Numbers
	if m.result.Len() == 0 {
		m.result = compiled(t, m.in)
	}
	var began, ended []policy.Workload
	for range 1 + m.IntN(3) {
		if k := len(m.in.Workloads); k > 0 && m.IntN(2) == 0 {
			at := m.IntN(k)
			ended = append(ended, m.in.Workloads[at])
			m.in.Workloads = slices.Delete(m.in.Workloads, at, at+1)
		} else {
			began = append(began, m.begin())
		}
	}
	for at, w := range began { // two that begin at once
		if slices.ContainsFunc(began[:at], func(o policy.Workload) bool { return o.Cgroup.Path == w.Cgroup.Path }) {
			began[at].Cgroup.Path += "#again"
		}
	}
	m.in.Workloads = append(m.in.Workloads, began...)
	m.in.Numbers = m.result.Numbers
	d, ok := m.result.Difference(began, ended)
	if !reflect.DeepEqual(had.Table, m.result.Table) || !reflect.DeepEqual(had.Numbers, m.result.Numbers) {
		t.Fatalf("step %d: to work out a difference changed something", n)
	}
	if !ok {
		m.result = compiled(t, m.in)
		return false
	}
	m.result.Take(d)
	m.in.Numbers = m.result.Numbers
	want := compiled(t, m.in)
	if !reflect.DeepEqual(m.result.Table, want.Table) {
		t.Fatalf("step %d: %d begin, %d end:\n%s", n, len(began), len(ended),
			ruleset.Diff(&m.result.Table, &want.Table))
	}
	if diff := cmp.Diff(want.Numbers, m.result.Numbers); diff != "" {
		t.Fatalf("step %d: numbers:\n%s", n, diff)
	}
	if diff := cmp.Diff(want.Warnings, m.result.Warnings); diff != "" {
		t.Fatalf("step %d: warnings:\n%s", n, diff)
	}
	if diff := cmp.Diff(want.Classes(m.in.Workloads), m.result.Classes(m.in.Workloads)); diff != "" {
		t.Fatalf("step %d: classes:\n%s", n, diff)
	}
	if steps := ruleset.Diff(&had.Table, &want.Table).Steps; !reflect.DeepEqual(steps, d.Patch.Change("thole").Steps) {
		t.Fatalf("step %d: Diff says otherwise:\n%s", n, cmp.Diff(steps, d.Patch.Change("thole").Steps))
	}
	return true
}

func compiled(t *testing.T, in compiler.Input) compiler.Result {
	t.Helper()
	r, err := compiler.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
