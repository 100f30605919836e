package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds for how long Kill looks for descendants. Each look stops what it finds, so that the next one finds
// nothing new, unless a process forks while it is being stopped.
const patience = time.Second

// Kill ends the process and all its descendants, by SIGKILL. It first stops them, so that none of them starts another
// one meanwhile, or is adopted by init before it is found. A process that has ended already is no error.
func (p Process) Kill() error {
	tree := family{}
	defer tree.close()
	if !tree.stop(p) {
		return nil
	}
	// A process that is being forked at one look is found at the next.
	for quiet, until := 0, time.Now().Add(patience); quiet < 2 && time.Now().Before(until); {
		grew, err := tree.grow()
		if err != nil {
			return errors.Join(err, tree.kill())
		}
		if quiet++; grew {
			quiet = 0
		}
	}
	return tree.kill()
}

// A family are processes that are stopped: their pidfds by number. While a pidfd is open and its process not waited
// for, the number may be given to another one; so whatever is read of a number is compared after its pidfd is open.
type family map[int]int

// stop stops a process and adds it. It reports whether the process lives.
func (f family) stop(p Process) bool {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return false
	}
	if !p.Lives() || unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0) != nil {
		_ = unix.Close(fd)
		return false
	}
	f[p.PID] = fd
	return true
}

// grow stops and adds the children of those that are in the family. It reports whether there were new ones.
func (f family) grow() (grew bool, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, fmt.Errorf("looking for the children of a process: %v", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if _, is := f[pid]; err != nil || is {
			continue
		}
		if child, parent := find(pid); f.has(parent) && child != (Process{}) && f.stop(child) {
			grew = true
		}
	}
	return grew, nil
}

func (f family) has(pid int) bool {
	_, is := f[pid]
	return is
}

func (f family) kill() error {
	var failed error
	for pid, fd := range f {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, fmt.Errorf("ending process %d: %v", pid, err))
		}
	}
	return failed
}

func (f family) close() {
	for _, fd := range f {
		_ = unix.Close(fd)
	}
}
