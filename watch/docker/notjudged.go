package docker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"thole/internal/condition"
	"thole/watch/process"
	"thole/watch/workload"
)

// maxListingsWithoutCgroup is the number of listings of all containers, one every listInterval, after which a
// container is a problem that the engine lists as running, and of which neither a cgroup nor a living process was
// found. In fewer listings that happens to every container that ends or is restarted.
const maxListingsWithoutCgroup = 3

// notJudged returns the problems of containers that run and that no policy judges. Containers that the engine lists as
// running and of which no living process is known are inspected.
//
// It needs the lock, and c.cgroups must have been read since the lock was taken. Then the cgroup of a process that
// lives now existed when c.cgroups was read: that a container is being started, restarted or stopped makes no
// problem.
func (c *containers) notJudged() []condition.Condition {
	var problems []condition.Condition
	for _, id := range slices.Sorted(maps.Keys(c.records)) {
		problems = append(problems, c.notJudgedOf(id)...)
	}
	slices.SortStableFunc(problems, func(a, b condition.Condition) int { return cmp.Compare(a.Where, b.Where) })
	return problems
}

// notJudgedOf returns the problems of one container, as notJudged does. If c.cgroups may lack a cgroup that was just
// created, a problem is for notJudged to tell.
func (c *containers) notJudgedOf(id string) (problems []condition.Condition) {
	r := c.records[id]
	_, found := c.cgroups[id]
	if r == nil || !r.running || found && !r.modeUnknown {
		return nil
	}
	lives := found || r.process.Lives()
	if !lives && r.listingsWithoutCgroup < maxListingsWithoutCgroup {
		c.queues.inspect.add(id) // it has ended or is restarted, or its first process is not known yet
		return nil
	}
	c.reported[id] = true
	if !found {
		problems = append(problems, r.notFound(lives))
	}
	if r.modeUnknown {
		reason := fmt.Sprintf("its network mode %q is unknown", r.facts[workload.FactNetwork])
		problems = append(problems, r.problem(reason, ""))
	}
	return problems
}

// notFound is the problem of a container whose cgroup was not found.
func (r *record) notFound(lives bool) condition.Condition {
	place := ""
	if lives {
		place = fmt.Sprintf("; its process %d is in the cgroup %s", r.process.PID, process.Cgroup(r.process.PID))
	}
	return r.problem("it runs, and its cgroup was not found", place)
}

func (r *record) problem(reason, detail string) condition.Condition {
	return condition.Condition{Code: condition.ContainerNotJudged, Where: "container " + r.name,
		Text: reason + ": no policy protects or restricts it" + detail + `: see the line "engine" of thole doctor`}
}

// notJudgedMayChange reports whether another record of a container can change what notJudged returns. It needs the
// lock.
func (c *containers) notJudgedMayChange(id string, before, after *record) bool {
	if before == nil || after == nil {
		return true
	}
	if _, found := c.cgroups[id]; found {
		return false // the problems of its network mode are compared by same
	}
	if !after.running {
		return c.reported[id]
	}
	overdue := after.listingsWithoutCgroup == maxListingsWithoutCgroup &&
		before.listingsWithoutCgroup < maxListingsWithoutCgroup
	return !before.running || before.process != after.process || overdue
}
