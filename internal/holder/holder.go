package holder

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A Process has a socket.
type Process struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
	Cgroup  string `json:"cgroup"` // in which it is now, below the root of the cgroups
}

// SocketsOf returns the inodes of the sockets that a process has. The error is fs.ErrPermission if the caller may not
// know them.
func SocketsOf(pid int) ([]uint32, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	names, err := namesIn(dir)
	if err != nil {
		return nil, err
	}
	var inodes []uint32
	for _, name := range names {
		target, err := os.Readlink(dir + "/" + name)
		if errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		text, is := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
		if inode, err := strconv.ParseUint(text, 10, 32); is && err == nil {
			inodes = append(inodes, uint32(inode))
		}
	}
	slices.Sort(inodes)
	return slices.Compact(inodes), nil
}

// Of returns the processes that have the sockets with these inodes, as far as the caller may know them.
func Of(inodes map[uint32]bool) (map[uint32][]Process, error) {
	names, err := namesIn("/proc")
	if err != nil {
		return nil, err
	}
	holders := map[uint32][]Process{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		has, _ := SocketsOf(pid) // it may have ended, or be another user's
		var process *Process
		for _, inode := range has {
			if !inodes[inode] {
				continue
			}
			if process == nil {
				process = describe(pid)
			}
			holders[inode] = append(holders[inode], *process)
		}
	}
	for _, list := range holders {
		slices.SortFunc(list, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	}
	return holders, nil
}

func namesIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	return names, nil
}

// describe names a process. One that has just ended has no name.
func describe(pid int) *Process {
	p := &Process{PID: pid}
	dir := "/proc/" + strconv.Itoa(pid)
	if name, err := os.ReadFile(dir + "/comm"); err == nil {
		p.Program = strings.TrimSuffix(string(name), "\n")
	}
	data, _ := os.ReadFile(dir + "/cgroup") // where it cannot be read, the cgroup is not known
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/"); ok {
			p.Cgroup = cmp.Or(path, ".")
		}
	}
	return p
}
