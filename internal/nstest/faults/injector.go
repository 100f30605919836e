package faults

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// An Injector fails system calls on netlink sockets, whatever in a process makes them: the kernel
// asks about each call that reads or writes (seccomp_unotify(2)), and one in so many on a
// netlink socket ends with an error, before it is made.
type Injector struct {
	mu    sync.Mutex // guards what follows
	r     *rand.Rand
	rate  int // one in so many calls fails; 0: none
	count map[string]int
}

// Mode is what a package whose tests use an Injector passes to nstest.Main.
var Mode = nstest.Mode{Name: modeName, Run: runWrapped}

const modeName = "-nstest-faults" // argv[1] of the command that Wrap returns

// New returns an Injector that fails no call yet.
func New(seed uint64) *Injector {
	return &Injector{r: rand.New(rand.NewPCG(seed, 5)), count: map[string]int{}}
}

// Wrap returns the command by which a program begins, with its argv[0] and arguments, whose
// calls Follow decides about: until it does, the process waits at the first.
func (*Injector) Wrap(t testing.TB, program string, argv ...string) []string {
	t.Helper()
	nstest.RequireMode(t, modeName)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, modeName, program}, argv...)
}

// Set has one in rate calls fail from now on, by chance; 0: none. Of sock_diag and rtnetlink,
// of which few calls are needed for one thing, ten times as many.
func (f *Injector) Set(rate int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate = rate
}

// Count returns how many calls have failed, by the socket's protocol and what was done:
// "sock_diag write", for instance.
func (f *Injector) Count() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.count)
}

// The calls that the kernel asks about, and their names.
var faultCalls = map[int]string{
	unix.SYS_READ: "read", unix.SYS_RECVFROM: "read", unix.SYS_RECVMSG: "read",
	unix.SYS_WRITE: "write", unix.SYS_SENDTO: "write", unix.SYS_SENDMSG: "write",
}

// What netlink(7) may say: a send has no memory, a receive has lost something. Not EINTR:
// a socket that does not block is not interrupted, and Go's poller would wait for an edge
// that has been.
var faultErrors = map[string][]unix.Errno{
	"write": {unix.ENOBUFS, unix.ENOMEM},
	"read":  {unix.ENOBUFS},
}

// runWrapped is a process of Wrap: it has the kernel ask about calls, and begins the
// program. The descriptor by which it asks stays open for Follow to take.
func runWrapped(args []string) error {
	program, argv := args[0], args[1:]
	// the filter is the thread's, and exec ends the others
	runtime.LockOSThread()
	ask := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // struct seccomp_data: nr
	for call := range faultCalls {
		ask = append(ask, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(call)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	ask = append(ask, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	filter := unix.SockFprog{Len: uint16(len(ask)), Filter: &ask[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
		uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_FCNTL, fd, unix.F_SETFD, 0); errno != 0 {
		return errno
	}
	return syscall.Exec(program, argv, os.Environ())
}

// Follow decides about the calls of a process that was begun by Wrap, until it ends.
func (f *Injector) Follow(t testing.TB, pid int) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener := -1
	nstest.WaitFor(t, 10*time.Second, "the process to be asked about", func() bool {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if to, _ := os.Readlink(link); to == "anon_inode:seccomp notify" {
				n, _ := strconv.Atoi(filepath.Base(link))
				listener, err = unix.PidfdGetfd(process, n, 0)
				return err == nil
			}
		}
		return false
	})
	done := make(chan error, 1)
	go func() { done <- f.follow(process, listener, pid) }()
	t.Cleanup(func() {
		f.Set(0)
		_ = unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0) // where it has not ended before
		if err := <-done; err != nil {
			t.Errorf("deciding about system calls: %v", err)
		}
		unix.Close(listener)
		unix.Close(process)
	})
}

// Sizes of struct seccomp_notif and seccomp_notif_resp, and the requests with them
// (linux/seccomp.h).
const (
	notifSize     = 80
	notifRespSize = 24
	notifRecv     = 0xc0502100
	notifSend     = 0xc0182101
)

func (f *Injector) follow(process, listener, pid int) error {
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents&unix.POLLHUP != 0 {
				return nil
			}
			continue
		}
		var notif [notifSize]byte
		if err := ioctl(listener, notifRecv, &notif[0]); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
			continue // it was interrupted
		} else if err != nil {
			return err
		}
		var resp [notifRespSize]byte
		copy(resp[:8], notif[:8])
		thread := binary.NativeEndian.Uint32(notif[8:])
		call, fd := int(binary.NativeEndian.Uint32(notif[16:])), int(binary.NativeEndian.Uint64(notif[32:]))
		if errno := f.decide(process, pid, int(thread), call, fd); errno != 0 {
			binary.NativeEndian.PutUint32(resp[16:], uint32(-int32(errno)))
		} else {
			binary.NativeEndian.PutUint32(resp[20:], unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
		}
		if err := ioctl(listener, notifSend, &resp[0]); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

func ioctl(fd int, request uintptr, b *byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(b))); errno != 0 {
		return errno
	}
	return nil
}

// decide returns the error that a call is to have, 0: none.
func (f *Injector) decide(process, pid, thread, call, fd int) unix.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rate == 0 || f.r.IntN(max(f.rate/10, 1)) != 0 {
		return 0
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, thread)); err != nil {
		return 0 // a child's
	}
	socket, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(socket)
	if domain, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil ||
		domain != unix.AF_NETLINK {
		return 0
	}
	protocol, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return 0
	}
	if protocol == unix.NETLINK_NETFILTER && f.r.IntN(10) != 0 {
		return 0
	}
	name := map[int]string{unix.NETLINK_ROUTE: "route", unix.NETLINK_SOCK_DIAG: "sock_diag",
		unix.NETLINK_NETFILTER: "netfilter"}[protocol]
	what := faultCalls[call]
	f.count[name+" "+what]++
	return faultErrors[what][f.r.IntN(len(faultErrors[what]))]
}
