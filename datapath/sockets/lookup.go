package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNone says that there is no such socket.
var ErrNone = errors.New("no such socket")

// The request of sock_diag(7), struct inet_diag_req_v2, big-endian in the ports:
//
//	offset  size  what
//	0       1     sdiag_family
//	1       1     sdiag_protocol
//	2       1     idiag_ext: attributes; the cgroup's id comes unasked
//	3       1     pad
//	4       4     idiag_states; the search for one socket does not look at it
//	8       2     local port
//	10      2     remote port
//	12      16    local address
//	28      16    remote address
//	44      4     interface
//	48      8     cookie: all ones, any
//
// An answer is a struct inet_diag_msg of 72 bytes: family, state, timer, retransmissions,
// 48 bytes as from offset 8 above, and more; and attributes follow.
const (
	headerSize   = 16  // of struct nlmsghdr
	answerBuffer = 512 // bytes; what the kernel says of a listener takes some 150
	requestSize  = 56
	answerSize   = 72
	idAt         = 8  // in the request
	diagByFamily = 20 // linux/sock_diag.h, SOCK_DIAG_BY_FAMILY
	attrCgroupID = 21 // linux/inet_diag.h, INET_DIAG_CGROUP_ID

	stateSynSent = 2 // linux/tcp_states.h
	stateListen  = 10
)

// A Finder finds sockets of one network namespace. It is safe for concurrent use.
type Finder struct {
	mu     sync.Mutex // guards what follows, from a request to its answer
	fd     int
	number uint32 // of the last request; its answer has it, too
	buffer [answerBuffer]byte
}

// NewFinder opens a Finder in the network namespace of the calling thread. Close it.
func NewFinder() (*Finder, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
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

type socket struct {
	state  byte
	cgroup uint64 // 0: the kernel told none
}

// find has the kernel search as it does for a packet from remote to local.
func (f *Finder) find(local, remote netip.AddrPort, device int) (socket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.number++
	_, err := unix.Write(f.fd, request(f.number, local, remote, device))
	if err != nil {
		return socket{}, fmt.Errorf("looking for the socket at %s: %v", local, err)
	}
	s, err := f.answer()
	if err != nil && !errors.Is(err, ErrNone) {
		return socket{}, fmt.Errorf("looking for the socket at %s: %v", local, err)
	}
	return s, err
}

// answer reads the answer to the last request. The kernel gives it before the request's
// system call returns, so it is there, maybe behind those that nobody took.
func (f *Finder) answer() (socket, error) {
	for {
		n, err := unix.Read(f.fd, f.buffer[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return socket{}, err
		}
		if s, number, err := parseMessage(f.buffer[:n]); number == f.number {
			return s, err
		}
	}
}

// parseMessage parses the answer to the request of a number: a socket, or an error, struct
// nlmsgerr, that begins with the negative errno(3).
func parseMessage(b []byte) (s socket, number uint32, err error) {
	if len(b) < headerSize {
		return socket{}, 0, fmt.Errorf("the kernel's answer about a socket has %d bytes", len(b))
	}
	number = binary.NativeEndian.Uint32(b[8:])
	size := binary.NativeEndian.Uint32(b)
	if size < headerSize || uint64(size) > uint64(len(b)) {
		return socket{}, number, fmt.Errorf("the kernel's answer about a socket has %d bytes, and should have %d",
			len(b), size)
	}
	data := b[headerSize:size]
	switch kind := binary.NativeEndian.Uint16(b[4:]); {
	case kind == diagByFamily:
		s, err = parse(data)
		return s, number, err
	case kind != unix.NLMSG_ERROR || len(data) < 4:
		return socket{}, number, fmt.Errorf("the kernel's answer about a socket is of the unknown kind %d", kind)
	}
	if e := unix.Errno(-int32(binary.NativeEndian.Uint32(data))); e != unix.ENOENT {
		return socket{}, number, e
	}
	return socket{}, number, ErrNone
}

func request(number uint32, local, remote netip.AddrPort, device int) []byte {
	message := make([]byte, headerSize+requestSize)
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], diagByFamily)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(message[8:], number)
	b := message[headerSize:]
	b[0], b[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		b[0] = unix.AF_INET
	}
	id := b[idAt:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[36:], uint32(device))
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0))
	return message
}

func parse(b []byte) (socket, error) {
	if len(b) < answerSize {
		return socket{}, fmt.Errorf("the kernel's answer about a socket has %d bytes; needed: %d", len(b), answerSize)
	}
	s := socket{state: b[1]}
	attributes, err := netlink.NewAttributeDecoder(b[answerSize:])
	if err != nil {
		return socket{}, err
	}
	for attributes.Next() {
		if attributes.Type() == attrCgroupID {
			s.cgroup = attributes.Uint64()
		}
	}
	return s, attributes.Err()
}
