package main

import (
	"testing"

	"thole/internal/api"
	"thole/ruleset"
)

func TestSummary(t *testing.T) {
	table := func(ids ...uint64) *ruleset.Table {
		set := ruleset.Set{Name: "class1", Key: []ruleset.Type{ruleset.CgroupV2}, Data: ruleset.Mark}
		for _, id := range ids {
			set.Elements = append(set.Elements, ruleset.Element{Key: []ruleset.Value{ruleset.Number(id)}, Number: 1})
		}
		return &ruleset.Table{Name: "thole", Counters: []string{"set"}, Sets: []ruleset.Set{set}}
	}
	for _, test := range []struct {
		name       string
		have, want *ruleset.Table
		summary    string
	}{
		{"first", nil, table(1, 2), "applied: 1 policy, 2 workloads in 2 classes, +2 −0 elements"},
		{"difference", table(1, 2), table(2, 3, 4), "applied: 1 policy, 2 workloads in 2 classes, +2 −1 elements"},
		{"same", table(1), table(1), "applied: 1 policy, 2 workloads in 2 classes, nothing to change"},
	} {
		t.Run(test.name, func(t *testing.T) {
			change := ruleset.Diff(test.have, test.want)
			got := summary(api.ApplyResponse{
				Changed: !change.Empty(), Policies: 1, Workloads: 2, Classes: 2, Diff: change.String(),
			})
			if got != test.summary {
				t.Errorf("got %q, want %q", got, test.summary)
			}
		})
	}
}
