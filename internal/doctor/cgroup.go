package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thole/watch/cgroupfs"
)

func cgroupMount() (cgroupfs.Root, Finding) {
	f := Finding{Check: "cgroup v2", Status: OK}
	root, err := cgroupfs.OpenRoot()
	if err != nil {
		return root, f.missing("not mounted", "processes cannot be distinguished: nothing is enforced",
			"boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup")
	}
	f.Found = "at " + root.Dir()
	return root, f
}

// initialCgroupNamespace is the inode number of the initial cgroup namespace
// (linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const initialCgroupNamespace = 0xEFFFFFFB

func cgroupNamespace() []Finding {
	f := Finding{Check: "cgroup namespace", Status: OK, Found: "the machine's"}
	info, err := os.Stat("/proc/self/ns/cgroup")
	if err != nil {
		return nil // a kernel without them
	}
	if info.Sys().(*syscall.Stat_t).Ino == initialCgroupNamespace {
		return []Finding{f}
	}
	return []Finding{f.warning("not the machine's",
		"only processes below the root of this cgroup namespace can have labels",
		"run the daemon outside of containers, or with their cgroup namespace set to host")}
}

// cgroupDelegation asks whether a cgroup namespace is a boundary for processes, which
// is a property of the whole cgroup v2 tree (cgroups(7), nsdelegate).
func cgroupDelegation(root cgroupfs.Root) []Finding {
	f := Finding{Check: "cgroup delegation", Status: OK, Found: "nsdelegate"}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	switch {
	case err != nil || root.Dir() == "":
		return nil // the line cgroup v2 says so
	case delegates(string(mounts)):
		return []Finding{f}
	}
	return []Finding{f.warning("no nsdelegate",
		"a container that can write to the node's cgroup tree (-v /sys/fs/cgroup) can get rid of its labels",
		"mount -o remount,nsdelegate "+root.Dir())}
}

// delegates looks at the options of the file system in
// "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate".
func delegates(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		_, device, ok := strings.Cut(strings.TrimSpace(line), " - cgroup2 ")
		fields := strings.Fields(device)
		if ok && len(fields) == 2 && slices.Contains(strings.Split(fields[1], ","), "nsdelegate") {
			return true
		}
	}
	return false
}

// inScratch makes a cgroup, checks it, and runs the probe inside it.
func inScratch(ctx context.Context, root cgroupfs.Root, probe func(context.Context) *exec.Cmd) []Finding {
	attributes := Finding{Check: "cgroup attributes", Status: OK, Found: "trusted.* can be stored"}
	kernel := Finding{Check: "nftables"}
	const unknown = "it is unknown what the kernel enforces"
	if root.Dir() == "" {
		err := errors.New("cannot be tried without cgroup v2")
		return []Finding{kernel.unknown(err, unknown, "see the line cgroup v2")}
	}
	dir, err := os.MkdirTemp(root.Dir(), "thole-doctor-")
	if err != nil {
		return []Finding{kernel.unknown(err, "thole run cannot make cgroups; "+unknown, "sudo thole doctor")}
	}
	defer os.Remove(dir)
	if err := tryAttribute(dir); err != nil {
		attributes = attributes.missing(err.Error(), "thole run cannot store labels",
			"sudo thole doctor; in a container: with CAP_SYS_ADMIN")
	}
	findings, err := runProbe(ctx, probe, dir)
	if err != nil {
		findings = []Finding{kernel.unknown(err, unknown, "sudo thole doctor")}
	}
	return append([]Finding{attributes}, findings...)
}

func tryAttribute(dir string) error {
	const name, value = "trusted.thole.doctor", "x"
	if err := unix.Setxattr(dir, name, []byte(value), 0); err != nil {
		return fmt.Errorf("setxattr %s: %v", name, err)
	}
	buf := make([]byte, 8)
	n, err := unix.Getxattr(dir, name, buf)
	if err != nil {
		return fmt.Errorf("getxattr %s: %v", name, err)
	}
	if string(buf[:n]) != value {
		return fmt.Errorf("getxattr %s: got %q, want %q", name, buf[:n], value)
	}
	return nil
}

// probeTimeout is far more than the probe takes on a slow machine.
const probeTimeout = time.Minute

// runProbe starts the probe in a new network namespace and in the cgroup dir.
func runProbe(ctx context.Context, probe func(context.Context) *exec.Cmd, dir string) ([]Finding, error) {
	cgroup, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var stderr strings.Builder
	cmd := probe(ctx)
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("probing in %s: %v: %s", filepath.Base(dir), err, strings.TrimSpace(stderr.String()))
	}
	var findings []Finding
	if err := json.Unmarshal(out, &findings); err != nil {
		return nil, fmt.Errorf("probing: reading findings: %v", err)
	}
	return findings, nil
}
