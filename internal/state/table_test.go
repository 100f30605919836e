package state

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/policy"
)

// Changes that were appended are a part of the TableState; one that was not written to its
// end is as if it had not been.
func TestTableStateAndItsChanges(t *testing.T) {
	state, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	workload := func(id uint64) policy.Workload {
		return policy.Workload{Labels: policy.Labels{"app": "web"}, Cgroup: policy.Cgroup{Path: "x", ID: id}}
	}
	began := func(id uint64, key string) TableChange {
		return TableChange{Began: []policy.Workload{workload(id)},
			Numbers: compiler.Renumbering{Set: map[string]uint32{key: uint32(id)}, Next: uint32(id)}}
	}
	if state.AppendChange(began(1, "a"), 10) {
		t.Error("a change of no TableState was saved")
	}
	m := TableState{Epoch: 7, Workloads: []policy.Workload{workload(1), workload(2)},
		Numbers: compiler.Numbers{Workloads: map[string]uint32{"gone": 9}, Next: 1}}
	if err := state.SaveTable(m); err != nil {
		t.Fatal(err)
	}
	last := TableChange{Ended: []uint64{1}, Numbers: compiler.Renumbering{Drop: []string{"gone"}, Next: 8}}
	if !state.AppendChange(began(3, "c"), 2) || !state.AppendChange(last, 2) || state.AppendChange(began(4, "d"), 2) {
		t.Error("want room for two")
	}
	check := func(what string, ids []uint64, numbers compiler.Numbers) {
		t.Helper()
		got, err := state.Table()
		if err != nil {
			t.Fatal(err)
		}
		var have []uint64
		for _, w := range got.Workloads {
			have = append(have, w.Cgroup.ID)
		}
		slices.Sort(have)
		if !slices.Equal(have, ids) || got.Epoch != 7 || !cmp.Equal(got.Numbers, numbers) {
			t.Errorf("%s: workloads %v, epoch %d, %+v; want %v, %+v", what, have, got.Epoch, got.Numbers, ids, numbers)
		}
	}
	check("both changes", []uint64{2, 3}, compiler.Numbers{Workloads: map[string]uint32{"c": 3}, Next: 8})
	path := filepath.Join(state.path, TableFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := len(data) - 1
	for cut := whole - 1; data[cut] != '\n'; cut-- {
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		check("half a change", []uint64{1, 2, 3}, compiler.Numbers{Workloads: map[string]uint32{"c": 3, "gone": 9},
			Next: 3})
	}
	state.Close()
}
