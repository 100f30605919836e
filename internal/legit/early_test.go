package legit

import (
	"net"

	"golang.org/x/sys/unix"
)

// earlySituations begin before the table is loaded, and go on with it. When says whether conntrack knows of them.
func earlySituations(when phase, suffix string) []situation {
	return []situation{
		{name: "before the table: listener" + suffix, server: earlyListener(false), client: lateCall(false),
			phase: when},
		{name: "before the table: listener, server first" + suffix, server: earlyListener(true), client: lateCall(true),
			phase: when},
		{name: "before the table: not accepted" + suffix, server: earlyBacklog(false), client: earlyCall(false),
			phase: when},
		{name: "before the table: not accepted, server first" + suffix, server: earlyBacklog(true),
			client: earlyCall(true),
			phase:  when},
		{name: "before the table: established" + suffix, server: earlyConnection(false), client: earlyCall(false),
			phase: when},
		{name: "before the table: established, server first" + suffix, server: earlyConnection(true),
			client: earlyCall(true),
			phase:  when},
		{name: "before the table: used" + suffix, server: earlyUsed(false), client: earlyUser(false), phase: when},
		{name: "before the table: used, server first" + suffix, server: earlyUsed(true), client: earlyUser(true),
			phase: when},
		{name: "before the table: data under way" + suffix, server: earlyData, client: earlySender, phase: when},
		{name: "before the table: half closed" + suffix, server: earlyHalf, client: earlyHalfCall, phase: when},
		{name: "before the table: UDP" + suffix, server: earlyDatagrams, client: earlyAsker, phase: when},
		{name: "before the table: UDP, both connected" + suffix, server: earlyPeers, client: earlyPeer, phase: when},
	}
}

func (s *side) serve(c net.Conn, first bool) {
	if first {
		s.greet(c)
		return
	}
	s.echo(c, 2)
	s.closed(c)
}

func (s *side) use(c net.Conn, serverFirst bool) {
	if serverFirst {
		s.greeted(c)
		return
	}
	s.ask(c, "hi")
}

func earlyListener(first bool) func(*side) {
	return func(s *side) {
		l := s.listen()
		s.pause()
		s.serve(s.accept(l), first)
	}
}

func lateCall(serverFirst bool) func(*side) {
	return func(s *side) {
		s.pause()
		s.use(s.dial(), serverFirst)
	}
}

func earlyBacklog(first bool) func(*side) {
	return func(s *side) {
		l := s.listen()
		s.hear()
		s.pause()
		s.serve(s.accept(l), first)
	}
}

func earlyConnection(first bool) func(*side) {
	return func(s *side) {
		c := s.accept(s.listen())
		s.hear()
		s.pause()
		s.serve(s.have(c), first)
	}
}

func earlyCall(serverFirst bool) func(*side) {
	return func(s *side) {
		c := s.dial()
		s.tell("connected")
		s.pause()
		s.use(s.have(c), serverFirst)
	}
}

func earlyUsed(first bool) func(*side) {
	return func(s *side) {
		c := s.accept(s.listen())
		s.echo(c, 3)
		s.pause()
		s.serve(s.have(c), first)
	}
}

func earlyUser(serverFirst bool) func(*side) {
	return func(s *side) {
		c := s.dial()
		s.ask(c, "old")
		s.pause()
		s.use(s.have(c), serverFirst)
	}
}

// The server reads what was sent before the table only then.
func earlyData(s *side) {
	c := s.accept(s.listen())
	s.hear()
	s.pause()
	s.serve(s.have(c), false)
}

func earlySender(s *side) {
	c := s.dial()
	s.write(c, "hi")
	s.tell("sent")
	s.pause()
	s.read(s.have(c), "hi")
}

func earlyHalf(s *side) {
	c := s.accept(s.listen())
	s.ends(c)
	s.pause()
	s.write(s.have(c), payload(big))
}

func earlyHalfCall(s *side) {
	c := s.dial()
	s.check(c.CloseWrite())
	s.pause()
	s.have(c)
	s.read(c, payload(big))
	s.ends(c)
}

func earlyDatagrams(s *side) {
	c := s.datagrams(s.addr(0))
	s.ready()
	s.answer(c, 1)
	s.pause()
	s.answer(s.haveUDP(c), 2)
}

func earlyAsker(s *side) {
	c := s.connectUDP(s.addr(0), "")
	s.askUDP(c, "old")
	s.pause()
	s.haveUDP(c)
	s.askUDP(c, "new")
	s.askUDP(c, "again")
}

func earlyPeers(s *side) {
	reuse := opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	c := s.datagrams(s.addr(0), reuse)
	s.ready()
	_, from := s.next(c)
	peer := s.connectUDP(from.String(), s.addr(0), reuse)
	s.write(peer, "old")
	s.pause()
	s.haveUDP(peer)
	s.answer1(peer)
	s.answer1(peer)
}

func earlyPeer(s *side) {
	c := s.connectUDP(s.addr(0), s.addr(1))
	s.askUDP(c, "old")
	s.pause()
	s.haveUDP(c)
	s.askUDP(c, "new")
	s.askUDP(c, "again")
}
