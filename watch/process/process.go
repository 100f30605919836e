package process

import (
	"os"
	"strconv"
	"strings"
)

// A Process is a process of this machine. The moment of its start distinguishes it from a later one of the same
// number. The zero Process is none.
type Process struct {
	PID     int    `json:"pid"`
	Started string `json:"started"` // in ticks since boot: field 22 of /proc/PID/stat
}

// Find returns the process that has a number now. It returns the zero Process if there is none, or if the process has
// ended and waits for its parent.
func Find(pid int) Process {
	p, _ := find(pid)
	return p
}

// find is Find. It also returns the number of the parent.
func find(pid int) (p Process, parent int) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, 0
	}
	// 16466 (sleep) S 16456 …: the name may contain anything but its last parenthesis.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const state, ppid, start = 0, 1, 19 // fields 3, 4 and 22 of proc_pid_stat(5)
	if len(fields) <= start || fields[state] == "Z" || fields[state] == "X" {
		return Process{}, 0
	}
	parent, err = strconv.Atoi(fields[ppid])
	if err != nil {
		return Process{}, 0
	}
	return Process{PID: pid, Started: fields[start]}, parent
}

// Lives reports whether the process has not ended.
func (p Process) Lives() bool { return p != Process{} && Find(p.PID) == p }

// Cgroup returns the cgroup of the process that has a number now, as this process sees it: "/…". It is "" if there is
// none.
func Cgroup(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if cgroup, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return strings.TrimSuffix(cgroup, " (deleted)")
		}
	}
	return ""
}
