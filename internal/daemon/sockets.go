package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socketCgroups returns the ids of the cgroups to which the sockets of this network
// namespace belong: those that are bound, connected or listening. (One that is not
// can not receive, and who holds it could as well open his own.)
func socketCgroups() (map[uint64]bool, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("listing sockets: %v", err)
	}
	defer conn.Close()
	ids := map[uint64]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_RAW, unix.IPPROTO_SCTP} {
			if err := dumpSockets(conn, family, protocol, ids); err != nil {
				return nil, fmt.Errorf("listing sockets of family %d, protocol %d: %v", family, protocol, err)
			}
		}
	}
	return ids, nil
}

// The request of sock_diag(7), struct inet_diag_req_v2:
//
//	offset  size  what
//	0       1     sdiag_family
//	1       1     sdiag_protocol
//	2       1     idiag_ext: attributes; the cgroup's id comes unasked
//	3       1     pad
//	4       4     idiag_states: a bit for each TCP state
//	8       48    id: all zero, any socket
//
// An answer is a struct inet_diag_msg of 72 bytes, followed by attributes.
const (
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagByFamily     = 20 // linux/sock_diag.h, SOCK_DIAG_BY_FAMILY
	diagAttrCgroupID = 21 // linux/inet_diag.h, INET_DIAG_CGROUP_ID
)

func dumpSockets(conn *netlink.Conn, family, protocol uint8, ids map[uint64]bool) error {
	request := make([]byte, diagRequestSize)
	request[0], request[1] = family, protocol
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0))
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: diagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the kernel has no such protocol, or can not list it
	}
	if err != nil {
		return err
	}
	for _, answer := range answers {
		if len(answer.Data) < diagMessageSize {
			continue
		}
		attributes, err := netlink.NewAttributeDecoder(answer.Data[diagMessageSize:])
		if err != nil {
			return err
		}
		for attributes.Next() {
			if attributes.Type() == diagAttrCgroupID {
				ids[attributes.Uint64()] = true
			}
		}
		if err := attributes.Err(); err != nil {
			return err
		}
	}
	return nil
}
