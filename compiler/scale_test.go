package compiler_test

import (
	"fmt"
	"testing"

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
func BenchmarkDifference(b *testing.B) {
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
				for _, turn := range [][2][]compiler.Workload{{one, nil}, {nil, one}} {
					d, ok := r.Difference(turn[0], turn[1])
					if !ok {
						b.Fatal("it needs Compile")
					}
					r.Take(d)
				}
			}
		})
	}
}
