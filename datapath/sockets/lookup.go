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
	mu   sync.Mutex // held from a request to its answer
	conn *netlink.Conn

	// stale: a request failed, and an answer to it may be there. It would be taken for that
	// to the next one.
	stale bool
}

// NewFinder opens a Finder in the network namespace of the calling thread. Close it.
func NewFinder() (*Finder, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("looking for sockets: %v", err)
	}
	return &Finder{conn: conn}, nil
}

// Close closes the Finder.
func (f *Finder) Close() error { return f.conn.Close() }

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
	if err := f.drain(); err != nil {
		return socket{}, fmt.Errorf("looking for sockets: %v", err)
	}
	answers, err := f.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: diagByFamily, Flags: netlink.Request},
		Data:   request(local, remote, device),
	})
	if errors.Is(err, unix.ENOENT) {
		return socket{}, ErrNone
	}
	if err == nil && len(answers) != 1 {
		err = fmt.Errorf("%d answers", len(answers))
	}
	if err != nil {
		f.stale = true
		return socket{}, fmt.Errorf("looking for the socket at %s: %v", local, err)
	}
	return parse(answers[0].Data)
}

// drain takes away what a request that failed has left. The kernel answers before the
// request's system call returns, so it is all there.
func (f *Finder) drain() error {
	if !f.stale {
		return nil
	}
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			_, _, e := unix.Recvfrom(int(fd), nil, unix.MSG_DONTWAIT)
			if e != nil && !errors.Is(e, unix.EINTR) && !errors.Is(e, unix.ENOBUFS) {
				return true
			}
		}
	})
	f.stale = err != nil
	return err
}

func request(local, remote netip.AddrPort, device int) []byte {
	b := make([]byte, requestSize)
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
	return b
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
