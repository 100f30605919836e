package legit

import (
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

var (
	group4 = netip.MustParseAddr("239.1.1.1")
	group6 = netip.MustParseAddr("ff15::1:1")
	all4   = netip.MustParseAddr("10.0.0.255")
	lo4    = netip.MustParseAddr("127.255.255.255")
)

// groupSituations are of multicast and broadcast. The server has two sockets, and both get all. The address is the
// group's.
func groupSituations() []situation {
	groups, both := []netip.Addr{group4, group6}, append(everyone, onLink...)
	return []situation{
		{name: "multicast on lo", server: serveMulticast("lo", 0), client: callMulticast("lo", 0), addrs: groups[:1]},
		{name: "multicast on the link", server: serveMulticast(link, 0),
			client: callMulticast(link, 0), addrs: groups, whos: both},
		{name: "multicast on the link, socket of the group's address", server: serveMulticastAt(link),
			client: callMulticast(link, 0), addrs: groups, whos: both},
		{name: "multicast on the link, large", server: serveMulticast(link, 5000), client: callMulticast(link, 5000),
			addrs: groups[:1], whos: both},
		{name: "broadcast on the link", server: serveBroadcast,
			client: callBroadcast, addrs: []netip.Addr{all4}, whos: onLink},
		{name: "broadcast on the link, to this node too", server: serveBroadcast, client: callBroadcast,
			addrs: []netip.Addr{all4}, whos: []who{plain}},
		{name: "broadcast on lo", server: serveBroadcast,
			client: callBroadcast, addrs: []netip.Addr{lo4}, whos: []who{plain}},
	}
}

const messages = 3

// receive opens two sockets, and wants all messages in each.
func (s *side) receive(addr string, prepare func(fd int) error, size int) {
	options := []option{opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), prepare}
	first, second := s.datagrams(addr, options...), s.datagrams(addr, options...)
	s.ready()
	for i := range messages {
		s.nextIs(first, strconv.Itoa(i)+payload(size))
		s.nextIs(second, strconv.Itoa(i)+payload(size))
	}
}

// join has a socket get what is sent to the group by a device.
func (s *side) join(name string) option {
	return func(fd int) error {
		d, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if s.is6() {
			return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
				&unix.IPv6Mreq{Multiaddr: s.at.As16(), Interface: uint32(d.Index)})
		}
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: s.at.As4(), Ifindex: int32(d.Index)})
	}
}

// by has a socket send to groups by a device.
func (s *side) by(name string) option {
	return func(fd int) error {
		d, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if s.is6() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, d.Index)
		}
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(d.Index)})
	}
}

func serveMulticast(name string, size int) func(*side) {
	return func(s *side) { s.receive(s.anyAddr(0), s.join(name), size) }
}

func serveMulticastAt(name string) func(*side) {
	return func(s *side) { s.receive(s.addr(0), s.join(name), 0) }
}

func callMulticast(name string, size int) func(*side) {
	return func(s *side) {
		c := s.datagrams(net.JoinHostPort(s.any().String(), "0"), s.by(name))
		for i := range messages {
			s.sendTo(c, strconv.Itoa(i)+payload(size), s.dest(0))
		}
	}
}

func serveBroadcast(s *side) { s.receive(s.anyAddr(0), opt(unix.SOL_SOCKET, unix.SO_BROADCAST, 1), 0) }

func callBroadcast(s *side) {
	c := s.datagrams(net.JoinHostPort(s.any().String(), "0"), opt(unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	for i := range messages {
		s.sendTo(c, strconv.Itoa(i), s.dest(0))
	}
}
