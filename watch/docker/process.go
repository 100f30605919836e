package docker

import (
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"thole/watch/process"
)

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
	cgroup, ok := strings.CutPrefix(process.Cgroup(pid), "/")
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
