package docker

import (
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// A process is a process of this machine. The moment of its start distinguishes it from a later one of the same
// number.
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

// networkNamespace returns the id of the network namespace of a container that was inspected; 0: it does not run.
func networkNamespace(c container) uint64 {
	info, err := os.Stat("/proc/" + strconv.Itoa(c.details.pid) + "/ns/net")
	if err != nil {
		return 0
	}
	if _, ok := placeOfProcess(c.details.pid, c.id); !ok {
		return 0 // it has ended, and the number may be another's
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// placeOfProcess returns the parent of the container's cgroup that a process is in. ok is false if the process is not
// in a cgroup of that container.
func placeOfProcess(pid int, id string) (place string, ok bool) {
	cgroup, ok := strings.CutPrefix(cgroupOf(pid), "/")
	if !ok {
		return "", false
	}
	for p := cgroup; p != "."; p = path.Dir(p) {
		if found, ok := containerID(path.Base(p)); ok && found == id {
			return path.Dir(p), true
		}
	}
	return "", false
}
