package probe

import (
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// A UDPSocket is a UDP socket of a probe. What arrives is kept in the order in which it arrived.
type UDPSocket struct {
	Addr string // with the port that was chosen

	process  *Process
	handle   int
	received []Datagram
	errors   []ICMPError
}

// A Datagram is one that arrived.
type Datagram struct{ Data, From string }

// A ICMPError is what an ICMP error said about a datagram that the socket had sent.
type ICMPError struct {
	Errno unix.Errno
	To    string // where the datagram had been sent to
}

// OpenUDP opens and binds a socket as net.ListenPacket does: network "udp" with "[::]:53" is dual-stack, "udp6" is not.
func (p *Process) OpenUDP(network, addr string, options ...Option) *UDPSocket {
	p.t.Helper()
	r := p.call(request{Op: "udp", Network: network, From: addr, Options: options})
	return &UDPSocket{Addr: r.Addr, process: p, handle: r.Handle}
}

// Send sends a datagram: Connected if the kernel took it, Prohibited if it was not let out.
func (s *UDPSocket) Send(to, data string) Outcome {
	s.process.t.Helper()
	return s.process.call(request{Op: "sendto", Handle: s.handle, To: to, Data: data}).Outcome
}

// SendFrom is Send with a source address of this node that the socket chooses (IP_PKTINFO). The port stays the
// socket's.
func (s *UDPSocket) SendFrom(source, to, data string) Outcome {
	s.process.t.Helper()
	return s.process.call(request{Op: "sendfrom", Handle: s.handle, From: source, To: to, Data: data}).Outcome
}

// Received returns every datagram that arrived until now, of all that were sent before the call. It is final: what is
// not in it was lost (see nstest.Host.Barrier).
func (s *UDPSocket) Received() []Datagram {
	s.process.t.Helper()
	s.process.host.Barrier()
	s.drain()
	return s.received
}

// Got says whether a datagram with this data has arrived. The answer is final for all that was sent before.
func (s *UDPSocket) Got(data string) bool {
	s.process.t.Helper()
	s.drain()
	if s.has(data) {
		return true
	}
	s.process.host.Barrier()
	s.drain()
	return s.has(data)
}

// Errors returns the ICMP errors that came for what the socket had sent.
func (s *UDPSocket) Errors() []ICMPError {
	s.process.t.Helper()
	s.process.host.Barrier()
	s.drain()
	return s.errors
}

// Join joins a multicast group on a device.
func (s *UDPSocket) Join(group, device string) {
	s.process.t.Helper()
	s.process.call(request{Op: "join", Handle: s.handle, To: group, Device: device})
}

// MulticastTo has the socket send multicasts by a device.
func (s *UDPSocket) MulticastTo(device string) {
	s.process.t.Helper()
	s.process.call(request{Op: "multicast", Handle: s.handle, Device: device})
}

// Close closes the socket.
func (s *UDPSocket) Close() {
	s.process.t.Helper()
	s.process.close(s.handle)
}

func (s *UDPSocket) drain() {
	s.process.t.Helper()
	r := s.process.call(request{Op: "drain", Handle: s.handle})
	s.received = append(s.received, r.Received...)
	s.errors = append(s.errors, r.Errors...)
}

func (s *UDPSocket) has(data string) bool {
	for _, d := range s.received {
		if d.Data == data {
			return true
		}
	}
	return false
}

// UDP sends one datagram from a new socket and says whether it is now in one of the receivers' sockets.
func (p *Process) UDP(to string, receivers ...*UDPSocket) Verdict {
	p.t.Helper()
	network, any := "udp4", "0.0.0.0:0"
	if to[0] == '[' {
		network, any = "udp6", "[::]:0"
	}
	s := p.OpenUDP(network, any)
	defer s.Close()
	return s.Try(to, receivers...)
}

// Try is Process.UDP from this socket.
func (s *UDPSocket) Try(to string, receivers ...*UDPSocket) Verdict {
	s.process.t.Helper()
	token := fmt.Sprintf("token-%016x", rand.Uint64())
	known := len(s.errors)
	if outcome := s.Send(to, token); outcome != Connected {
		return Verdict{Outcome: outcome}
	}
	s.process.host.Barrier()
	for _, r := range receivers {
		if r.drain(); r.has(token) {
			return Verdict{Outcome: Arrived, Server: r.process.Name}
		}
	}
	if s.drain(); len(s.errors) > known {
		outcome, err := outcomeOf(s.errors[known].Errno)
		if err != nil {
			s.process.t.Fatalf("nstest: datagram to %s: %v", to, err)
		}
		return Verdict{Outcome: outcome}
	}
	return Verdict{Outcome: Silent}
}

// Ping sends an ICMP echo request from a ping socket, for which no privilege is needed, and says whether it was
// answered.
func (p *Process) Ping(to string) Verdict {
	p.t.Helper()
	return p.icmp(request{Op: "ping", To: to})
}

// ICMP sends an ICMP message of this type (ICMPv6 if to is IPv6) from a raw socket. Echo requests and timestamp
// requests are answered; of others it can be seen only whether they were let out.
func (p *Process) ICMP(to string, icmpType int) Verdict {
	p.t.Helper()
	return p.icmp(request{Op: "icmp", To: to, ICMPType: icmpType})
}

func (p *Process) icmp(req request) Verdict {
	p.t.Helper()
	r := p.call(req)
	if r.Outcome != pending {
		return Verdict{Outcome: r.Outcome}
	}
	p.host.Barrier()
	r = p.call(request{Op: "icmp-answer", Handle: r.Handle})
	return Verdict{Outcome: r.Outcome}
}
