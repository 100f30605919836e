package nstest

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Do runs fn on a thread that is in the host's network, mount and cgroup namespaces, and returns when fn did. Sockets
// that fn opens stay the host's. But goroutines that fn starts are not in the host, and what counts where the calling
// thread is, rather than where its socket is, must happen within fn: the kernel resolves the level of "socket cgroupv2"
// from the cgroup namespace of the thread that sends the netlink message.
//
// fn may fail the test: Do then ends the calling goroutine, too.
func (h *Host) Do(fn func()) error {
	var err error
	returned := false
	onThrownAwayThread(func() {
		if err = h.enter(); err == nil {
			fn()
		}
		returned = true
	})
	if !returned {
		runtime.Goexit()
	}
	return err
}

// onThrownAwayThread runs fn on a thread of its own that ends with it, whatever fn did to it. That cannot be the
// process's first thread, which Go would keep as it is, and so the namespaces alive: that one is held back meanwhile.
func onThrownAwayThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			fn()
			return // still locked, so the thread ends here
		}
		onThrownAwayThread(fn)
		runtime.UnlockOSThread()
	}()
	<-done
}

// enter moves the calling thread, which must be locked and never used again, into the host.
func (h *Host) enter() error {
	return enterNamespaces(int(h.net.Fd()), int(h.mnt.Fd()), int(h.cgroup.Fd()))
}

func enterNamespaces(net, mnt, cgroup int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a thread that shares its cwd cannot change mount namespaces
		return fmt.Errorf("unshare fs: %w", err)
	}
	for _, ns := range []struct{ fd, kind int }{
		{net, unix.CLONE_NEWNET},
		{mnt, unix.CLONE_NEWNS},
		{cgroup, unix.CLONE_NEWCGROUP},
	} {
		if err := unix.Setns(ns.fd, ns.kind); err != nil {
			return fmt.Errorf("setns %#x: %w", ns.kind, err)
		}
	}
	return nil
}

// enterArgs are the arguments of the process that was born in its cgroup, enters the host and becomes the program:
//
//	nstest-enter NET MNT CGROUP UID PROGRAM ARGV0 ARGS…
//
// The namespaces are named as the test's file descriptors, for the descriptors of the process are the program's.
func (h *Host) enterArgs(uid int, program string, argv []string) []string {
	args := []string{modeEnter}
	for _, ns := range []*os.File{h.net, h.mnt, h.cgroup} {
		args = append(args, fdPath(ns))
	}
	args = append(args, strconv.Itoa(uid), program)
	return append(args, argv...)
}

// fdPath is a path by which any process of root reaches the file that f has open.
func fdPath(f *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

func runEnter(args []string) error {
	runtime.LockOSThread() // exec keeps the namespaces of the thread that calls it
	var fds [3]int
	for i := range fds {
		fd, err := unix.Open(args[i], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", args[i], err)
		}
		fds[i] = fd
	}
	uid, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	program, argv := args[4], args[5:]

	cwd, _ := os.Getwd()
	if err := enterNamespaces(fds[0], fds[1], fds[2]); err != nil {
		return err
	}
	_ = unix.Chdir(cwd) // below /run or /sys there may be no such place: then it is /
	if err := becomeUser(uid); err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", program, unix.Exec(program, argv, os.Environ()))
}

// becomeUser gives all privileges away, unless uid is root's.
func becomeUser(uid int) error {
	if uid == 0 {
		return nil
	}
	if err := unix.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := unix.Setresgid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}
