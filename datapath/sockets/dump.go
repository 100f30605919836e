package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// stateClose is the state of a UDP socket that is not connected (linux/tcp_states.h).
const stateClose = 7

// A Socket is one that a dump found.
type Socket struct {
	Family   uint8 // unix.AF_INET or AF_INET6
	Protocol uint8
	Local    netip.AddrPort // an IPv4 address in an IPv6 socket is not unmapped
	OnlyV6   bool           // an IPv6 socket that gets nothing by IPv4
	Device   int            // the interface that it is bound to, by SO_BINDTODEVICE or a link-local address; 0: none
	UID      uint32
	Cgroup   uint64 // in which it was made; 0: the kernel did not tell
}

// Dump lists the sockets of the calling thread's network namespace, of both families and of one protocol, whatever
// their state. It ends early when visit returns false. A protocol that the kernel does not have, or cannot list, has
// no sockets.
func Dump(protocol uint8, visit func(Socket) bool) error {
	err := dump(protocol, ^uint32(0), visit)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Bound lists what can be sent to without a connection: the listeners of TCP and the sockets of UDP that are not
// connected. It ends early when visit returns false. Unlike Dump it fails where the kernel cannot list them.
func Bound(visit func(Socket) bool) error {
	more := true
	counted := func(s Socket) bool {
		more = visit(s)
		return more
	}
	err := dump(unix.IPPROTO_TCP, 1<<stateListen, counted)
	if err == nil && more {
		err = dump(unix.IPPROTO_UDP, 1<<stateClose, counted)
	}
	return err
}

func dump(protocol uint8, states uint32, visit func(Socket) bool) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		more, err := dumpFamily(family, protocol, states, visit)
		if err != nil {
			return fmt.Errorf("listing sockets of family %d, protocol %d: %w", family, protocol, err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// dumpFamily opens a socket of its own: closing it is what ends a dump early. It reports whether visit wants more.
func dumpFamily(family, protocol uint8, states uint32, visit func(Socket) bool) (more bool, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, dumpRequest(family, protocol, states)); err != nil {
		return false, err
	}
	buffer := make([]byte, dumpBuffer)
	for {
		// The kernel fills the next answer before it takes the last one back: there always is one.
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		switch more, done, err := visitAll(buffer[:n], protocol, visit); {
		case err != nil:
			return false, err
		case done, !more:
			return more, nil
		}
	}
}

// dumpBuffer is what the kernel fills with one answer at most (linux/net/netlink/af_netlink.c, netlink_recvmsg).
const dumpBuffer = 32 << 10

func dumpRequest(family, protocol uint8, states uint32) []byte {
	message := make([]byte, headerSize+requestSize)
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], diagByFamily)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b := message[headerSize:]
	b[0], b[1] = family, protocol
	binary.NativeEndian.PutUint32(b[4:], states)
	return message
}

// visitAll visits the sockets of one answer. done: it was the last.
func visitAll(b []byte, protocol uint8, visit func(Socket) bool) (more, done bool, err error) {
	for len(b) >= headerSize {
		size := binary.NativeEndian.Uint32(b)
		if size < headerSize || uint64(size) > uint64(len(b)) {
			return false, false, fmt.Errorf("the kernel's answer has %d bytes, and should have %d", len(b), size)
		}
		data := b[headerSize:size]
		switch kind := binary.NativeEndian.Uint16(b[4:]); {
		case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
			if len(data) >= 4 {
				if code := -int32(binary.NativeEndian.Uint32(data)); code > 0 {
					return false, true, unix.Errno(code)
				}
			}
			return true, true, nil
		case kind == diagByFamily:
			s, err := parseSocket(data, protocol)
			if err != nil {
				return false, false, err
			}
			if !visit(s) {
				return false, false, nil
			}
		}
		b = b[min(len(b), (int(size)+3)&^3):]
	}
	return true, false, nil
}

// parseSocket reads a struct inet_diag_msg and the attributes behind it:
//
//	offset  size  what
//	0       1     idiag_family
//	1       1     idiag_state
//	4       2     local port, big-endian
//	8       16    local address
//	40      4     interface
//	64      4     uid
func parseSocket(b []byte, protocol uint8) (Socket, error) {
	if len(b) < answerSize {
		return Socket{}, fmt.Errorf("the kernel's answer about a socket has %d bytes; needed: %d", len(b), answerSize)
	}
	address := netip.AddrFrom16([16]byte(b[8:24]))
	if b[0] == unix.AF_INET {
		address = netip.AddrFrom4([4]byte(b[8:12]))
	}
	s := Socket{
		Family:   b[0],
		Protocol: protocol,
		Local:    netip.AddrPortFrom(address, binary.BigEndian.Uint16(b[4:])),
		Device:   int(binary.NativeEndian.Uint32(b[40:])),
		UID:      binary.NativeEndian.Uint32(b[64:]),
	}
	attributes, err := netlink.NewAttributeDecoder(b[answerSize:])
	if err != nil {
		return Socket{}, err
	}
	for attributes.Next() {
		switch attributes.Type() {
		case attrCgroupID:
			s.Cgroup = attributes.Uint64()
		case attrOnlyV6:
			s.OnlyV6 = attributes.Uint8() != 0
		}
	}
	return s, attributes.Err()
}

// attrOnlyV6 is linux/inet_diag.h, INET_DIAG_SKV6ONLY. It comes unasked.
const attrOnlyV6 = 11
