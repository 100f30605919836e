package nstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// janitor is a process beside the test binary, in a session of its own. It sleeps in a read of a pipe whose other end
// only the test binary has. When that ends, in whatever way (SIGKILL too), the janitor kills what is left in the
// binary's cgroups and removes them; namespaces, veths and mounts go with the last process. So no process has to watch
// its parent, and daemons that forked away twice are caught as well.
type janitor struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout bytes.Buffer
}

// startJanitor also removes what earlier test binaries left behind whose janitor was killed with them.
func startJanitor() (*janitor, error) {
	j := &janitor{cmd: Reexec(modeJanitor, ownerPrefix())}
	j.cmd.Stdout = &j.stdout
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := j.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	j.stdin = stdin
	return j, j.cmd.Start()
}

// stop lets the janitor do its work and returns the names of the cgroups that it found.
func (j *janitor) stop() string {
	j.stdin.Close()
	if err := j.cmd.Wait(); err != nil {
		fmt.Fprintln(&j.stdout, "nstest-janitor:", err)
	}
	return j.stdout.String()
}

func runJanitor(args []string) error {
	root, err := cgroup2Mount()
	if err != nil {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // nothing can be left where nothing can be made
		return nil
	}
	sweep(root, stale)
	removeDirs(stale)
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // whatever ends the read, the test binary is gone
	ours := func(name string) bool { return strings.HasPrefix(name, args[0]) }
	swept := sweep(root, ours)
	removeDirs(ours)
	for _, name := range swept {
		fmt.Println(name) // last: nobody listens if the test binary was killed, and that ends this process
	}
	return nil
}

// sweep ends and removes the cgroups directly below root that gone says yes to, and returns their names.
func sweep(root string, gone func(name string) bool) []string {
	var swept []string
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if !e.IsDir() || !gone(e.Name()) {
			continue
		}
		if err := endCgroup(filepath.Join(root, e.Name())); err == nil {
			swept = append(swept, e.Name())
		}
	}
	return swept
}

// removeDirs removes the directories of Host.SocketDir that gone says yes to.
func removeDirs(gone func(name string) bool) {
	entries, _ := os.ReadDir(socketRoot)
	for _, e := range entries {
		if gone(e.Name()) {
			_ = os.RemoveAll(filepath.Join(socketRoot, e.Name()))
		}
	}
}

// A test's cgroup, or directory, is named nstest-<pid namespace>-<pid>-<start time>-<random>, which tells whether its
// owner still lives, also when its pid was given to another process since.
func ownerPrefix() string {
	return fmt.Sprintf("nstest-%s-%d-%s-", pidNamespace(), os.Getpid(), startTime(os.Getpid()))
}

// stale says whether name is that of a test's cgroup whose owner is gone. Of other pid namespaces it cannot tell.
func stale(name string) bool {
	parts := strings.Split(name, "-")
	if len(parts) != 5 || parts[0] != "nstest" || parts[1] != pidNamespace() {
		return false
	}
	pid, err := strconv.Atoi(parts[2])
	return err == nil && startTime(pid) != parts[3]
}

// pidNamespace returns the number of this process's pid namespace.
func pidNamespace() string {
	link, _ := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	return strings.Trim(link, "pid:[]")
}

// startTime returns field 22 of /proc/PID/stat: the moment, in ticks since boot, at which pid started; "" if it is
// gone.
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name in field 2 may hold anything but this
	fields := strings.Fields(string(rest))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// endCgroup kills what runs in the cgroup dir and below, waits until it is gone, and removes the tree.
func endCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	empty := func() bool {
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		return err != nil || strings.Contains(string(events), "populated 0")
	}
	if !Poll(endPatience, empty) {
		return fmt.Errorf("%s still has processes %v after being killed", dir, endPatience)
	}
	return removeTree(dir)
}

// endPatience is how long what was killed may take to be gone.
const endPatience = 10 * time.Second

func removeTree(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
