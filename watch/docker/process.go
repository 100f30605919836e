package docker

import (
	"path"
	"strings"

	"thole/watch/process"
)

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
