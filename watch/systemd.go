package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"thole/watch/cgroupfs"
)

// A Manager makes the scopes of thole run where the cgroup tree is not ours to
// change: systemd's.
type Manager interface {
	// Start makes the cgroup of a unit in thole.slice. A process of ours is in it until
	// release is called, and no other. fs.ErrExist: there is a unit of that name.
	Start(unit, description string) (release func(), err error)
}

// FindManager returns systemd if it is pid 1 and its cgroup tree is ours, else nil.
// In a cgroup namespace, as in a container, it is not: what is below is made by hand.
func FindManager() Manager {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() { // sd_booted(3)
		return nil
	}
	info, err := os.Stat("/proc/self/ns/cgroup")
	if err != nil || info.Sys().(*syscall.Stat_t).Ino != initialCgroupNamespace {
		return nil
	}
	return systemd{}
}

// initialCgroupNamespace is the inode number of the initial cgroup namespace
// (linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const initialCgroupNamespace = 0xEFFFFFFB

// systemd makes transient scopes. They have neither User= nor Delegate=: both would
// give a cgroup to a user, who could move processes into it and out of it. It is
// asked at its own socket, which needs no message bus, by a connection for each
// scope: none has to be mended.
type systemd struct{}

// unitExists is the name of systemd's error if there is a unit of that name.
const unitExists = "org.freedesktop.systemd1.UnitExists"

// systemdPatience is far more than it takes on a slow machine.
const systemdPatience = 20 * time.Second

func (systemd) Start(unit, description string) (_ func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), systemdPatience)
	defer cancel()
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for a scope: %v", err)
	}
	defer conn.Close()
	pid, release, err := hold()
	if err != nil {
		return nil, fmt.Errorf("starting the first process of the scope %s: %v", unit, err)
	}
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, unit, "fail", []dbus.Property{
		dbus.PropDescription(description),
		dbus.PropSlice(cgroupfs.TholeSlice),
		dbus.PropPids(pid),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}, done)
	if err == nil {
		err = finished(ctx, done)
	} else if refused, ok := errors.AsType[godbus.Error](err); ok && refused.Name == unitExists {
		release()
		return nil, fs.ErrExist
	}
	if err != nil {
		release()
		return nil, fmt.Errorf("systemd does not start the scope %s: %v: see `journalctl -u %[1]s`", unit, err)
	}
	return release, nil
}

func finished(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		if result != "done" {
			return errors.New("its job ended with " + result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hold starts a process that does nothing until release is called, or we end:
// systemd makes no scope without a process, and the one that asked for labels is not
// moved before the table knows them.
func hold() (pid uint32, release func(), err error) {
	cmd := exec.Command("cat")
	cmd.Env = []string{}
	var in io.Closer
	if in, err = cmd.StdinPipe(); err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, errors.Join(err, in.Close())
	}
	release = func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}
	return uint32(cmd.Process.Pid), release, nil
}
