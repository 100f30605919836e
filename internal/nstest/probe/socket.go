package probe

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ParseSockaddr reads an address with a port, as in "10.0.0.1:80" or "[fe80::1%eth0]:80".
func ParseSockaddr(s string) (unix.Sockaddr, error) {
	addr, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if zone := addr.Addr().Zone(); zone != "" {
		device, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, err
		}
		sa.ZoneId = uint32(device.Index)
	}
	return sa, nil
}

// FormatSockaddr is the inverse of ParseSockaddr, "" for what is neither IPv4 nor IPv6. An IPv4 address in an IPv6 one
// becomes IPv4, and a zone is left out.
func FormatSockaddr(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)).String()
	}
	return ""
}

// JoinGroup has a socket join a multicast group on a device.
func JoinGroup(fd int, group, device string) error {
	d, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(group)
	if err != nil {
		return err
	}
	if addr.Is4() {
		return unix.SetsockoptIPMreqn(fd, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: addr.As4(), Ifindex: int32(d.Index)})
	}
	return unix.SetsockoptIPv6Mreq(fd, unix.SOL_IPV6, unix.IPV6_JOIN_GROUP,
		&unix.IPv6Mreq{Multiaddr: addr.As16(), Interface: uint32(d.Index)})
}

// SourceAddress is the control message of sendmsg(2) with which a socket sends from this address of the node, whatever
// address it is bound to (IP_PKTINFO).
func SourceAddress(source string) ([]byte, error) {
	addr, err := netip.ParseAddr(source)
	if err != nil {
		return nil, err
	}
	if addr.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: addr.As4()}), nil
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: addr.As16()}), nil
}

// ConnectOutcome waits until a connect that was begun is decided (done), and returns the error with which it failed.
func ConnectOutcome(fd int, patience time.Duration) (done bool, err error) {
	done, err = pollFD(fd, unix.POLLOUT, patience)
	if err != nil || !done {
		return false, err
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return true, err
}

// pollFD waits until one of the events of poll(2) is there, or an error of the descriptor (true), or patience is over.
func pollFD(fd int, events int16, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		if err != unix.EINTR {
			return n > 0, err
		}
	}
}
