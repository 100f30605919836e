package compiler

import (
	"fmt"
	"strings"
	"testing"
)

// At the limit every number is given; one more is an error that names the limit.
func TestNumbersEnd(t *testing.T) {
	groups := make([][]string, 10)
	for i := range groups {
		groups[i] = []string{fmt.Sprint("w", i)}
	}
	var next uint32
	numbers, _, err := number("workloads", groups, nil, 1, 10, &next)
	if err != nil || numbers[0] != 1 || numbers[9] != 10 {
		t.Errorf("%v, %v; want 1 to 10", numbers, err)
	}
	if _, _, err := number("workloads", groups, nil, 1, 9, &next); err == nil ||
		!strings.Contains(err.Error(), "10 classes of workloads: the limit is 9") {
		t.Errorf("got %v, want the limit", err)
	}
}

// A freed number comes back only after all others: connections of its class may be
// remembered yet.
func TestNumbersAreNotUsedAgainAtOnce(t *testing.T) {
	var next uint32
	give := func(had map[string]uint32, names ...string) (map[string]uint32, []uint32) {
		groups := make([][]string, len(names))
		for i, n := range names {
			groups[i] = []string{n}
		}
		numbers, has, err := number("workloads", groups, had, 1, 4, &next)
		if err != nil {
			t.Fatal(err)
		}
		return has, numbers
	}
	has, _ := give(nil, "a", "b")
	for _, step := range []struct {
		names []string
		want  string
	}{
		{[]string{"b"}, "[2]"},
		{[]string{"b", "c"}, "[2 3]"}, // not 1
		{[]string{"b", "d"}, "[2 4]"},
		{[]string{"b", "e"}, "[2 1]"}, // round
		{[]string{"e", "b"}, "[1 2]"},
	} {
		var numbers []uint32
		has, numbers = give(has, step.names...)
		if got := fmt.Sprint(numbers); got != step.want {
			t.Errorf("%v: %s, want %s", step.names, got, step.want)
		}
	}
}

// A number that became free in an epoch is given again in it only with a word to the caller; the next epoch forgets.
func TestNumbersFreed(t *testing.T) {
	of := func(numbers ...uint32) map[string]uint32 {
		m := map[string]uint32{}
		for _, n := range numbers {
			m[fmt.Sprint("w", n)] = n
		}
		return m
	}
	had := Numbers{Workloads: of(1, 2, 3), Remotes: of(0x4000, 0x4001), Epoch: 7, Freed: []uint32{5, 9}}
	for _, tt := range []struct {
		name  string
		now   Numbers
		epoch uint16
		freed string
		again bool
	}{
		{"nothing changes", Numbers{Workloads: of(1, 2, 3), Remotes: of(0x4000, 0x4001)}, 7, "[5 9]", false},
		{"some end", Numbers{Workloads: of(3), Remotes: of(0x4001)}, 7, "[1 2 5 9 16384]", false},
		{"one begins", Numbers{Workloads: of(1, 2, 3, 4), Remotes: of(0x4000, 0x4001)}, 7, "[5 9]", false},
		{"one begins with a free number", Numbers{Workloads: of(1, 2, 3, 9), Remotes: of(0x4000, 0x4001)}, 7, "[5 9]",
			true},
		{"and in the next epoch", Numbers{Workloads: of(1, 3, 9), Remotes: of(0x4000)}, 8, "[]", false},
	} {
		again := tt.now.free(had, tt.epoch)
		if got := fmt.Sprint(tt.now.Freed); got != tt.freed || again != tt.again || tt.now.Epoch != tt.epoch {
			t.Errorf("%s: free are %s in epoch %d, again %t; want %s in %d, %t", tt.name, got, tt.now.Epoch, again,
				tt.freed, tt.epoch, tt.again)
		}
	}
}
