package docker

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"thole/internal/condition"
	"thole/watch/workload"
)

// unseenListings is the number of listings of all containers, one every listInterval, after which a container is a
// problem that the engine lists as running, and of which neither a cgroup nor a living process was found. In fewer
// listings that happens to every container that ends or is restarted.
const unseenListings = 3

// A process is a process of this machine. The moment of its start distinguishes it from a later one of the same number.
type process struct {
	pid     int
	started string // field 22 of /proc/PID/stat
}

// findProcess returns the process that has a number now. It returns the zero process if there is none, or if the
// process has ended and waits for its parent.
func findProcess(pid int) process {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}
	}
	// 16466 (sleep) S 16456 …: the name may contain anything but its last parenthesis.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const state, start = 0, 19 // fields 3 and 22 of proc_pid_stat(5)
	if len(fields) <= start || fields[state] == "Z" || fields[state] == "X" {
		return process{}
	}
	return process{pid: pid, started: fields[start]}
}

func (p process) lives() bool { return p != process{} && findProcess(p.pid) == p }

// cgroupOf returns the cgroup of a process as this process sees it, "/…"; "" if it has ended.
func cgroupOf(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if cgroup, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return cgroup
		}
	}
	return ""
}

// notJudged returns the problems of containers that run and that no policy judges. Containers that the engine lists as
// running and of which no living process is known are inspected.
//
// It needs the lock, and d.living must have been read since the lock was taken. Then the cgroup of a process that lives
// now existed when d.living was read: that a container is being started, restarted or stopped makes no problem.
func (d *Docker) notJudged() []condition.Condition {
	d.reported = map[string]bool{}
	var problems []condition.Condition
	for _, id := range slices.Sorted(maps.Keys(d.records)) {
		r := d.records[id]
		_, found := d.living[id]
		if !r.running || found && !r.modeUnknown {
			continue
		}
		lives := found || r.process.lives()
		if !lives && r.unseen < unseenListings {
			d.inspects.add(id) // it has ended or is restarted, or its first process is not known yet
			continue
		}
		d.reported[id] = true
		if !found {
			problems = append(problems, r.notFound(lives))
		}
		if r.modeUnknown {
			reason := fmt.Sprintf("its network mode %q is unknown", r.facts[workload.FactNetwork])
			problems = append(problems, r.problem(reason, ""))
		}
	}
	slices.SortStableFunc(problems, func(a, b condition.Condition) int { return cmp.Compare(a.Where, b.Where) })
	return problems
}

// notFound is the problem of a container whose cgroup was not found.
func (r *record) notFound(lives bool) condition.Condition {
	place := ""
	if lives {
		place = fmt.Sprintf("; its process %d is in the cgroup %s", r.process.pid, cgroupOf(r.process.pid))
	}
	return r.problem("it runs, and its cgroup was not found", place)
}

func (r *record) problem(reason, detail string) condition.Condition {
	return condition.Condition{Code: condition.ContainerNotJudged, Where: "container " + r.name,
		Text: reason + ": no policy protects or restricts it" + detail + `: see the line "engine" of thole doctor`}
}

// judgedAnew reports whether another record of a container can change what notJudged returns. It needs the lock.
func (d *Docker) judgedAnew(id string, before, after *record) bool {
	if before == nil || after == nil {
		return true
	}
	if _, found := d.living[id]; found {
		return false // the problems of its network mode are compared by same
	}
	if !after.running {
		return d.reported[id]
	}
	overdue := after.unseen == unseenListings && before.unseen < unseenListings
	return !before.running || before.process != after.process || overdue
}
