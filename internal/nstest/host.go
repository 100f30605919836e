package nstest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Host is a machine of a test: a network namespace, a mount namespace and a cgroup namespace of its own. It ends with
// its test. Its methods fail the test when they cannot do what they say, unless they return an error.
type Host struct {
	t   testing.TB
	dir string // the host's cgroup root, as a path of the machine

	// The namespaces live as long as these files and the processes in them; no process holds them.
	net, mnt, cgroup *os.File
	root             *Cgroup
	beacon           *beacon
	patience         time.Duration // for what must be gone at the end

	mu      sync.Mutex // guards what follows
	cgroups map[string]*Cgroup
	started []*Process
	closers []func() error
	links   int
	tunnels []*tunnel
}

// New makes a host. It needs root and cgroup2.
func New(t testing.TB) *Host {
	t.Helper()
	Need(t, "root", "cgroup2")
	if modesOfMain.Load() == nil {
		t.Fatal(needsMain)
	}
	h := &Host{t: t, patience: endPatience, cgroups: map[string]*Cgroup{}}
	t.Cleanup(h.end)
	for _, step := range []func() error{h.makeCgroup, h.makeNamespaces, h.makeBeacon} {
		if err := step(); err != nil {
			t.Fatalf("nstest: making a host: %v", err)
		}
	}
	return h
}

func (h *Host) makeCgroup() error {
	root, err := cgroup2Mount()
	if err != nil {
		return err
	}
	h.dir, err = os.MkdirTemp(root, ownerPrefix())
	if err != nil {
		return err
	}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		return err
	}
	h.root, err = h.open("")
	return err
}

// makeNamespaces starts a process in new namespaces, lets it furnish them (runSetup), opens them, and ends it.
func (h *Host) makeNamespaces() error {
	cmd := Reexec(modeSetup)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true,
		CgroupFD:    int(h.root.dir.Fd()),
		// Unshared after the birth in the cgroup, not cloned: so the cgroup is the root of its namespace.
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP,
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return errors.Join(errors.New("furnishing the namespaces failed"), cmd.Wait())
	}
	err = h.openNamespaces(cmd.Process.Pid)
	stdin.Close()
	return errors.Join(err, cmd.Wait())
}

func (h *Host) openNamespaces(pid int) (err error) {
	for name, file := range map[string]**os.File{"net": &h.net, "mnt": &h.mnt, "cgroup": &h.cgroup} {
		if *file, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name)); err != nil {
			return err
		}
		h.OnEnd((*file).Close)
	}
	return nil
}

// T is the test that the host ends with.
func (h *Host) T() testing.TB { return h.t }

// socketRoot is where SocketDir makes directories. It is not TMPDIR: the path of a socket has at most 107 bytes.
const socketRoot = "/tmp"

// SocketDir makes a directory for sockets by which processes of the host and the test reach each other: every namespace
// has it at the same path. It is removed when the host ends.
func (h *Host) SocketDir() (string, error) {
	dir, err := os.MkdirTemp(socketRoot, ownerPrefix())
	if err != nil {
		return "", err
	}
	h.OnEnd(func() error { return os.RemoveAll(dir) })
	return dir, os.Chmod(dir, 0o755)
}

// OnEnd has fn called when the host ends, after its processes.
func (h *Host) OnEnd(fn func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closers = append(h.closers, fn)
}

// end kills all that runs in the host, waits until it is gone, removes the cgroups, and fails the test if anything is
// left: a process, a cgroup, or somebody in the network namespace.
func (h *Host) end() {
	if h.dir == "" {
		return
	}
	h.mu.Lock()
	started, closers := h.started, h.closers
	h.mu.Unlock()

	err := endCgroup(h.dir)
	for _, p := range started {
		<-p.done
	}
	if h.net != nil {
		err = errors.Join(err, h.emptyNetns())
	}
	for _, fn := range closers {
		err = errors.Join(err, fn())
	}
	if err != nil {
		h.t.Errorf("nstest: ending the host: %v", err)
	}
}

// emptyNetns waits until nobody is in the network namespace. It must be open still: its number is used again soon.
func (h *Host) emptyNetns() error {
	id, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", h.net.Fd()))
	if err != nil {
		return err
	}
	var holders []string
	empty := func() bool { holders = inNetns(id); return len(holders) == 0 }
	if !Poll(h.patience, empty) {
		return fmt.Errorf("still in the network namespace: %s", strings.Join(holders, ", "))
	}
	return nil
}

// inNetns lists the processes, and this process's threads, that are in the network namespace ("net:[4026532008]").
func inNetns(id string) []string {
	var holders []string
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net"} {
		links, _ := filepath.Glob(pattern)
		for _, link := range links {
			if got, err := os.Readlink(link); err == nil && got == id {
				holders = append(holders, filepath.Dir(filepath.Dir(link)))
			}
		}
	}
	return holders
}

// cgroup2Mount returns where the machine has its cgroup v2: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside v1.
func cgroup2Mount() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		// 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
		mount, fstype, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(fstype, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted")
}
