package nstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Cgroup is a cgroup of a host, and where to start processes. When it was removed and made again, ask In again.
type Cgroup struct {
	host *Host
	path string // as seen in the host, without the leading slash; "" is the host's root
	id   uint64
	dir  *os.File
	uid  int // who starts processes
}

// In returns the cgroup with this path, as seen in the host ("thole.slice/web"); it is made if there is none. The
// host's root is "".
func (h *Host) In(path string) *Cgroup {
	h.t.Helper()
	path = strings.Trim(path, "/")
	c, err := h.open(path)
	if err != nil {
		h.t.Fatalf("nstest: cgroup %q: %v", path, err)
	}
	return c
}

func (h *Host) open(path string) (*Cgroup, error) {
	name := h.CgroupDir(path)
	if err := os.MkdirAll(name, 0o755); err != nil {
		return nil, err
	}
	id, err := cgroupID(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.cgroups[path]; c != nil && c.id == id {
		return c, nil
	}
	dir, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	h.closers = append(h.closers, dir.Close)
	c := &Cgroup{host: h, path: path, id: id, dir: dir}
	h.cgroups[path] = c
	return c, nil
}

// MkCgroup makes the cgroup and returns its id.
func (h *Host) MkCgroup(path string) uint64 {
	h.t.Helper()
	return h.In(path).ID()
}

// CgroupID returns the id of the cgroup with this path, 0 if there is none.
func (h *Host) CgroupID(path string) uint64 {
	h.t.Helper()
	id, err := cgroupID(h.CgroupDir(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatalf("nstest: id of cgroup %q: %v", path, err)
	}
	return id
}

// CgroupDir returns where the cgroup is for who is not in the host; the test itself, for one.
func (h *Host) CgroupDir(path string) string { return filepath.Join(h.dir, path) }

// Rmdir removes the cgroup with this path, as soon as nothing runs in it any more.
func (h *Host) Rmdir(path string) {
	h.t.Helper()
	var err error
	gone := func() bool {
		err = os.Remove(h.CgroupDir(path))
		return !errors.Is(err, unix.EBUSY)
	}
	if !Poll(endPatience, gone) || err != nil {
		h.t.Fatalf("nstest: removing cgroup %q: %v", path, err)
	}
}

// As returns the same cgroup, in which processes are started by uid, without any privilege.
func (c *Cgroup) As(uid int) *Cgroup {
	as := *c
	as.uid = uid
	return &as
}

// Host is the host that the cgroup is of.
func (c *Cgroup) Host() *Host { return c.host }

// Path is the cgroup's path as seen in the host, as in /proc/PID/cgroup: with a leading slash.
func (c *Cgroup) Path() string { return "/" + c.path }

// Dir is CgroupDir of this cgroup.
func (c *Cgroup) Dir() string { return c.host.CgroupDir(c.path) }

// ID is what the kernel's "socket cgroupv2" compares. It stays when the cgroup is gone.
func (c *Cgroup) ID() uint64 { return c.id }

// Pids lists the processes directly in the cgroup.
func (c *Cgroup) Pids() []int {
	c.host.t.Helper()
	procs, err := os.ReadFile(filepath.Join(c.Dir(), "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.host.t.Fatalf("nstest: processes of cgroup %q: %v", c.path, err)
	}
	var pids []int
	for _, field := range strings.Fields(string(procs)) {
		pid, _ := strconv.Atoi(field)
		pids = append(pids, pid)
	}
	return pids
}

// Adopt moves a running process into the cgroup. Its sockets stay those of the cgroup that they were born in.
func (c *Cgroup) Adopt(pid int) {
	c.host.t.Helper()
	if err := os.WriteFile(filepath.Join(c.Dir(), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		c.host.t.Fatalf("nstest: moving process %d to cgroup %q: %v", pid, c.path, err)
	}
}

// Kill kills all that runs in the cgroup and below, and waits until it is gone. The cgroup is removed.
func (c *Cgroup) Kill() {
	c.host.t.Helper()
	if err := endCgroup(c.Dir()); err != nil {
		c.host.t.Fatalf("nstest: %v", err)
	}
}

func cgroupID(path string) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return 0, &fs.PathError{Op: "name_to_handle_at", Path: path, Err: err}
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("%s is not in a cgroup v2", path)
	}
	return nativeUint64(handle.Bytes()), nil
}
