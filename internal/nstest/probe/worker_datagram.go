package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// datagramSocket is a UDP, ping or raw socket, used without Go's poller: what is there is read, nothing is waited for.
type datagramSocket struct {
	*os.File
	fd     int
	family int
	answer []byte // ICMP: type and sequence number of the answer
}

func (w *worker) udp(req request) (reply, error) {
	config := net.ListenConfig{Control: socketOptions(req.Options)}
	conn, err := config.ListenPacket(context.Background(), req.Network, req.From)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	file, err := conn.(*net.UDPConn).File()
	if err != nil {
		return reply{}, err
	}
	s, err := newDatagramSocket(file)
	if err != nil {
		return reply{}, err
	}
	return reply{Handle: w.keep(s), Addr: conn.LocalAddr().String()}, nil
}

// receiveBuffer has room for tens of thousands of datagrams: a probe reads only when it is asked.
const receiveBuffer = 32 << 20

// newDatagramSocket takes over the file of a socket.
func newDatagramSocket(file *os.File) (*datagramSocket, error) {
	s := &datagramSocket{File: file, fd: int(file.Fd())} // Fd makes it blocking: all reads are MSG_DONTWAIT
	var err error
	if s.family, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// without privileges: what the machine's limit allows
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if s.family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1); err != nil {
			return nil, err
		}
	}
	// A dual-stack socket takes this one, too; an IPv6 raw socket does not.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil && s.family == unix.AF_INET {
		return nil, err
	}
	return s, nil
}

func (w *worker) sendTo(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	// An error that is waiting would be returned by sendto, and nothing be sent. It goes with the reply.
	waiting, err := s.readErrors()
	if err != nil {
		return reply{}, err
	}
	outcome, err := s.send(req.To, []byte(req.Data))
	return reply{Outcome: outcome, Errors: waiting}, err
}

func (s *datagramSocket) send(to string, data []byte) (Outcome, error) {
	addr, err := s.parseSockaddr(to)
	if err != nil {
		return "", err
	}
	return outcomeOf(unix.Sendto(s.fd, data, 0, addr))
}

// sendFrom sends with another source address than the socket's.
func (w *worker) sendFrom(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	source, err := SourceAddress(req.From)
	if err != nil {
		return reply{}, err
	}
	to, err := s.parseSockaddr(req.To)
	if err != nil {
		return reply{}, err
	}
	outcome, err := outcomeOf(unix.Sendmsg(s.fd, []byte(req.Data), source, to, 0))
	return reply{Outcome: outcome}, err
}

// parseSockaddr writes IPv4 addresses as a dual-stack socket wants them.
func (s *datagramSocket) parseSockaddr(to string) (unix.Sockaddr, error) {
	addr, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	if s.family == unix.AF_INET6 && addr.Addr().Is4() {
		to = netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port()).String()
	}
	return ParseSockaddr(to)
}

func (w *worker) drain(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	errs, err := s.readErrors()
	if err != nil {
		return reply{}, err
	}
	received, err := s.readAll()
	return reply{Received: received, Errors: errs}, err
}

// readAll reads what has arrived.
func (s *datagramSocket) readAll() ([]Datagram, error) {
	var all []Datagram
	buf := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return all, nil
		case err == unix.EINTR:
		case err == nil:
			all = append(all, Datagram{Data: string(buf[:n]), From: FormatSockaddr(from)})
		default: // an ICMP error: readErrors has it, or will; to read it here takes it off the socket
			if outcome, err := outcomeOf(err); outcome == "" {
				return nil, err
			}
		}
	}
}

// readErrors reads the socket's queue of ICMP errors.
func (s *datagramSocket) readErrors() ([]ICMPError, error) {
	var all []ICMPError
	buf, oob := make([]byte, 2048), make([]byte, 512)
	for {
		_, oobn, _, to, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			isError := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR ||
				m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if isError && len(m.Data) >= 4 { // struct sock_extended_err begins with ee_errno
				errno := unix.Errno(binary.NativeEndian.Uint32(m.Data))
				all = append(all, ICMPError{Errno: errno, To: FormatSockaddr(to)})
			}
		}
	}
}

func (w *worker) join(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	return reply{}, JoinGroup(s.fd, req.To, req.Device)
}

func (w *worker) multicast(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	device, err := net.InterfaceByName(req.Device)
	if err != nil {
		return reply{}, err
	}
	if s.family == unix.AF_INET {
		return reply{}, unix.SetsockoptIPMreqn(s.fd, unix.SOL_IP, unix.IP_MULTICAST_IF,
			&unix.IPMreqn{Ifindex: int32(device.Index)})
	}
	return reply{}, unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, device.Index)
}

// answerTo returns the type of the answer to an ICMP request, if it is one that kernels answer.
func answerTo(family, request int) (byte, bool) {
	switch {
	case family == unix.AF_INET && request == 8:
		return 0, true // echo
	case family == unix.AF_INET && request == 13:
		return 14, true // timestamp
	case family == unix.AF_INET6 && request == 128:
		return 129, true // echo
	}
	return 0, false
}

func (w *worker) ping(req request) (reply, error) {
	req.ICMPType = 8
	if strings.Contains(req.To, ":") {
		req.ICMPType = 128
	}
	return w.sendICMP(req, unix.SOCK_DGRAM)
}

func (w *worker) icmp(req request) (reply, error) { return w.sendICMP(req, unix.SOCK_RAW) }

// sendICMP sends the message and leaves the socket for icmpAnswer.
func (w *worker) sendICMP(req request, kind int) (reply, error) {
	addr, err := netip.ParseAddr(req.To)
	if err != nil {
		return reply{}, err
	}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if addr.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return reply{}, err
	}
	s, err := newDatagramSocket(os.NewFile(uintptr(fd), "icmp"))
	if err != nil {
		return reply{}, err
	}
	handle := w.keep(s)
	message := icmpMessage(req.ICMPType, rand.IntN(1<<16), rand.IntN(1<<16))
	if answer, ok := answerTo(family, req.ICMPType); ok {
		s.answer = slices.Concat([]byte{answer}, message[6:8])
	}
	outcome, err := s.send(netip.AddrPortFrom(addr, 0).String(), message)
	if outcome != Connected {
		s.Close()
		delete(w.sockets, handle)
		return reply{Outcome: outcome}, err
	}
	return reply{Outcome: pending, Handle: handle}, nil
}

// icmpMessage is a message of 20 bytes, the length of a timestamp request. The checksum is the Internet's; kernels
// compute that of ICMPv6 and of ping sockets themselves. Messages of one identifier would be one connection to
// conntrack.
func icmpMessage(icmpType, identifier, sequence int) []byte {
	m := make([]byte, 20)
	m[0] = byte(icmpType)
	binary.BigEndian.PutUint16(m[4:], uint16(identifier))
	binary.BigEndian.PutUint16(m[6:], uint16(sequence))
	binary.BigEndian.PutUint16(m[2:], checksum(m))
	return m
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// icmpAnswer says whether the answer has come.
func (w *worker) icmpAnswer(req request) (reply, error) {
	s, err := socketOf[*datagramSocket](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	defer s.Close()
	delete(w.sockets, req.Handle)
	errs, err := s.readErrors()
	if err != nil {
		return reply{}, err
	}
	if len(errs) > 0 {
		outcome, err := outcomeOf(errs[0].Errno)
		return reply{Outcome: outcome}, err
	}
	received, err := s.readAll()
	for _, d := range received {
		if s.isAnswer(d) {
			return reply{Outcome: Arrived}, err
		}
	}
	return reply{Outcome: Silent}, err
}

// isAnswer compares type and sequence number; a raw socket gets everybody's messages, each behind its IPv4 header.
func (s *datagramSocket) isAnswer(d Datagram) bool {
	data := []byte(d.Data)
	if s.family == unix.AF_INET && len(data) > 20 && data[0]>>4 == 4 {
		data = data[int(data[0]&0xf)*4:]
	}
	return s.answer != nil && len(data) >= 8 && bytes.Equal(s.answer, []byte{data[0], data[6], data[7]})
}
