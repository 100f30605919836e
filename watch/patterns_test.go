package watch

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/workload"
)

// give makes a cgroup of the tree that a user may write.
func (tr *tree) give(path string, uid int) {
	tr.t.Helper()
	tr.in(path).ID()
	if err := os.Chown(tr.root.Path(path), uid, uid); err != nil {
		tr.t.Fatal(err)
	}
}

// makeMany makes n cgroups in one, which are removed when the test ends.
func (tr *tree) makeMany(parent string, n int) {
	tr.t.Helper()
	for i := range n {
		dir := tr.root.Path(fmt.Sprintf("%s/job-%04d", parent, i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			tr.t.Fatal(err)
		}
		tr.t.Cleanup(func() { _ = os.Remove(dir) })
	}
}

func codes(s workload.Snapshot) (list []condition.Code) {
	for _, c := range s.Conditions {
		list = append(list, c.Code)
	}
	return list
}

// below returns how many workloads of a snapshot are in a cgroup, and whether that is closed.
func (tr *tree) below(s workload.Snapshot, parent string) (n int, closed bool) {
	for _, w := range s.Workloads {
		if len(w.Cgroup.Path) > len(parent) && w.Cgroup.Path[:len(parent)+1] == parent+"/" {
			n++
		}
	}
	closed = slices.Contains(s.Parents, policy.Cgroup{Path: parent, ID: tr.id(parent)})
	return n, closed
}

// Of a user's cgroups that match, the oldest are workloads, and the others are closed. Other users' are not concerned.
func TestPatternOverTheTreeOfAUser(t *testing.T) {
	tr := newTree(t)
	bindings := []policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs/*/job-*"})}
	tr.give("jobs/alice", 1000)
	tr.give("jobs/bob", 1001)
	tr.makeMany("jobs/alice", maxPatternCgroups)
	tr.makeMany("jobs/bob", 1)
	s := tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs/alice"); n != maxPatternCgroups || closed || len(s.Conditions) > 0 {
		t.Errorf("at the limit: %d workloads, closed: %v, conditions %v", n, closed, s.Conditions)
	}

	tr.in("jobs/alice/job-") // its name is the first, but it is the newest
	s = tr.until("the next one", bindings, func(s workload.Snapshot) bool {
		_, closed := tr.below(s, "jobs/alice")
		return closed
	})
	n, _ := tr.below(s, "jobs/alice")
	has := slices.ContainsFunc(s.Workloads, func(w policy.Workload) bool { return w.Cgroup.Path == "jobs/alice/job-" })
	if n != maxPatternCgroups || has || !slices.Equal(codes(s), []condition.Code{condition.PatternFull}) {
		t.Errorf("beyond the limit: %d workloads, the newest is one: %v, conditions %v", n, has, s.Conditions)
	}
	if n, closed := tr.below(s, "jobs/bob"); n != 1 || closed {
		t.Errorf("another user: %d workloads, closed: %v", n, closed)
	}
	if use := tr.cgroups.PatternUse(); use.Cgroups != maxPatternCgroups || use.Full == 0 {
		t.Errorf("the bound says %+v", use)
	}

	tr.remove("jobs/alice/job-0000")
	s = tr.until("room", bindings, func(s workload.Snapshot) bool {
		_, closed := tr.below(s, "jobs/alice")
		return !closed
	})
	if n, _ := tr.below(s, "jobs/alice"); n != maxPatternCgroups || len(s.Conditions) > 0 {
		t.Errorf("with room again: %d workloads, conditions %v", n, s.Conditions)
	}
}

// Root's own cgroups are not bounded, and neither are those in a tree that only root may write.
func TestPatternOverTheTreeOfRoot(t *testing.T) {
	tr := newTree(t)
	bindings := []policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs/job-*"})}
	tr.in("jobs").ID()
	tr.makeMany("jobs", maxPatternCgroups+10)
	s := tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs"); n != maxPatternCgroups+10 || closed || len(s.Conditions) > 0 {
		t.Errorf("%d workloads, closed: %v, conditions %v", n, closed, s.Conditions)
	}
}

// Cgroups that ended and are still in the table count, so that nobody can fill the table with them.
func TestEndedCgroupsOfAPatternCount(t *testing.T) {
	tr := newTree(t)
	ended := map[uint64]bool{}
	tr.scopes.FollowTable(Ledger{InTable: func(id uint64) bool { return ended[id] }})
	bindings := []policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs/*"})}
	tr.give("jobs", 1000)
	for i := range maxPatternCgroups {
		name := fmt.Sprintf("jobs/%d", i)
		ended[tr.in(name).ID()] = true
	}
	tr.cgroups.Scan(bindings)
	for i := range maxPatternCgroups {
		tr.remove(fmt.Sprintf("jobs/%d", i))
	}
	tr.in("jobs/new").ID()
	s := tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs"); n != 0 || !closed {
		t.Errorf("%d workloads, closed: %v; want none, closed", n, closed)
	}
	clear(ended)
	s = tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs"); n != 1 || closed {
		t.Errorf("the table has forgotten them: %d workloads, closed: %v", n, closed)
	}
}

// A cgroup with more cgroups in it than Thole reads has no new workloads, and is closed.
func TestPatternOverTooManyCgroups(t *testing.T) {
	tr := newTree(t)
	bindings := []policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs/only"})}
	tr.give("jobs", 1000)
	tr.makeMany("jobs", maxPatternEntries)
	tr.in("jobs/only").ID()
	s := tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs"); n != 0 || !closed {
		t.Errorf("%d workloads, closed: %v; want none, closed", n, closed)
	}
	tr.remove("jobs/job-0000")
	s = tr.cgroups.Scan(bindings)
	if n, closed := tr.below(s, "jobs"); n != 1 || closed {
		t.Errorf("at the limit: %d workloads, closed: %v", n, closed)
	}
}

// A user who makes and removes cgroups all the time has them looked at a bounded number of times. Meanwhile the cgroup
// is closed, and what stays becomes a workload all the same.
func TestPatternOverChurn(t *testing.T) {
	tr := newTree(t)
	const closedFor = 1500 * time.Millisecond
	tr.cgroups.patterns.closedFor = closedFor
	bindings := []policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs/*"})}
	tr.give("jobs", 1000)
	tr.cgroups.Scan(bindings)
	dir := tr.root.Path("jobs/churn")
	looks, closed, began := 0, false, time.Now()
	for end := time.After(patience); ; {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		select {
		case <-tr.cgroups.Changed():
			looks++
			s := tr.cgroups.Changes(bindings)
			if _, now := tr.below(s, "jobs"); now && !closed {
				closed = true
				tr.in("jobs/stays").ID()
			}
			if n, _ := tr.below(s, "jobs"); closed && n == 1 && tr.id("jobs/stays") != 0 {
				goto found
			}
		case <-end:
			t.Fatalf("after %d looks, closed: %v, what stays is no workload", looks, closed)
		default:
		}
	}
found:
	most := patternLooks + 3*(1+int(time.Since(began)/patternLookEvery)) // also where it opens and closes again
	t.Logf("%d looks in %v", looks, time.Since(began))
	if looks > most {
		t.Errorf("%d looks in %v; want at most %d", looks, time.Since(began), most)
	}
	if use := tr.cgroups.PatternUse(); use.Churned == 0 || use.Looks < patternLooks-1 {
		t.Errorf("the bound says %+v", use)
	}
	tr.until("the end of churn", bindings, func(s workload.Snapshot) bool {
		n, closed := tr.below(s, "jobs")
		return n == 1 && !closed && len(s.Conditions) == 0
	})
}
