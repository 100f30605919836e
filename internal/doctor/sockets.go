package doctor

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A udpSocket is where a UDP socket of this network namespace is bound, and whose
// it is.
type udpSocket struct {
	family  uint8
	address [16]byte
	port    uint16
	cgroup  uint64
}

// socketListing checks that the kernel lists sockets with their cgroups, and warns
// of UDP ports that cgroups share: with SO_REUSEPORT and a BPF program the kernel
// may deliver to another of the sockets than to the one that the table looked at.
func socketListing() []Finding {
	listing := Finding{Check: "socket listing", Status: OK, Found: "sock_diag, with cgroups"}
	shared := Finding{Check: "shared UDP ports", Status: OK, Found: "none"}
	sockets, err := udpSockets()
	if err != nil {
		const follows = "it is not known when the last socket of an ended workload is gone: its cgroup stays in the table"
		return []Finding{listing.warning(err.Error(), follows, "boot a kernel (5.9 or newer) with CONFIG_INET_UDP_DIAG")}
	}
	if ports := sharedPorts(sockets); len(ports) > 0 {
		shared = shared.warning(fmt.Sprintf("sockets of several cgroups are bound to port %v", ports),
			"if they share it by SO_REUSEPORT and a BPF program, a datagram may reach one that the table did not ask about",
			"give each a port of its own, or all the same labels")
	}
	return []Finding{listing, shared}
}

// sharedPorts returns the ports that sockets of different cgroups are bound to, by
// one address.
func sharedPorts(sockets []udpSocket) []uint16 {
	type place struct {
		family  uint8
		address [16]byte
		port    uint16
	}
	owner := map[place]uint64{}
	var ports []uint16
	for _, s := range sockets {
		at := place{s.family, s.address, s.port}
		first, known := owner[at]
		if !known {
			owner[at] = s.cgroup
		} else if first != s.cgroup && !slices.Contains(ports, s.port) {
			ports = append(ports, s.port)
		}
	}
	slices.Sort(ports)
	return ports
}

func udpSockets() ([]udpSocket, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("opening sock_diag: %v", err)
	}
	defer conn.Close()
	var sockets []udpSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		answers, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
			Data:   udpRequest(family),
		})
		if err != nil {
			return nil, fmt.Errorf("listing UDP sockets: %v", err)
		}
		for _, answer := range answers {
			s, err := parseUDPSocket(answer.Data)
			if err != nil {
				return nil, err
			}
			sockets = append(sockets, s)
		}
	}
	return sockets, nil
}

// udpRequest is a struct inet_diag_req_v2 (linux/inet_diag.h):
//
//	offset  size  meaning
//	0       1     family
//	1       1     protocol
//	2       2     attributes that are asked for, padding: none
//	4       4     states, a bit each: all
//	8       48    the socket: any
func udpRequest(family uint8) []byte {
	request := make([]byte, 56)
	request[0], request[1] = family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0))
	return request
}

// inetDiagMsg is the size of a struct inet_diag_msg, and diagCgroupID the attribute
// INET_DIAG_CGROUP_ID (linux/inet_diag.h).
const (
	inetDiagMsg  = 72
	diagCgroupID = 21
)

// parseUDPSocket reads a struct inet_diag_msg and its attributes:
//
//	offset  size  meaning
//	0       1     family
//	4       2     source port, big-endian
//	8       16    source address
//	72      …     attributes
func parseUDPSocket(data []byte) (udpSocket, error) {
	if len(data) < inetDiagMsg {
		return udpSocket{}, fmt.Errorf("listing UDP sockets: an answer of %d bytes", len(data))
	}
	s := udpSocket{family: data[0], port: binary.BigEndian.Uint16(data[4:]), address: [16]byte(data[8:24])}
	attributes, err := netlink.NewAttributeDecoder(data[inetDiagMsg:])
	if err != nil {
		return udpSocket{}, fmt.Errorf("listing UDP sockets: %v", err)
	}
	for attributes.Next() {
		if attributes.Type() == diagCgroupID {
			s.cgroup = attributes.Uint64()
		}
	}
	if s.cgroup == 0 {
		return udpSocket{}, fmt.Errorf("listing UDP sockets: without their cgroups (INET_DIAG_CGROUP_ID)")
	}
	return s, attributes.Err()
}
