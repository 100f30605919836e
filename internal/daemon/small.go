package daemon

import (
	"maps"
	"reflect"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/ruleset"
	"thole/watch"
)

// A turnover are the few workloads that began and ended since the table was made.
type turnover struct {
	began    []policy.Workload
	ended    []policy.Workload // and left no socket
	outlived []policy.Workload // ended just now, and left one
}

func (t turnover) nothing() bool { return len(t.began)+len(t.ended)+len(t.outlived) == 0 }

// small makes the change that a glance at single cgroups calls for, at the cost of these,
// however many others run. It does so only where the change takes nothing away from
// anybody that lives, and where no class comes or goes; else, or where it fails, it
// returns false, and the whole of what runs is to be looked at.
func (e *enforcer) small() bool {
	if !e.settled || e.disbelieved || e.badTable != nil {
		return false
	}
	glance, ok := e.runs.Glance()
	if !ok {
		return false
	}
	t, ok := e.turnover(glance)
	if !ok {
		return false
	}
	if t.nothing() {
		return true
	}
	if drifted, err := e.look(); drifted || err != nil {
		return false
	}
	d, ok := e.result.Difference(t.began, t.ended)
	if !ok {
		return false
	}
	if !d.Patch.Empty() {
		if err := e.load(d.Patch.Change(tableName), func() *ruleset.Table {
			return e.result.Table.Patched(d.Patch)
		}); err != nil {
			e.log.Warn("an incremental change failed: the table is compiled again", "error", err)
			return false
		}
	}
	e.take(t, d)
	return true
}

// turnover compares what is at single cgroups with what the table knows of them. ok is
// false where more than that changes, or where something may be taken away (takesAway).
func (e *enforcer) turnover(g watch.Glance) (t turnover, ok bool) {
	for _, w := range g.Workloads {
		id, known := e.enforced.named(w.Cgroup.Path)
		before, _ := e.enforced.of(id)
		switch {
		case !known && len(w.Own) == 0 && e.beginsAlone(w):
			t.began = append(t.began, w)
		case !known || id != w.Cgroup.ID || !sameIdentity(before, w) || !reflect.DeepEqual(before.Own, w.Own):
			return t, false
		}
	}
	died := map[uint64]policy.Workload{}
	for _, cgroup := range g.Gone {
		id, known := e.enforced.named(cgroup)
		if !known || e.enforced.ended[id] {
			continue
		}
		w, bound := e.enforced.of(id)
		if lives, err := e.dead.Lives(id); err != nil || lives || !bound || len(w.Own) > 0 {
			return t, false
		}
		died[id] = w
	}
	if len(died) == 0 && (e.enforced.gone() == 0 || e.now().Sub(e.buried) < endedPoll) {
		return t, true
	}
	e.buried = e.now()
	dead := maps.Clone(died)
	for id := range e.enforced.ended {
		dead[id] = e.enforced.workloads[id]
	}
	left := maps.Clone(dead)
	runs := func(id uint64) bool {
		_, known := e.enforced.of(id)
		return known && !e.enforced.ended[id]
	}
	if err := bury(e.dead, left, runs); err != nil {
		return t, false // it is said what stays, and why
	}
	for id, w := range dead {
		if _, stays := left[id]; !stays {
			t.ended = append(t.ended, w)
		} else if _, now := died[id]; now {
			t.outlived = append(t.outlived, w)
		}
	}
	return t, true
}

// take makes a turnover that is loaded what is known of the table.
func (e *enforcer) take(t turnover, d compiler.Difference) {
	e.result.Take(d)
	e.loaded, e.numbers, e.settled = &e.result.Table, e.result.Numbers, true
	e.enforced.take(t)
	e.applied = e.now()
	if d.Patch.Empty() {
		return
	}
	e.log.Info("table changed", "epoch", e.epoch, "began", len(t.began), "ended", len(t.ended))
	e.record(t, d)
}
