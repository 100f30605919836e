package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// ErrNone says that there is no such socket.
var ErrNone = errors.New("no such socket")

// answerBuffer has room for the answer about one socket: what the kernel says of a listener takes some 150 bytes.
const answerBuffer = 512

// A Finder finds sockets of one network namespace. It is safe for concurrent use.
type Finder struct {
	mu     sync.Mutex // guards what follows, from a request to its answer
	fd     int
	number uint32 // of the last request; its answer has it, too
	asked  [nlmsg.HeaderSize + requestSize]byte
	buffer [answerBuffer]byte
}

// NewFinder opens a Finder in the network namespace of the calling thread. Close it.
func NewFinder() (*Finder, error) {
	fd, err := openDiag()
	if err != nil {
		return nil, fmt.Errorf("looking for sockets: %v", err)
	}
	return &Finder{fd: fd}, nil
}

// Close closes the Finder.
func (f *Finder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// Connecting returns the cgroup of the socket that sent the SYN from local to remote.
// Device is the interface by which it leaves. The error is ErrNone if there is none: a
// raw socket sent it.
func (f *Finder) Connecting(local, remote netip.AddrPort, device int) (cgroup uint64, err error) {
	s, err := f.find(local, remote, device)
	if err != nil {
		return 0, err
	}
	if s.state != stateSynSent {
		return 0, ErrNone
	}
	return s.cgroup, nil
}

// Listener returns the cgroup of the socket that will be given a SYN from remote to local
// which came by the device.
//
// Where a connection of the two ends is there, open or in TIME-WAIT, that hides the
// listener, and it is looked for as for a client's port 0: with SO_REUSEPORT across
// workloads it may be another of them that gets the SYN, and the kernel's own decision
// about it, by the listener's class, is what protects them.
func (f *Finder) Listener(local, remote netip.AddrPort, device int) (cgroup uint64, err error) {
	s, err := f.find(local, remote, device)
	if err == nil && s.state != stateListen {
		s, err = f.find(local, netip.AddrPortFrom(remote.Addr(), 0), device)
	}
	if err != nil {
		return 0, err
	}
	if s.state != stateListen {
		return 0, ErrNone
	}
	return s.cgroup, nil
}

// A found socket is one that the kernel found.
type found struct {
	state  uint8
	cgroup uint64 // 0: the kernel told none
}

// find has the kernel search as it does for a packet from remote to local.
func (f *Finder) find(local, remote netip.AddrPort, device int) (found, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.number++
	r := findRequest(local, remote, device)
	if _, err := unix.Write(f.fd, r.append(f.asked[:0], 0, f.number)); err != nil {
		return found{}, fmt.Errorf("looking for the socket at %s: %v", local, err)
	}
	s, err := f.answer()
	if err != nil && !errors.Is(err, ErrNone) {
		return found{}, fmt.Errorf("looking for the socket at %s: %v", local, err)
	}
	return s, err
}

// answer reads the answer to the last request. The kernel gives it before the request's
// system call returns, so it is there, maybe behind those that nobody took.
func (f *Finder) answer() (found, error) {
	for {
		n, err := unix.Read(f.fd, f.buffer[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return found{}, err
		}
		if s, number, err := parseAnswer(f.buffer[:n]); number == f.number {
			return s, err
		}
	}
}

// parseAnswer parses the answer to the request of a number: a socket, or an error.
func parseAnswer(b []byte) (s found, number uint32, err error) {
	m, _, err := nlmsg.Next(b)
	number = m.Header.Sequence
	if err != nil {
		return found{}, number, err
	}
	switch m.Header.Type {
	case diagByFamily:
		socket, state, err := parseSocket(m.Data, unix.IPPROTO_TCP)
		return found{state, socket.Cgroup}, number, err
	case netlink.Error:
		err = nlmsg.Answer(m)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return found{}, number, ErrNone
	case err == nil:
		err = fmt.Errorf("the kernel's answer about a socket is of the unknown kind %d", m.Header.Type)
	}
	return found{}, number, err
}
