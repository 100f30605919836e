package attack

import (
	"encoding/json"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest/probe"
)

// forge sends one datagram with a source address that the socket is not bound to.
func (s *sock) forge(source, to, data string) { s.flood(source, to, data, 1, 0) }

// flood sends n datagrams with a source address, one after each pause.
func (s *sock) flood(source, to, data string, n int, pause time.Duration) {
	s.t.Helper()
	s.ok(call{Op: "flood", FD: s.fd, To: to, Device: source, Data: []byte(data), A: n, B: int(pause.Microseconds())})
}

// count receives datagrams until none came for 300 ms, and returns how many of each there were. It sends each
// back, unless quiet.
func (s *sock) count(quiet bool) map[string]int {
	s.t.Helper()
	c := call{Op: "count", FD: s.fd, A: 300}
	if quiet {
		c.B = 1
	}
	var seen map[string]int
	must(s.t, json.Unmarshal(s.ok(c).Data, &seen))
	return seen
}

// stuck says whether what this socket of TCP sent was sent again twice, or its connection ended.
func (s *sock) stuck() bool { s.t.Helper(); return s.ok(call{Op: "stuck", FD: s.fd}).FD != 0 }

// flood is the agent's side. A datagram that the table drops is an error, which does not end the flood.
func flood(c call) error {
	to, err := probe.ParseSockaddr(c.To)
	if err != nil {
		return err
	}
	source, err := probe.SourceAddress(c.Device)
	if err != nil {
		return err
	}
	next := time.Now()
	for range c.A {
		err := unix.Sendmsg(c.FD, c.Data, source, to, 0)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		next = next.Add(time.Duration(c.B) * time.Microsecond)
		time.Sleep(time.Until(next))
	}
	return nil
}

// count is the agent's side.
func count(c call) (r result, err error) {
	seen := map[string]int{}
	buf := make([]byte, 2048)
	for {
		fds := []unix.PollFd{{Fd: int32(c.FD), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, c.A)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			r.Data, _ = json.Marshal(seen)
			return r, err
		}
		n, from, err := unix.Recvfrom(c.FD, buf, unix.MSG_DONTWAIT)
		if err != nil {
			continue // an ICMP error
		}
		seen[string(buf[:n])]++
		if c.B == 0 {
			_ = unix.Sendto(c.FD, buf[:n], 0, from)
		}
	}
}

// stuck is the agent's side. What OUTPUT drops counts as not sent yet, and is tried again as a probe.
func stuck(fd int) (r result, err error) {
	const closed = 7 // TCP_CLOSE
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && (info.State == closed || int(info.Total_retrans)+int(info.Probes) >= 2) {
		r.FD = 1
	}
	return r, err
}

// retransmitted is how often a socket of TCP sent something again.
func retransmitted(fd int) (int, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, err
	}
	return int(info.Total_retrans), nil
}
