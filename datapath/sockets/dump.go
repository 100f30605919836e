package sockets

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// A Socket is one that a dump found.
type Socket struct {
	Family   uint8 // unix.AF_INET or AF_INET6
	Protocol uint8
	Local    netip.AddrPort // an IPv4 address in an IPv6 socket is not unmapped
	Remote   netip.AddrPort // likewise; port 0: it is not connected
	Bound    bool           // a listener of TCP, or an unconnected socket of UDP
	OnlyV6   bool           // an IPv6 socket that gets nothing by IPv4
	Device   int            // the interface that it is bound to, by SO_BINDTODEVICE or a link-local address; 0: none
	UID      uint32
	Inode    uint32 // of the socket's file; 0: no process has it, as in TIME-WAIT
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
	return dumpEach(boundKinds, visit)
}

// Open lists the sockets of TCP and UDP that a process may have: what Bound lists, and then the connections, those that
// begin and end among them. It ends early when visit returns false, and fails where the kernel cannot list them.
func Open(visit func(Socket) bool) error {
	return dumpEach(append(boundKinds[:2:2],
		dumped{unix.IPPROTO_TCP, ^uint32(1<<stateListen | 1<<stateTimeWait | 1<<stateNewSynRecv)},
		dumped{unix.IPPROTO_UDP, ^uint32(1 << stateClose)}), visit)
}

// A dumped kind of sockets has one protocol, and one of the states, which are bits.
type dumped struct {
	protocol uint8
	states   uint32
}

// boundKinds are what can be sent to without a connection.
var boundKinds = []dumped{{unix.IPPROTO_TCP, 1 << stateListen}, {unix.IPPROTO_UDP, 1 << stateClose}}

func dumpEach(kinds []dumped, visit func(Socket) bool) error {
	more := true
	for _, kind := range kinds {
		err := dump(kind.protocol, kind.states, func(s Socket) bool {
			more = visit(s)
			return more
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
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
	fd, err := openDiag()
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	r := listRequest(family, protocol, states)
	if _, err := unix.Write(fd, r.append(nil, netlink.Dump, 0)); err != nil {
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

// visitAll visits the sockets of one answer. done: it was the last.
func visitAll(b []byte, protocol uint8, visit func(Socket) bool) (more, done bool, err error) {
	for len(b) > 0 {
		m, rest, err := nlmsg.Next(b)
		if err != nil {
			return false, false, err
		}
		switch m.Header.Type {
		case netlink.Done, netlink.Error:
			err := nlmsg.Answer(m)
			return err == nil, true, err
		case diagByFamily:
			s, _, err := parseSocket(m.Data, protocol)
			if err != nil {
				return false, false, err
			}
			if !visit(s) {
				return false, false, nil
			}
		}
		b = rest
	}
	return true, false, nil
}
