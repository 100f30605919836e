package kernel

import (
	"fmt"
	"testing"

	"thole/ruleset"
)

// BenchmarkLoad makes a table of 10,000 elements.
func BenchmarkLoad(b *testing.B) {
	_, c := open(b)
	want := marks(10_000)
	change := ruleset.Diff(nil, want)
	for b.Loop() {
		if err := c.Apply(change); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete("thole"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkRead reads such a table.
func BenchmarkRead(b *testing.B) {
	_, c := open(b)
	mustApply(b, c, nil, marks(10_000))
	for b.Loop() {
		mustRead(b, c)
	}
}

// BenchmarkAddElement adds one element to a table of n, and takes it away again.
func BenchmarkAddElement(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		with, without := marks(n+1), marks(n)
		add, remove := ruleset.Diff(without, with), ruleset.Diff(with, without)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, c := open(b)
			mustApply(b, c, nil, without)
			for b.Loop() {
				if err := c.Apply(add); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Apply(remove); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkDiff compares two tables of n elements that differ in one.
func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		with, without := marks(n+1), marks(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				ruleset.Diff(without, with)
			}
		})
	}
}
