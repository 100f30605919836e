//go:build !race

// The race detector keeps functions from being inlined, which then allocate.

package nlmsg

import "testing"

// Nothing is allocated but the list itself, and strings.
func TestNoAllocations(t *testing.T) {
	list := []byte(written())
	into := make(Attributes, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		a := into
		a.AddNested(1, func(a *Attributes) { a.AddBE32(2, 3); a.AddBE64(3, 4); a.AddUint32(4, 5) })
	}); n > 1 { // a itself
		t.Errorf("%v allocations to write", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		a, err := Parse(list, Size{1, 1}, Size{2, 4})
		if err != nil || a.Nested(6).Uint64(2) != 9 || a.Has(8) {
			t.Error("read wrongly")
		}
		for range a.All() {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
