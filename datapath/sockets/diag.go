package sockets

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// A request is one of sock_diag(7), struct inet_diag_req_v2, big-endian in the ports:
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
type request [requestSize]byte

const (
	requestSize  = 56
	idAt         = 8  // in the request, and 4 in the answer: ports, addresses, interface, cookie
	diagByFamily = 20 // linux/sock_diag.h, SOCK_DIAG_BY_FAMILY
	attrOnlyV6   = 11 // linux/inet_diag.h, INET_DIAG_SKV6ONLY. It comes unasked
	attrCgroupID = 21 // linux/inet_diag.h, INET_DIAG_CGROUP_ID
)

// The states of sockets (linux/tcp_states.h).
const (
	stateSynSent    = 2
	stateTimeWait   = 6 // without a process and a cgroup
	stateClose      = 7 // of a UDP socket that is not connected
	stateListen     = 10
	stateNewSynRecv = 12 // likewise
)

// listRequest asks for all sockets in one of the states, which are bits.
func listRequest(family, protocol uint8, states uint32) (r request) {
	r[0], r[1] = family, protocol
	binary.NativeEndian.PutUint32(r[4:], states)
	return r
}

// findRequest asks for the socket that a packet of TCP from remote to local finds.
func findRequest(local, remote netip.AddrPort, device int) (r request) {
	r[0], r[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		r[0] = unix.AF_INET
	}
	id := r[idAt:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	putAddress(id[4:20], local.Addr())
	putAddress(id[20:36], remote.Addr())
	binary.NativeEndian.PutUint32(id[36:], uint32(device))
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0))
	return r
}

// putAddress writes the 4 or 16 bytes of an address.
func putAddress(b []byte, a netip.Addr) {
	if a.Is4() {
		v4 := a.As4()
		copy(b, v4[:])
	} else if a.IsValid() {
		v6 := a.As16()
		copy(b, v6[:])
	}
}

// append appends r as a message. The answers have its number.
func (r *request) append(b []byte, flags netlink.HeaderFlags, number uint32) []byte {
	h := netlink.Header{Type: diagByFamily, Flags: netlink.Request | flags, Sequence: number}
	return nlmsg.Append(b, netlink.Message{Header: h, Data: r[:]})
}

// answerSize is the size of a struct inet_diag_msg.
const answerSize = 72

// parseSocket reads a struct inet_diag_msg and the attributes behind it:
//
//	offset  size  what
//	0       1     idiag_family
//	1       1     idiag_state
//	4       2     local port, big-endian
//	6       2     remote port, big-endian
//	8       16    local address
//	24      16    remote address
//	40      4     interface
//	64      4     uid
//	68      4     inode
func parseSocket(b []byte, protocol uint8) (s Socket, state uint8, err error) {
	if len(b) < answerSize {
		return s, 0, fmt.Errorf("the kernel's answer about a socket has %d bytes; needed: %d", len(b), answerSize)
	}
	attributes, err := nlmsg.Parse(b[answerSize:], nlmsg.Size{Type: attrCgroupID, Bytes: 8},
		nlmsg.Size{Type: attrOnlyV6, Bytes: 1})
	if err != nil {
		return s, 0, err
	}
	return Socket{
		Family:   b[0],
		Protocol: protocol,
		Local:    netip.AddrPortFrom(addressAt(b[0], b[8:24]), binary.BigEndian.Uint16(b[4:])),
		Remote:   netip.AddrPortFrom(addressAt(b[0], b[24:40]), binary.BigEndian.Uint16(b[6:])),
		Bound:    b[1] == stateListen || b[1] == stateClose && protocol == unix.IPPROTO_UDP,
		OnlyV6:   attributes.Uint8(attrOnlyV6) != 0,
		Device:   int(binary.NativeEndian.Uint32(b[40:])),
		UID:      binary.NativeEndian.Uint32(b[64:]),
		Inode:    binary.NativeEndian.Uint32(b[68:]),
		Cgroup:   attributes.Uint64(attrCgroupID),
	}, b[1], nil
}

// addressAt reads an address of a socket of this family.
func addressAt(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16([16]byte(b))
}

// openDiag opens a socket in the network namespace of the calling thread.
func openDiag() (int, error) {
	return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
}
