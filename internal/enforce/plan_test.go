package enforce

import (
	"testing"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// A list is a Scanner that finds these workloads.
type list []policy.Workload

func (l *list) Scan([]policy.Binding) workload.Snapshot      { return workload.Snapshot{Workloads: *l} }
func (l *list) Changes(b []policy.Binding) workload.Snapshot { return l.Scan(b) }
func (l *list) Runs(b []policy.Binding) workload.Snapshot    { return l.Scan(b) }
func (*list) Recall(workload.Snapshot)                       {}

// When numbers come round, one that became free in this epoch is not given again: the table may remember what was
// allowed to its last owner. (Where none is left, the epoch changes: compiler, TestNumbersFreed.)
func TestNumberGivenAgain(t *testing.T) {
	b := newRemotesBench(t)
	running := func(apps ...string) (epoch uint16, number uint32) {
		t.Helper()
		var now list
		for i, app := range apps {
			if app != "" {
				now = append(now, policy.Workload{Kind: policy.KindRun, Labels: policy.Labels{"app": app},
					Cgroup: policy.Cgroup{Path: "thole.slice/" + app + ".scope", ID: uint64(10 + i)}})
			}
		}
		b.scanner = &now
		compiled := b.loaded.result
		if err := b.catchUp(); err != nil || b.loaded.result != compiled {
			t.Fatalf("%v: compiled %t, error %v; want a step", apps, b.loaded.result != compiled, err)
		}
		return b.loaded.epoch, b.loaded.numbers.Next - 1
	}
	running("stays")
	epoch, was := running("stays", "first")
	if now, _ := running("stays"); now != epoch {
		t.Fatalf("the end of a class began epoch %d", now)
	}
	if now, number := running("stays", "", "second"); now != epoch || number == was {
		t.Fatalf("a new class has number %d in epoch %d, which another had before", number, now)
	}
	running("stays")
	b.loaded.result.Numbers.Next = was
	if now, number := running("stays", "", "", "third"); now != epoch || number <= was+1 {
		t.Errorf("number %d was given in epoch %d, in which others had it", number, now)
	}
}
