package legit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// udpSituations are of UDP and of what is neither UDP nor TCP.
func udpSituations() []situation {
	reusePort := opt(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	marked := []option{opt(unix.SOL_SOCKET, unix.SO_MARK, 1), opt(unix.SOL_SOCKET, unix.SO_PRIORITY, 6)}
	return []situation{
		{name: "UDP, connected", server: serveUDP(1), client: callUDP()},
		{name: "UDP, unconnected", server: serveUDP(1), client: callUnconnected},
		{name: "UDP, wildcard server", server: serveWildUDP, client: callUDP()},
		{name: "UDP, wildcard server, unconnected", server: serveWildUDP, client: callUnconnected},
		{name: "UDP, dual-stack server", server: serveDualUDP, client: callUDP(), addrs: only4},
		{name: "UDP, several answers", server: serveSeveral, client: callSeveral},
		{name: "UDP, late answer", server: serveLate, client: callLateUDP},
		{name: "UDP, server pushes", server: servePush, client: callPush},
		{name: "UDP, fixed ports, both connected", server: serveConnected, client: callConnected},
		{name: "UDP, many ports", server: serveUDP(100), client: callPorts(100)},
		{name: "UDP, server's socket anew", server: serveAnew, client: callAnew},
		{name: "UDP, client's socket anew, same port", server: serveUDP(5), client: callSamePort(5)},
		{name: "UDP, SO_REUSEPORT of one workload", server: serveGroupUDP(reusePort), client: callPorts(40)},
		{name: "UDP, a socket for each client", server: serveEachUDP, client: callEachUDP},
		{name: "UDP, answer from another port", server: serveOtherPort, client: callOtherPort, whos: bothWays},
		{name: "UDP, child has the socket", server: serveUDPByChild, client: callUDP()},
		{name: "UDP, 40000 bytes", server: serveUDP(1), client: callLarge(40_000)},
		{name: "UDP, empty datagram", server: serveUDP(2), client: callEmpty},
		{name: "UDP, connected to itself", server: (*side).ready, client: callItselfUDP, whos: alone},
		{name: "UDP, closed port", server: (*side).ready, client: callClosedUDP, whos: noServer},
		{name: "UDP, port closed after an answer", server: serveThenClosed, client: callThenClosed, whos: mayMiss},
		{name: "UDP, socket bound to a device", server: serveDeviceUDP, client: callUDP()},
		{name: "UDP, client bound to a device", server: serveUDP(1), client: callUDPByDevice},
		{name: "UDP, client at another address", server: serveUDP(1), client: callUDPFromElsewhere},
		{name: "UDP, segments", server: serveSegments, client: callSegments},
		{name: "UDP, mark and priority set", server: serveUDP(1, marked...), client: callUDP(marked...)},
		{name: "UDP, fragments", server: serveUDP(2), client: callLarge(40_000, 3_000), phase: smallMTU},
		{name: "UDP, fragments, several answers", server: serveSeveral, client: callSeveral, phase: smallMTU},
		{name: "UDP, DNAT on OUTPUT", server: serveUDP(1), client: callUDPTranslated, addrs: only4, phase: translated,
			prepare: dnat("udp")},
		{name: "UDP, DNAT on OUTPUT, server pushes", server: servePush, client: callPushTranslated, addrs: only4,
			phase: translated, prepare: dnat("udp")},
		{name: "UDP-Lite", server: serveLite, client: callLite, whos: noServer},
		{name: "SCTP", server: serveSCTP, client: callSCTP, whos: noServer},
		{name: "ping to an own address", server: (*side).ready, client: ping(unix.SOCK_DGRAM), whos: noServer},
		{name: "raw ping to an own address", server: (*side).ready, client: ping(unix.SOCK_RAW), whos: noServer},
	}
}

func serveUDP(n int, options ...option) func(*side) {
	return func(s *side) {
		c := s.datagrams(s.addr(0), options...)
		s.ready()
		s.answer(c, n)
	}
}

func serveWildUDP(s *side) {
	c := s.datagrams(s.anyAddr(0))
	s.ready()
	s.answer(c, 1)
}

func serveDualUDP(s *side) {
	fd := s.socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, opt(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	s.check(unix.Bind(fd, sockaddr(netip.IPv6Unspecified(), s.port)))
	s.ready()
	buf := make([]byte, 100)
	n, from, err := receive(fd, buf)
	s.check(err)
	s.check(unix.Sendto(fd, buf[:n], 0, from))
}

func callUDP(options ...option) func(*side) {
	return func(s *side) { s.askUDP(s.connectUDP(s.addr(0), "", options...), "q") }
}

func (s *side) askUDP(c *net.UDPConn, data string) {
	s.write(c, data)
	s.nextIs(c, data)
}

func callUDPByDevice(s *side) { callUDP(device(deviceOf(s.at)))(s) }

// dest is the case's n-th port at the server's address.
func (s *side) dest(n int) netip.AddrPort { return netip.AddrPortFrom(s.at, uint16(s.port+n)) }

func callUnconnected(s *side) {
	c := s.datagrams(net.JoinHostPort(s.any().String(), "0"))
	s.sendTo(c, "q", s.dest(0))
	data, from := s.next(c)
	s.want(data == "q" && from == s.dest(0), "got %q from %v", data, from)
}

func serveSeveral(s *side) {
	c := s.datagrams(s.addr(0))
	s.ready()
	_, from := s.next(c)
	for i := range 20 {
		s.sendTo(c, fmt.Sprintf("%d %s", i, payload(3000)), from)
	}
}

func callSeveral(s *side) {
	c := s.connectUDP(s.addr(0), "", opt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20))
	s.write(c, "q")
	for i := range 20 {
		s.nextIs(c, fmt.Sprintf("%d %s", i, payload(3000)))
	}
}

// serveLate answers when it has answered what was asked later, at another port.
func serveLate(s *side) {
	c, other := s.datagrams(s.addr(0)), s.datagrams(s.addr(1))
	s.ready()
	data, from := s.next(c)
	s.answer(other, 5)
	s.sendTo(c, data, from)
}

func callLateUDP(s *side) {
	c, other := s.connectUDP(s.addr(0), ""), s.connectUDP(s.addr(1), "")
	s.write(c, "q")
	for range 5 {
		s.askUDP(other, "later")
	}
	s.nextIs(c, "q")
}

// servePush sends without being asked again, ten times, after one request.
func servePush(s *side) {
	c := s.datagrams(s.addr(0))
	s.ready()
	data, from := s.next(c)
	s.sendTo(c, data, from)
	for i := range 10 {
		s.hear()
		s.sendTo(c, strconv.Itoa(i), from)
	}
}

func callPush(s *side) { s.pushed(s.connectUDP(s.addr(0), "")) }

func (s *side) pushed(c *net.UDPConn) {
	s.askUDP(c, "q")
	for i := range 10 {
		s.tell("next")
		s.nextIs(c, strconv.Itoa(i))
	}
}

// serveConnected connects its socket to who asked first, as the client did.
func serveConnected(s *side) {
	reuse := opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	c := s.datagrams(s.addr(0), reuse)
	s.ready()
	_, from := s.next(c)
	peer := s.connectUDP(from.String(), s.addr(0), reuse)
	s.close(c)
	s.write(peer, "1")
	s.nextIs(peer, "y")
	s.write(peer, "2")
}

func callConnected(s *side) {
	c := s.connectUDP(s.addr(0), s.addr(1))
	s.write(c, "x")
	s.nextIs(c, "1")
	s.write(c, "y")
	s.nextIs(c, "2")
}

// callPorts asks from n sockets.
func callPorts(n int) func(*side) {
	return func(s *side) {
		var all []*net.UDPConn
		for i := range n {
			c := s.connectUDP(s.addr(0), "")
			s.write(c, strconv.Itoa(i))
			all = append(all, c)
		}
		for i, c := range all {
			s.nextIs(c, strconv.Itoa(i))
		}
	}
}

func serveAnew(s *side) {
	for range 3 {
		c := s.datagrams(s.addr(0))
		s.ready()
		s.answer(c, 1)
		s.close(c)
		s.hear()
	}
}

func callAnew(s *side) {
	c := s.connectUDP(s.addr(0), "")
	for i := range 3 {
		if i > 0 {
			s.hear()
		}
		s.askUDP(c, strconv.Itoa(i))
		s.tell("next")
	}
}

func callSamePort(n int) func(*side) {
	return func(s *side) {
		for i := range n {
			c := s.connectUDP(s.addr(0), s.addr(1))
			s.askUDP(c, strconv.Itoa(i))
			s.close(c)
		}
	}
}

func serveGroupUDP(options ...option) func(*side) {
	return func(s *side) {
		done := make(chan struct{})
		for range 3 {
			c := s.datagrams(s.addr(0), options...)
			go func() {
				_ = catch(func() { s.answer(c, 1000) }) // ends with the socket
				done <- struct{}{}
			}()
			s.later(func() { <-done })
			s.later(func() { c.Close() })
		}
		s.ready()
		s.hear() // the other side has ended
	}
}

// serveEachUDP answers each client from a socket that is connected to it, as servers of QUIC and DTLS do.
func serveEachUDP(s *side) {
	reuse := opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	c := s.datagrams(s.addr(0), reuse)
	s.ready()
	var each []*net.UDPConn
	for range 4 {
		_, from := s.next(c)
		own := s.connectUDP(from.String(), s.addr(0), reuse)
		s.write(own, "welcome")
		each = append(each, own)
	}
	for _, own := range each {
		s.answer1(own)
	}
}

func (s *side) answer1(c *net.UDPConn) {
	data, _ := s.next(c)
	s.write(c, data)
}

func callEachUDP(s *side) {
	var all []*net.UDPConn
	for range 4 {
		c := s.connectUDP(s.addr(0), "")
		s.write(c, "hello")
		s.nextIs(c, "welcome")
		all = append(all, c)
	}
	for _, c := range all {
		s.askUDP(c, "again")
	}
}

// serveOtherPort answers as TFTP does.
func serveOtherPort(s *side) {
	c, other := s.datagrams(s.addr(0)), s.datagrams(s.addr(1))
	s.ready()
	data, from := s.next(c)
	s.sendTo(other, data, from)
	s.answer(other, 1)
}

func callOtherPort(s *side) {
	c := s.datagrams(s.addr(2))
	s.sendTo(c, "read", s.dest(0))
	data, from := s.next(c)
	s.want(data == "read" && from == s.dest(1), "got %q from %v", data, from)
	s.sendTo(c, "ack", from)
	s.nextIs(c, "ack")
}

func serveUDPByChild(s *side) {
	child := s.startChild("datagram", s.file(s.datagrams(s.addr(0))))
	s.ready()
	s.wait(child)
}

func childDatagram(s *side, file *os.File) {
	c, err := net.FilePacketConn(file)
	s.check(err)
	s.close(file)
	s.answer(s.haveUDP(c.(*net.UDPConn)), 1)
}

func callLarge(sizes ...int) func(*side) {
	return func(s *side) {
		c := s.connectUDP(s.addr(0), "")
		for _, size := range sizes {
			s.askUDP(c, payload(size))
		}
	}
}

func callEmpty(s *side) {
	c := s.connectUDP(s.addr(0), "")
	s.askUDP(c, "")
	s.askUDP(c, "q")
}

func callItselfUDP(s *side) {
	c := s.connectUDP(s.addr(0), s.addr(0))
	s.askUDP(c, "hi")
	s.askUDP(c, "ho")
}

func callClosedUDP(s *side) { s.refused(s.connectUDP(s.addr(0), "")) }

func (s *side) refused(c *net.UDPConn) {
	s.write(c, "q")
	_, err := c.Read(make([]byte, 1))
	s.want(errors.Is(err, unix.ECONNREFUSED), "got %v, want %v", err, unix.ECONNREFUSED)
}

func serveThenClosed(s *side) {
	c := s.datagrams(s.addr(0))
	s.ready()
	s.answer(c, 1)
	s.close(c)
	s.tell("closed")
}

func callThenClosed(s *side) {
	c := s.connectUDP(s.addr(0), "")
	s.askUDP(c, "q")
	s.hear()
	s.refused(c)
}

func serveDeviceUDP(s *side) {
	c := s.datagrams(s.anyAddr(0), device(deviceOf(s.at)))
	s.ready()
	s.answer(c, 1)
}

func callUDPFromElsewhere(s *side) { s.askUDP(s.connectUDP(s.addr(0), s.elsewhere()), "q") }

// The client sends ten datagrams at once (UDP_SEGMENT), and the server may get them as one (UDP_GRO).
func serveSegments(s *side) {
	c := s.datagrams(s.addr(0), opt(unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	s.ready()
	n := 0
	for n < 10_000 {
		data, from := s.next(c)
		if n += len(data); n >= 10_000 {
			s.sendTo(c, strconv.Itoa(n), from)
		}
	}
}

func callSegments(s *side) {
	c := s.connectUDP(s.addr(0), "", opt(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000))
	s.write(c, payload(10_000))
	s.nextIs(c, "10000")
}

func callUDPTranslated(s *side) { s.askUDP(s.connectUDP(s.translated(translated4), ""), "q") }

func callPushTranslated(s *side) { s.pushed(s.connectUDP(s.translated(translated4), "")) }

func serveLite(s *side) {
	fd := s.socket(s.family(), unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	s.check(unix.Bind(fd, s.sockaddr(0)))
	s.ready()
	for range 2 {
		buf := make([]byte, 100)
		n, from, err := receive(fd, buf)
		s.check(err)
		s.check(unix.Sendto(fd, buf[:n], 0, from))
	}
}

func callLite(s *side) {
	fd := s.socket(s.family(), unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	s.check(unix.Connect(fd, s.sockaddr(0)))
	for range 2 {
		s.rawWrite(fd, "q")
		s.rawRead(fd, "q")
	}
}

func serveSCTP(s *side) {
	fd := s.socket(s.family(), unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	s.check(unix.Bind(fd, s.sockaddr(0)))
	s.check(unix.Listen(fd, 5))
	s.ready()
	c, _, err := acceptRaw(fd)
	s.check(err)
	s.later(func() { unix.Close(c) })
	s.rawRead(c, "hi")
	s.rawWrite(c, "hi")
	_, _ = unix.Read(c, make([]byte, 1))
}

func callSCTP(s *side) {
	fd := s.socket(s.family(), unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	s.check(unix.Connect(fd, s.sockaddr(0)))
	s.rawWrite(fd, "hi")
	s.rawRead(fd, "hi")
}

// ping sends an echo request from a ping socket or a raw one.
func ping(kind int) func(*side) {
	return func(s *side) {
		request, answer, protocol := byte(8), byte(0), unix.IPPROTO_ICMP
		if s.is6() {
			request, answer, protocol = 128, 129, unix.IPPROTO_ICMPV6
		}
		fd := s.socket(s.family(), kind, protocol)
		s.check(unix.Connect(fd, s.sockaddr(-s.port)))
		id := uint16(s.port)
		packet := binary.BigEndian.AppendUint16([]byte{request, 0, 0, 0}, id)
		packet = binary.BigEndian.AppendUint16(packet, 1)
		if !s.is6() { // the kernel computes the other one
			binary.BigEndian.PutUint16(packet[2:], ^(uint16(request)<<8 + id + 1))
		}
		s.rawWrite(fd, string(packet))
		for {
			buf := make([]byte, 200)
			n, _, err := receive(fd, buf)
			s.check(err)
			buf = buf[:n]
			if kind == unix.SOCK_RAW && !s.is6() {
				buf = buf[20:]
			}
			if len(buf) >= 8 && buf[0] == answer && (kind != unix.SOCK_RAW || binary.BigEndian.Uint16(buf[4:]) == id) {
				return
			}
		}
	}
}
