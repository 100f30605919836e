package watch

import (
	"testing"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// The runs of the table that an earlier daemon loaded count: those that live, and those that ended and are in it.
func TestUseAfterARestart(t *testing.T) {
	tr := newTree(t)
	run := tr.create("lives")
	recalled := []policy.Workload{run.workload(), {
		Name: "ended", Kind: policy.KindRun, Labels: policy.Labels{"app": "ended"},
		Facts:  policy.Labels{workload.FactUID: "1000"},
		Cgroup: policy.Cgroup{Path: "thole.slice/ended.scope", ID: 4242},
	}}
	inTable := true
	tr.restart()
	tr.scopes.FollowTable(Ledger{InTable: func(uint64) bool { return inTable }})
	tr.cgroups.Recall(workload.Snapshot{Workloads: recalled})
	tr.cgroups.Look(nil) // which does not remove the empty one
	both := Use{Runs: 2, Ended: 1, Labels: 2, Has: true}
	if use, total := tr.scopes.Use(1000, run.Labels); total != 2 || use != both {
		t.Errorf("Use = %+v, %d; want two runs, of which one ended", use, total)
	}
	inTable = false
	one := Use{Runs: 1, Labels: 1, Has: true}
	if use, total := tr.scopes.Use(1000, run.Labels); total != 1 || use != one {
		t.Errorf("the table has forgotten it: Use = %+v, %d; want one run", use, total)
	}
}

// Users are told apart by who is charged, and the one who has most is named; root is not.
func TestMostUse(t *testing.T) {
	u := newUses()
	u.ledger = Ledger{Account: func(uid uint32) uint32 { return uid % 10 }}
	for id, uid := range map[uint64]uint32{1: 1, 2: 11, 3: 2, 4: 0, 5: 10, 6: 20} {
		u.begin(id, uid, policy.Labels{"id": string(rune('a' + id))})
	}
	if most, total := u.most(); total != 6 || most != (Use{Runs: 2, Labels: 2}) {
		t.Errorf("most = %+v, %d; want two runs of six", most, total)
	}
	u.end(1)
	if most, total := u.most(); total != 5 || most != (Use{Runs: 1, Labels: 1}) {
		t.Errorf("one ended: most = %+v, %d; want one run of five", most, total)
	}
}
