package queue

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// A socket is a netlink socket whose every call is a system call, and nothing else. The
// library's own waits in Go's poller, and starts a goroutine for each call: at a dozen
// calls for a handshake, more than two thirds of the daemon's time were switches between
// threads. One goroutine receives at a time; the rest is safe for concurrent use.
type socket struct {
	fd       int
	wake     int          // an eventfd(2), readable once the socket is closed
	mu       sync.RWMutex // read-locked by who uses the descriptors, which Close gives back
	closed   atomic.Bool
	buffer   []byte
	poll     [2]unix.PollFd
	messages []netlink.Message
}

// bufferSize has room for the largest packet and the attributes that come with it.
const bufferSize = copyRange + 1 + 4096

// takeOver moves a connection to a socket of this kind, and closes the one it had.
func takeOver(conn *netlink.Conn) (*socket, *netlink.Conn, error) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	s := &socket{buffer: make([]byte, bufferSize), messages: make([]netlink.Message, 0, 1)}
	if e := raw.Control(func(fd uintptr) {
		s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); e != nil || err != nil {
		return nil, nil, errors.Join(e, err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		unix.Close(s.fd)
		return nil, nil, err
	}
	s.poll = [...]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return s, netlink.NewConn(s, name.(*unix.SockaddrNetlink).Pid), nil
}

// Close ends a Receive that waits, and closes the socket when nobody uses it any more.
func (s *socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if _, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(unix.Close(s.fd), unix.Close(s.wake))
}

// Send sends one message to the kernel.
func (s *socket) Send(m netlink.Message) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed.Load() {
		return unix.EBADF
	}
	_, err := unix.Write(s.fd, nlmsg.Append(make([]byte, 0, nlmsg.HeaderSize+len(m.Data)+3), m))
	return err
}

// SendMessages sends some, each for itself.
func (s *socket) SendMessages(list []netlink.Message) error {
	for _, m := range list {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Receive waits for what the kernel sends. The messages are the caller's until the next
// call, and their data for ever. (What is too long for the buffer is cut off, which its
// own length tells.)
func (s *socket) Receive() ([]netlink.Message, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for {
		if s.closed.Load() {
			return nil, unix.EBADF
		}
		n, err := unix.Read(s.fd, s.buffer)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if err := s.wait(); err != nil {
				return nil, err
			}
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		default:
			s.messages, err = messages(s.messages[:0], append([]byte(nil), s.buffer[:n]...))
			return s.messages, err
		}
	}
}

// wait blocks the thread until there is something to receive, or the socket is closed.
func (s *socket) wait() error {
	_, err := unix.Poll(s.poll[:], -1)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// messages appends to a list what netlink(7) sent in one piece. The data are not copied.
func messages(list []netlink.Message, b []byte) ([]netlink.Message, error) {
	for len(b) > 0 {
		m, rest, err := nlmsg.Next(b)
		if err != nil {
			return nil, err
		}
		list, b = append(list, m), rest
	}
	return list, nil
}
