package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// An Observer sees each TCP and UDP packet that reached the host and was let pass by its INPUT hook, whether or not
// there is a socket for it, and disturbs none. (What was thrown away in INPUT, or before, it does not see.)
type Observer struct {
	host    *nstest.Host
	sockets []rawSocket
	packets []Packet
}

type rawSocket struct {
	fd, family, proto int
}

// A Packet that was let pass.
type Packet struct {
	Network  string // tcp or udp
	From, To netip.AddrPort
	SYN      bool // TCP: the first packet of a connection, or its answer
	ACK      bool
}

// receiveBuffer has room for tens of thousands of packets: an Observer reads only when it is asked.
const receiveBuffer = 32 << 20

// Observe begins to observe the host.
func Observe(h *nstest.Host) *Observer {
	h.T().Helper()
	o := &Observer{host: h}
	var err error
	enterErr := h.Do(func() {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				if err == nil {
					err = o.open(family, proto)
				}
			}
		}
	})
	for _, e := range []error{enterErr, err} {
		if e != nil {
			h.T().Fatalf("nstest: observing: %v", e)
		}
	}
	return o
}

func (o *Observer) open(family, proto int) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	o.host.OnEnd(func() error { return unix.Close(fd) })
	o.sockets = append(o.sockets, rawSocket{fd, family, proto})
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return err
	}
	if family == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return nil
}

// Packets returns all that was let pass until now. It is final for what was sent before (see nstest.Host.Barrier).
func (o *Observer) Packets() []Packet {
	o.host.T().Helper()
	o.host.Barrier()
	for _, s := range o.sockets {
		packets, err := s.readAll()
		if err != nil {
			o.host.T().Fatalf("nstest: observing: %v", err)
		}
		o.packets = append(o.packets, packets...)
	}
	return o.packets
}

// Count returns how many of Packets there are with this property.
func (o *Observer) Count(property func(Packet) bool) int {
	o.host.T().Helper()
	n := 0
	for _, p := range o.Packets() {
		if property(p) {
			n++
		}
	}
	return n
}

func (s rawSocket) readAll() ([]Packet, error) {
	var all []Packet
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		n, oobn, _, from, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return all, nil
		default:
			return nil, err
		}
		packet, err := s.parse(buf[:n], oob[:oobn], from)
		if err != nil {
			return nil, err
		}
		all = append(all, packet)
	}
}

// parse reads the addresses from the IPv4 header, which comes with the packet, or from what the kernel says beside it
// (IPv6). Of a packet too short for ports and flags, which only a raw socket can have sent, it tells the addresses
// alone.
func (s rawSocket) parse(data, oob []byte, from unix.Sockaddr) (Packet, error) {
	src, dst, segment, err := s.split(data, oob, from)
	if err != nil {
		return Packet{}, err
	}
	p := Packet{Network: "udp", From: netip.AddrPortFrom(src, 0), To: netip.AddrPortFrom(dst, 0)}
	if len(segment) >= 4 {
		p.From = netip.AddrPortFrom(src, binary.BigEndian.Uint16(segment))
		p.To = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(segment[2:]))
	}
	if s.proto == unix.IPPROTO_TCP {
		p.Network = "tcp"
		if len(segment) >= 14 {
			p.SYN, p.ACK = segment[13]&0x02 != 0, segment[13]&0x10 != 0
		}
	}
	return p, nil
}

func (s rawSocket) split(data, oob []byte, from unix.Sockaddr) (src, dst netip.Addr, segment []byte, err error) {
	if s.family == unix.AF_INET {
		header := 20
		if len(data) >= header {
			header = int(data[0]&0xf) * 4
		}
		if len(data) < header || header < 20 {
			return src, dst, nil, fmt.Errorf("%d bytes are no IPv4 packet", len(data))
		}
		return netip.AddrFrom4([4]byte(data[12:])), netip.AddrFrom4([4]byte(data[16:])), data[header:], nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return src, dst, nil, err
	}
	if len(messages) != 1 || len(messages[0].Data) < 16 {
		return src, dst, nil, errors.New("an IPv6 packet came without IPV6_PKTINFO")
	}
	return netip.AddrFrom16(from.(*unix.SockaddrInet6).Addr), netip.AddrFrom16([16]byte(messages[0].Data)), data, nil
}
