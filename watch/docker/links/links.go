package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// Host are the network interfaces of the network namespace in which its methods are called.
type Host struct{}

// A link is a network interface, as in rtnetlink(7).
type link struct {
	index  uint32
	name   string
	master uint32 // index of the bridge whose port it is; 0: none
	veth   bool
	peer   int32 // number of the network namespace in which its other end is; -1: this one, or it has none
}

// Ports returns the port by which the network namespace of a process is connected
// to each bridge.
func (Host) Ports(pid int) (map[string]string, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %v", err)
	}
	defer conn.Close()
	list, err := listLinks(conn) // the kernel numbers the namespaces where it tells of them
	if err != nil {
		return nil, err
	}
	namespace, err := namespaceOf(conn, pid)
	if err != nil || namespace < 0 {
		return nil, err
	}
	names := map[uint32]string{}
	for _, l := range list {
		names[l.index] = l.name
	}
	ports := map[string]string{}
	for _, l := range list {
		if l.master != 0 && l.peer == namespace {
			ports[names[l.master]] = l.name
		}
	}
	return ports, nil
}

// Foreign returns the ports of a bridge that are not such as containers have (veth). ok is false if there is no such
// bridge.
func (Host) Foreign(bridge string) (ports []string, ok bool, err error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, false, fmt.Errorf("listing network interfaces: %v", err)
	}
	defer conn.Close()
	list, err := listLinks(conn)
	if err != nil {
		return nil, false, err
	}
	at := slices.IndexFunc(list, func(l link) bool { return l.name == bridge })
	if at < 0 {
		return nil, false, nil
	}
	for _, l := range list {
		if l.master == list[at].index && !l.veth {
			ports = append(ports, l.name)
		}
	}
	return ports, true, nil
}

// linkHeaderSize is that of struct ifinfomsg; the index is at 4.
const linkHeaderSize = 16

func listLinks(conn *netlink.Conn) ([]link, error) {
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, linkHeaderSize),
	})
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %v", err)
	}
	var list []link
	for _, answer := range answers {
		l, err := parseLink(answer.Data)
		if err != nil {
			return nil, fmt.Errorf("listing network interfaces: %v", err)
		}
		list = append(list, l)
	}
	return list, nil
}

func parseLink(data []byte) (link, error) {
	if len(data) < linkHeaderSize {
		return link{}, errors.New("the kernel's answer is too short")
	}
	attributes, err := nlmsg.Parse(data[linkHeaderSize:], nlmsg.Size{Type: unix.IFLA_MASTER, Bytes: 4},
		nlmsg.Size{Type: unix.IFLA_LINK_NETNSID, Bytes: 4})
	if err != nil {
		return link{}, err
	}
	l := link{
		index:  binary.NativeEndian.Uint32(data[4:]),
		name:   attributes.String(unix.IFLA_IFNAME),
		master: attributes.Uint32(unix.IFLA_MASTER),
		veth:   attributes.Nested(unix.IFLA_LINKINFO).String(unix.IFLA_INFO_KIND) == "veth",
		peer:   -1,
	}
	if attributes.Has(unix.IFLA_LINK_NETNSID) {
		l.peer = int32(attributes.Uint32(unix.IFLA_LINK_NETNSID))
	}
	return l, nil
}

// namespaceOf returns the number that the network namespace of a process has in
// this one (RTM_GETNSID: struct rtgenmsg, one byte and padding, and attributes);
// -1: it has none, so nothing here is connected to it.
func namespaceOf(conn *netlink.Conn, pid int) (int32, error) {
	var attributes nlmsg.Attributes
	attributes.AddUint32(unix.NETNSA_PID, uint32(pid))
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNSID, Flags: netlink.Request},
		Data:   append(make([]byte, 4), attributes...),
	})
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return -1, nil // the process has ended
	case err != nil:
		return -1, fmt.Errorf("asking for the network namespace of process %d: %v", pid, err)
	}
	for _, answer := range answers {
		if len(answer.Data) < 4 {
			continue
		}
		found, err := nlmsg.Parse(answer.Data[4:], nlmsg.Size{Type: unix.NETNSA_NSID, Bytes: 4})
		if err != nil {
			return -1, err
		}
		if found.Has(unix.NETNSA_NSID) {
			return int32(found.Uint32(unix.NETNSA_NSID)), nil
		}
	}
	return -1, nil
}
