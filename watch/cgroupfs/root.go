package cgroupfs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"thole/watch/process"
)

// TholeSlice is the parent of the cgroups of thole run, below the root.
const TholeSlice = "thole.slice"

// A Root is the root of the cgroup v2 tree as this process sees it. Paths below it
// are written without a leading slash, as in policy.Cgroup.
type Root struct{ dir string }

// OpenRoot finds the cgroup v2 mount of this process's cgroup namespace. (Hybrid
// hosts have it at /sys/fs/cgroup/unified, and a container may see a mount whose
// root is outside of its namespace.)
func OpenRoot() (Root, error) {
	mounts, err := mountsHere()
	if err != nil {
		return Root{}, err
	}
	// A later mount hides an earlier one on the same place.
	for _, dir := range slices.Backward(mounts) {
		if root, err := RootAt(dir); err == nil {
			return root, nil
		}
	}
	return Root{}, errors.New("no cgroup v2 mount with the root of this cgroup namespace: " +
		"try `mount -t cgroup2 none /sys/fs/cgroup`, or see `thole doctor`")
}

// RootAt takes the cgroup directory dir as the root. Levels and paths then count
// from there: it is for trees that are not this process's own.
func RootAt(dir string) (Root, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Root{}, fmt.Errorf("cgroup root %s: %v", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return Root{}, fmt.Errorf("%s is not in a cgroup v2 file system", dir)
	}
	return Root{dir: filepath.Clean(dir)}, nil
}

// mountsHere returns the cgroupMounts of this thread.
func mountsHere() ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for the cgroup v2 mount: %v", err)
	}
	defer f.Close()
	mounts, err := cgroupMounts(f)
	if err != nil {
		return nil, fmt.Errorf("reading /proc/thread-self/mountinfo: %v", err)
	}
	return mounts, nil
}

// cgroupMounts returns the mount points of cgroup v2 whose root is the namespace's
// own, in the order of mountinfo (proc_pid_mountinfo(5)).
func cgroupMounts(mountinfo io.Reader) ([]string, error) {
	var found []string
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		place, fs, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(place)
		if !ok || len(fields) < 5 || fields[3] != "/" || !strings.HasPrefix(fs, "cgroup2 ") {
			continue
		}
		found = append(found, unescape(fields[4]))
	}
	return found, lines.Err()
}

// OfProcess returns the cgroup of the process that has a number now: its path below the root. A process that is
// elsewhere, or in the root itself, has a path that begins with "/", as this process sees it; one that has ended has
// none. Processes are named that way by the kernel, in the cgroup namespace of this process.
func (r Root) OfProcess(pid int) (cgroup string, err error) {
	seen := process.Cgroup(pid)
	above, err := r.seenAs()
	if err != nil {
		return "", err
	}
	if below, ok := strings.CutPrefix(seen, above+"/"); ok && below != "" {
		return below, nil
	}
	return seen, nil
}

// seenAs returns the path by which the kernel names the root in this process's cgroup namespace; "" if it is the
// namespace's own.
func (r Root) seenAs() (string, error) {
	mounts, err := mountsHere()
	if err != nil {
		return "", err
	}
	for _, mount := range slices.Backward(mounts) {
		if r.dir == mount {
			return "", nil
		}
		if below, ok := strings.CutPrefix(r.dir, mount+"/"); ok {
			return "/" + below, nil
		}
	}
	return "", fmt.Errorf("%s is below no mount point of the cgroup v2 tree", r.dir)
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Dir is the root's directory.
func (r Root) Dir() string { return r.dir }

// Path is where the cgroup is in the file system.
func (r Root) Path(cgroup string) string { return filepath.Join(r.dir, cgroup) }

// ID returns the number by which the kernel knows the cgroup. It is never given a
// second time while the machine runs.
func (r Root) ID(cgroup string) (uint64, error) {
	return idAt(unix.AT_FDCWD, r.Path(cgroup), 0, cgroup)
}

// idAt returns the id of the cgroup of a path from an open directory on.
func idAt(dir int, path string, flags int, cgroup string) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(dir, path, flags)
	if err != nil {
		return 0, fmt.Errorf("cgroup %s: asking for its id: %w", cgroup, err)
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("cgroup %s: its file handle has %d bytes, not 8", cgroup, handle.Size())
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil
}

// Lives reports whether a cgroup with this id exists.
func (r Root) Lives(id uint64) (bool, error) {
	fd, err := r.open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, unix.Close(fd)
}

// Named returns the cgroup with this id. The error is fs.ErrNotExist if there is none.
func (r Root) Named(id uint64) (cgroup string, err error) {
	fd, err := r.open(id)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("the cgroup with id %d: %v", id, err)
	}
	return filepath.Rel(r.dir, path)
}

func (r Root) open(id uint64) (fd int, err error) {
	dir, err := unix.Open(r.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the cgroup root %s: %v", r.dir, err)
	}
	defer unix.Close(dir)
	handle := unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id))
	fd, err = unix.OpenByHandleAt(dir, handle, unix.O_PATH|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return -1, fs.ErrNotExist
	case err != nil:
		return -1, fmt.Errorf("looking for the cgroup with id %d: %v", id, err)
	}
	return fd, nil
}

// kernfsHandle is the type of a cgroup's file handle (linux/exportfs.h, FILEID_KERNFS).
const kernfsHandle = 0xfe

// Children returns the names of the cgroups directly below one, ascending; none
// where there is no such cgroup.
func (r Root) Children(cgroup string) ([]string, error) {
	entries, err := os.ReadDir(r.Path(cgroup))
	if Gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %v", cgroup, err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Dying returns the id of a cgroup, and whether the kernel still has some of the cgroups that were removed below it. A
// socket that was made in one of those is a reason for that, also where no list has the socket; pages in the page cache
// are another. If there is no such cgroup, its id is 0.
func (r Root) Dying(cgroup string) (id uint64, some bool, err error) {
	dir, err := unix.Open(r.Path(cgroup), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if Gone(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cgroup %s: %v", cgroup, err)
	}
	defer unix.Close(dir)
	if id, err = idAt(dir, "", unix.AT_EMPTY_PATH, cgroup); err != nil {
		return 0, false, err
	}
	// Of this directory, whatever has its path by now.
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", dir, statFile))
	if Gone(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cgroup %s: %v", cgroup, err)
	}
	dying, ok := valueOf(data, "nr_dying_descendants")
	if !ok {
		return 0, false, fmt.Errorf("cgroup %s: %s has no line \"nr_dying_descendants\"", cgroup, statFile)
	}
	return id, dying != "0", nil
}

// ChildrenUpTo is Children where that may be many: complete is false, and there are no names, if the cgroup has more
// than so many.
func (r Root) ChildrenUpTo(cgroup string, most int) (names []string, complete bool, err error) {
	dir, err := os.Open(r.Path(cgroup))
	if Gone(err) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("cgroup %s: %v", cgroup, err)
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
		switch {
		case len(names) > most:
			return nil, false, nil
		case err == io.EOF || Gone(err):
			slices.Sort(names)
			return names, true, nil
		case err != nil:
			return nil, false, fmt.Errorf("cgroup %s: %v", cgroup, err)
		}
	}
}

// Anybody is the uid of a Writer who may be any user.
const Anybody = 1<<32 - 1

// Writer returns who may make cgroups in one, if that is another than root.
func (r Root) Writer(cgroup string) (uid uint32, is bool, err error) {
	var stat unix.Stat_t
	if err := unix.Lstat(r.Path(cgroup), &stat); err != nil {
		return 0, false, fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	switch {
	case stat.Uid != 0:
		return stat.Uid, true, nil
	case stat.Mode&0o022 != 0:
		return Anybody, true, nil
	}
	return 0, false, nil
}

// Populated reports whether a process lives in the cgroup or below.
func (r Root) Populated(cgroup string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(r.Path(cgroup), EventsFile))
	if err != nil {
		return false, err
	}
	populated, ok := valueOf(data, "populated")
	if !ok {
		return false, fmt.Errorf("cgroup %s: %s has no line \"populated\"", cgroup, EventsFile)
	}
	return populated != "0", nil
}

// valueOf returns the value of a key, in a file that has lines of keys and values.
func valueOf(file []byte, key string) (value string, ok bool) {
	for line := range strings.Lines(string(file)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			return v, true
		}
	}
	return "", false
}

// Remove removes an empty cgroup and the empty ones below it. It fails with EBUSY
// where a process lives in one of them.
func (r Root) Remove(cgroup string) error {
	names, err := r.Children(cgroup)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.Remove(filepath.Join(cgroup, name)); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(r.Path(cgroup)); err != nil && !Gone(err) {
		return fmt.Errorf("removing the cgroup %s: %w", cgroup, err)
	}
	return nil
}

// statFile counts what is below a cgroup.
const statFile = "cgroup.stat"

// EventsFile tells, also by inotify, whether a cgroup is populated.
const EventsFile = "cgroup.events"

// Gone reports whether a cgroup disappeared while it was looked at: ENOENT before
// it is opened, ENODEV after.
func Gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// Join returns the path of a cgroup below another one; the root's path is "".
func Join(parent, name string) string {
	if parent == "" {
		return name
	}
	return parent + "/" + name
}
