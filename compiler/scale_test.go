package compiler_test

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/reference"
	"thole/ruleset"
)

// Elements grow with workloads and with policies, not with their squares.
func TestElementsGrowLinearly(t *testing.T) {
	elements := func(workloads int) (n int) {
		r, err := compiler.Compile(reference.Scale(workloads, 20, 100))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.Table.Sets {
			n += len(s.Elements)
		}
		return n
	}
	few, more, many := elements(100), elements(200), elements(1000)
	if one := (more - few) / 100; one > 10 || many != few+900*one {
		t.Errorf("%d, %d and %d elements for 100, 200 and 1000 workloads of 20 classes", few, more, many)
	}
}

// The time of a compile grows with its input, not with the input's square: four times the input takes less than nine
// times as long. If it were the square, that would be sixteen.
func TestCompilesInLinearTime(t *testing.T) {
	for _, grows := range []struct {
		what string
		n    int
		make func(t testing.TB, n int) compiler.Input
	}{
		{"workloads", 3000, func(_ testing.TB, n int) compiler.Input { return reference.Scale(n, 200, 200) }},
		{"policies", 500, func(_ testing.TB, n int) compiler.Input { return reference.Scale(100, 100, n) }},
		{"classes with a policy each", 400, func(_ testing.TB, n int) compiler.Input {
			return reference.Scale(n, n, n)
		}},
		{"classes with one policy", 1000, sameLabels},
		{"labels of a workload", 10_000, manyLabels},
		{"CIDRs of a rule", 6000, func(t testing.TB, n int) compiler.Input {
			in := reference.Scale(10, 10, 0)
			in.Policies = manyCIDRs(t, 10, 1, n)
			return in
		}},
		{"policies with CIDRs", 2500, func(t testing.TB, n int) compiler.Input {
			in := reference.Scale(100, 100, 0)
			in.Policies = manyCIDRs(t, 100, n/10, n)
			return in
		}},
		{"exceptions of a CIDR", 6000, manyExceptions},
		{"ports", 1000, manyPorts},
		{"workloads of other nodes", 1000, manyRemotes},
	} {
		t.Run(grows.what, func(t *testing.T) {
			few, many := grows.make(t, grows.n), grows.make(t, 4*grows.n)
			var ratios []float64
			for range 5 { // what else the machine does may make one of the two slow, but not the same one each time
				ratio := float64(timeOf(t, many)) / float64(timeOf(t, few))
				if ratio < 9 {
					return
				}
				ratios = append(ratios, ratio)
			}
			t.Errorf("%d instead of %d take %.1f times as long", 4*grows.n, grows.n, ratios)
		})
	}
}

// timeOf returns what a compile costs on a processor, without the garbage collector: the least of three.
func timeOf(t *testing.T, in compiler.Input) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	least := time.Duration(math.MaxInt64)
	for range 3 {
		runtime.GC()
		before := usage(t, syscall.RUSAGE_THREAD)
		if _, err := compiler.Compile(in); err != nil {
			t.Fatal(err)
		}
		least = min(least, usage(t, syscall.RUSAGE_THREAD)-before)
	}
	return least
}

func BenchmarkCompile(b *testing.B) {
	for _, workloads := range []int{1, 100, 10_000} {
		in := reference.Scale(workloads, min(200, workloads), 1000)
		b.Run(fmt.Sprintf("workloads=%d", workloads), func(b *testing.B) {
			for b.Loop() {
				if _, err := compiler.Compile(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, workloads := range []int{100, 10_000} {
		in := reference.Scale(workloads, min(200, workloads), 1000)
		before, err := compiler.Compile(in)
		if err != nil {
			b.Fatal(err)
		}
		in.Workloads, in.Numbers = in.Workloads[1:], before.Numbers
		after, err := compiler.Compile(in)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("workloads=%d", workloads), func(b *testing.B) {
			for b.Loop() {
				if c := ruleset.Diff(&before.Table, &after.Table); len(c.Steps) == 0 || len(c.Steps) > 20 {
					b.Fatalf("%d steps", len(c.Steps))
				}
			}
		})
	}
}

// One workload of a class that is there begins, and ends.
func BenchmarkChange(b *testing.B) {
	for _, workloads := range []int{100, 10_000} {
		in := reference.Scale(workloads+1, min(200, workloads), 1000)
		one := in.Workloads[workloads:]
		in.Workloads = in.Workloads[:workloads]
		r, err := compiler.Compile(in)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("workloads=%d", workloads), func(b *testing.B) {
			for b.Loop() {
				for _, c := range []compiler.Change{{Began: one}, {Ended: one}} {
					step, ok := r.Change(c)
					if !ok {
						b.Fatal("it needs Compile")
					}
					r.Table.Patch(step.Patch(1))
				}
			}
		})
	}
}
