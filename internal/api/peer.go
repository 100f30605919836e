package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"thole/watch/process"
)

// A peer is the process at the other end of a connection, as the kernel says. The
// pidfd holds on to that very process: while it lives, its pid is nobody else's.
type peer struct {
	process process.Process // it has no Started until newPeer has returned
	uid     uint32
	groups  []uint32 // its group and supplementary groups, when it connected

	mu    sync.Mutex
	pidfd int // -1 when closed: then nothing is known of the process any more
}

// errPeerGone says that the process ended, or that its pid is another's now.
var errPeerGone = errors.New("the process that sent the request has ended")

// peerCredentials returns who opened the connection, as the kernel noted it then (SO_PEERCRED).
func peerCredentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("credentials of a connection: %v", err)
	}
	var cred *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, asked); err != nil {
		return nil, fmt.Errorf("credentials of a connection: %v", err)
	}
	if cred.Pid <= 0 {
		return nil, errors.New("the process that sent the request is in another PID namespace: run thole on the host")
	}
	return cred, nil
}

// newPeer takes hold of the process that opened the connection. The caller closes the peer.
func newPeer(conn *net.UnixConn) (*peer, error) {
	cred, err := peerCredentials(conn)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("process of a connection: %v", err)
	}
	p := &peer{process: process.Process{PID: int(cred.Pid)}, uid: cred.Uid, pidfd: -1}
	var asked error
	err = raw.Control(func(fd uintptr) { asked = p.ask(int(fd), cred.Gid) })
	if err = errors.Join(err, asked); err != nil {
		return nil, fmt.Errorf("process of a connection: %w", err)
	}
	if p.process = process.Find(p.process.PID); p.process == (process.Process{}) {
		p.close()
		return nil, errPeerGone
	}
	return p, nil
}

// ask fills in the groups as they were when the peer connected, and the pidfd.
func (p *peer) ask(socket int, gid uint32) error {
	// Not those of /proc/PID/status: since it connected, it may have become a setgid
	// program, which speaks for nobody.
	groups, err := peerGroups(socket)
	if err != nil {
		return err
	}
	p.groups = append(groups, gid)
	p.pidfd, err = unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOPROTOOPT):
		return p.openPID() // before Linux 6.5
	default:
		return errPeerGone
	}
}

// openPID takes hold of whoever has the pid now. That may be another process than
// the one that connected, so it must have the same user, and it gains nothing by
// it: what it is given then is what it may ask for itself.
func (p *peer) openPID() error {
	var err error
	if p.pidfd, err = unix.PidfdOpen(p.process.PID, 0); err != nil {
		return errPeerGone
	}
	ids, err := statusIDs(p.process.PID, "Uid:")
	if err != nil || len(ids) < 2 || ids[1] != p.uid || p.check() != nil {
		p.close()
		return errPeerGone
	}
	return nil
}

// alive reports whether the process has not ended.
func (p *peer) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n == 0
	}
}

// check fails if what was read from /proc/PID just now may be another process's.
func (p *peer) check() error {
	if !p.alive() {
		return errPeerGone
	}
	if p.process.Started != "" && !p.process.Lives() {
		return errPeerGone
	}
	return nil
}

// peerGroups returns the supplementary groups of who connected (unix(7) has no
// word of SO_PEERGROUPS; linux: net/core/sock.c, groups_to_user).
func peerGroups(socket int) ([]uint32, error) {
	const most = 65536 // NGROUPS_MAX
	groups := make([]uint32, 32)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && len(groups) < most: // size is what is needed
			groups = make([]uint32, min(size/4, most))
		default:
			return nil, errno
		}
	}
}

func (p *peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// statusIDs returns the numbers of one line of /proc/PID/status.
func statusIDs(pid int, key string) ([]uint32, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, errPeerGone
	}
	var ids []uint32
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, key)
		if !ok {
			continue
		}
		for _, field := range strings.Fields(rest) {
			id, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("/proc/%d/status: %s %q is not a number", pid, key, field)
			}
			ids = append(ids, uint32(id))
		}
	}
	return ids, nil
}

// closed reports whether the peer hung up. A client sends one request and waits, so
// there is nothing to read until it does.
func closed(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	hungUp := true
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		hungUp = err == nil && n > 0
	})
	return err != nil || hungUp
}
