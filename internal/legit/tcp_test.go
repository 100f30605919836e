package legit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

const big = 300_000

// tcpSituations are of TCP: opening, closing, and who has the socket meanwhile.
func tcpSituations() []situation {
	deferring := opt(unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
	longDeferring := opt(unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5)
	marked := []option{opt(unix.SOL_SOCKET, unix.SO_MARK, 1), opt(unix.SOL_SOCKET, unix.SO_PRIORITY, 6)}
	lateMark := []option{opt(unix.SOL_SOCKET, unix.SO_MARK, -1), opt(unix.IPPROTO_IP, unix.IP_TOS, 0x10)}
	return []situation{
		{name: "client first", server: serveEcho(), client: callEcho()},
		{name: "server first", server: serveGreeting(), client: callGreeting()},
		{name: "half close by the client", server: serveCount, client: callCount},
		{name: "half close by the server", server: serveHalf, client: callHalf},
		{name: "half close by the client at once, server first", server: serveAfterEnd, client: callEndFirst},
		{name: "both directions, 300 kB", server: serveDuplex, client: callDuplex},
		{name: "slow reader", server: serveSlowly, client: callFull},
		{name: "child has the connection", server: serveByChild("echo"), client: callEcho()},
		{name: "child has the connection, server first", server: serveByChild("greet"), client: callGreeting()},
		{name: "client's child has the connection", server: serveEcho(), client: callByChild},
		{name: "child has the listener (SCM_RIGHTS)", server: serveByAccepter, client: callEcho()},
		{name: "listener closed after accept", server: serveAlone(false), client: callAlone(false)},
		{name: "listener closed after accept, server first", server: serveAlone(true), client: callAlone(true)},
		{name: "server restarts", server: serveRestart, client: callTwice},
		{name: "deferred accept", server: serveEcho(longDeferring), client: callEcho()},
		{name: "deferred accept, slow client", server: serveEcho(deferring), client: callSlow},
		{name: "deferring client", server: serveEcho(), client: callEcho(deferring)},
		{name: "deferring client, server first", server: serveGreeting(), client: callGreeting(deferring)},
		{name: "both defer", server: serveEcho(longDeferring), client: callEcho(deferring)},
		{name: "Fast Open", server: serveFastOpen(true, 3), client: callFastOpen(3)},
		{name: "Fast Open, no cookie", server: serveFastOpen(false, 2), client: callFastOpen(2)},
		{name: "Fast Open by connect", server: serveFastOpen(true, 3), client: callFastOpenConnect(3)},
		{name: "SO_REUSEPORT of one workload", server: serveGroup, client: callMany(30, 1)},
		{name: "many short connections", server: serveMany(100), client: callMany(100, 1)},
		{name: "many at a time", server: serveMany(40), client: callMany(40, 10)},
		{name: "client gone before accept", server: serveGone, client: callGone},
		{name: "small backlog", server: serveBacklog, client: callBacklog},
		{name: "port again, TIME_WAIT at the server", server: serveAgain(true), client: callAgain(true)},
		{name: "port again, TIME_WAIT at the client", server: serveAgain(false), client: callAgain(false)},
		{name: "port again, TIME_WAIT at the server, deferred accept", server: serveAgain(true, longDeferring),
			client: callAgain(true)},
		{name: "port again, TIME_WAIT at the server, server first", server: serveAgainGreeting(true),
			client: callAgainGreeting(true)},
		{name: "port again, TIME_WAIT at the client, server first", server: serveAgainGreeting(false),
			client: callAgainGreeting(false)},
		{name: "simultaneous close", server: serveSimultaneous, client: callSimultaneous},
		{name: "reset by the client, port again", server: serveReset(false), client: callReset(false)},
		{name: "reset by the server, port again", server: serveReset(true), client: callReset(true)},
		{name: "idle, then the server", server: serveIdle, client: callIdle},
		{name: "idle, then the client", server: serveEcho(), client: callIdleFirst},
		{name: "wildcard listener", server: serveWild, client: callEcho()},
		{name: "wildcard listener, server first", server: serveGreetingWild, client: callGreeting()},
		{name: "dual-stack listener", server: serveDual, client: callEcho(), addrs: only4},
		{name: "client of IPv6 calls IPv4", server: serveEcho(), client: callMapped, addrs: only4},
		{name: "client at another address", server: serveWild, client: callFromElsewhere},
		{name: "client at another address, server first", server: serveGreetingWild, client: callGreetingFromElsewhere},
		{name: "listener bound to a device", server: serveDevice(false), client: callEcho()},
		{name: "listener bound to a device, server first", server: serveDevice(true), client: callGreeting()},
		{name: "client bound to a device", server: serveEcho(), client: callDevice},
		{name: "closed port", server: (*side).ready, client: callClosed, whos: noServer},
		{name: "closed port, listener just gone", server: serveThenGone, client: callThenGone},
		{name: "mark and priority set", server: serveEcho(marked...), client: callEcho(marked...)},
		{name: "all marks set", server: serveEcho(lateMark...), client: callEcho(lateMark...)},
		{name: "MPTCP", server: serveMultipath, client: callMultipath(true)},
		{name: "MPTCP client, TCP listener", server: serveEcho(), client: callMultipath(false)},
		{name: "connects to itself", server: (*side).ready, client: callItself, whos: alone},
		{name: "SYN cookies, client first", server: serveEcho(), client: callEcho(), phase: cookies},
		{name: "SYN cookies, server first", server: serveGreeting(), client: callGreeting(), phase: cookies},
		{name: "DNAT on OUTPUT", server: serveEcho(), client: callTranslated(translated4), addrs: only4,
			phase:   translated,
			prepare: dnat("tcp")},
		{name: "DNAT on OUTPUT, server first", server: serveGreeting(),
			client: greetTranslated(translated4), addrs: only4,
			phase: translated, prepare: dnat("tcp")},
		{name: "REDIRECT on OUTPUT", server: serveEcho(), client: callRedirected, addrs: only4, phase: translated,
			prepare: redirect},
		{name: "small MTU, both directions, 300 kB", server: serveDuplex, client: callDuplex, phase: smallMTU},
	}
}

func serveEcho(options ...option) func(*side) {
	return func(s *side) {
		c := s.accept(s.listen(options...))
		s.echo(c, 2)
		s.closed(c)
	}
}

func callEcho(options ...option) func(*side) {
	return func(s *side) { s.ask(s.dial(options...), "hi") }
}

// callSlow speaks when the server, which waits for data, has repeated its SYN-ACK.
func callSlow(s *side) {
	c := s.dial()
	s.until("another SYN-ACK", func() bool { return s.info(c).Segs_in > 1 })
	s.ask(c, "hi")
}

func callIdleFirst(s *side) {
	c := s.dial()
	s.idle(c)
	s.ask(c, "hi")
}

func serveGreeting(options ...option) func(*side) {
	return func(s *side) { s.greet(s.accept(s.listen(options...))) }
}

func (s *side) greet(c net.Conn) {
	s.write(c, "220")
	s.read(c, "QUIT")
	s.closed(c)
}

func callGreeting(options ...option) func(*side) {
	return func(s *side) { s.greeted(s.dial(options...)) }
}

func (s *side) greeted(c net.Conn) {
	s.read(c, "220")
	s.write(c, "QUIT")
}

func (s *side) count(c net.Conn) int {
	n := 0
	for buf := make([]byte, 64<<10); ; {
		k, err := c.Read(buf)
		n += k
		if k == 0 {
			s.want(err != nil && err.Error() == "EOF", "after %d bytes: %v", n, err)
			return n
		}
	}
}

func serveCount(s *side) {
	c := s.accept(s.listen())
	s.write(c, fmt.Sprintf("%08d", s.count(c)))
}

func callCount(s *side) {
	c := s.dial()
	s.write(c, payload(big))
	s.check(c.CloseWrite())
	s.read(c, fmt.Sprintf("%08d", big))
	s.ends(c)
}

func serveHalf(s *side) {
	c := s.accept(s.listen())
	s.write(c, "bye")
	s.check(c.CloseWrite())
	s.read(c, "after")
	s.ends(c)
}

func callHalf(s *side) {
	c := s.dial()
	s.read(c, "bye")
	s.ends(c)
	s.write(c, "after")
}

func serveAfterEnd(s *side) {
	c := s.accept(s.listen())
	s.ends(c)
	s.write(c, payload(big))
}

func callEndFirst(s *side) {
	c := s.dial()
	s.check(c.CloseWrite())
	s.read(c, payload(big))
	s.ends(c)
}

func (s *side) duplex(c *net.TCPConn) {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte(payload(big)))
		sent <- errors.Join(err, c.CloseWrite())
	}()
	s.read(c, payload(big))
	s.ends(c)
	s.check(<-sent)
}

func serveDuplex(s *side) { s.duplex(s.accept(s.listen())) }
func callDuplex(s *side)  { s.duplex(s.dial()) }

// The client fills the connection until it has no room, and the server reads only then.
func serveSlowly(s *side) {
	c := s.accept(s.listen(opt(unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)))
	s.hear()
	s.write(c, fmt.Sprintf("%08d", s.count(c)))
}

func callFull(s *side) {
	c := s.dial(opt(unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10))
	n := 0
	for {
		s.check(c.SetWriteDeadline(time.Now().Add(250 * time.Millisecond)))
		k, err := c.Write([]byte(payload(10_000)))
		n += k
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		s.check(err)
	}
	s.tell("full")
	s.check(c.SetDeadline(time.Now().Add(limit)))
	s.write(c, payload(20_000))
	s.check(c.CloseWrite())
	s.read(c, fmt.Sprintf("%08d", n+20_000))
}

func serveByChild(part string) func(*side) {
	return func(s *side) {
		l := s.listen()
		s.wait(s.startChild(part, s.file(s.accept(l))))
	}
}

func callByChild(s *side) { s.wait(s.startChild("ask", s.file(s.dial()))) }

func (s *side) inherited(file *os.File) *net.TCPConn {
	c, err := net.FileConn(file)
	s.check(err)
	s.close(file)
	return s.have(c.(*net.TCPConn))
}

func childEcho(s *side, file *os.File) {
	c := s.inherited(file)
	s.echo(c, 2)
	s.closed(c)
}

func childGreet(s *side, file *os.File) { s.greet(s.inherited(file)) }
func childAsk(s *side, file *os.File)   { s.ask(s.inherited(file), "hi") }

// serveByAccepter passes the listener to a process that accepts.
func serveByAccepter(s *side) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	s.check(err)
	s.later(func() { unix.Close(fds[0]) })
	child := s.startChild("accept", os.NewFile(uintptr(fds[1]), "box"))
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	l, err := config.Listen(s.context(), s.net("tcp"), s.addr(0))
	s.check(err)
	listener := s.file(l.(*net.TCPListener))
	s.check(unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(int(listener.Fd())), nil, 0))
	s.close(listener)
	s.ready()
	s.wait(child)
}

func childAccept(s *side, box *os.File) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(box.Fd()), make([]byte, 1), oob, 0)
	s.check(err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	s.check(err)
	fds, err := unix.ParseUnixRights(&messages[0])
	s.check(err)
	l, err := net.FileListener(os.NewFile(uintptr(fds[0]), "listener"))
	s.check(err)
	c := s.accept(l.(*net.TCPListener))
	s.echo(c, 2)
	s.closed(c)
}

func serveAlone(first bool) func(*side) {
	return func(s *side) {
		l := s.listen()
		c := s.accept(l)
		s.close(l)
		if first {
			s.greet(c)
			return
		}
		s.tell("closed")
		s.echo(c, 2)
	}
}

func callAlone(first bool) func(*side) {
	return func(s *side) {
		c := s.dial()
		if first {
			s.greeted(c)
			return
		}
		s.hear()
		s.ask(c, "hi")
		s.ends(c)
	}
}

func serveRestart(s *side) {
	for range 2 {
		l := s.listen()
		s.echo(s.accept(l), 2)
		s.close(l)
	}
}

func callTwice(s *side) {
	first := s.dial()
	s.ask(first, "hi")
	s.hear()
	s.ask(s.dial(), "ho")
}

func serveFastOpen(enabled bool, n int) func(*side) {
	return func(s *side) {
		var options []option
		if enabled {
			options = append(options, opt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16))
		}
		l := s.listen(options...)
		for range n {
			c := s.accept(l)
			s.echo(c, 2)
			s.closed(c)
		}
	}
}

// callFastOpen gets a cookie with the first connection, and uses it later.
func callFastOpen(n int) func(*side) {
	return func(s *side) {
		for range n {
			fd := s.socket(s.family(), unix.SOCK_STREAM, 0)
			s.check(unix.Sendto(fd, []byte("hi"), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, s.sockaddr(0)))
			s.rawRead(fd, "hi")
			s.check(unix.Shutdown(fd, unix.SHUT_RDWR))
		}
	}
}

func callFastOpenConnect(n int) func(*side) {
	return func(s *side) {
		for range n {
			fd := s.socket(s.family(), unix.SOCK_STREAM, 0, opt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1))
			s.check(unix.Connect(fd, s.sockaddr(0)))
			s.rawWrite(fd, "hi")
			s.rawRead(fd, "hi")
			s.check(unix.Shutdown(fd, unix.SHUT_RDWR))
		}
	}
}

// serveGroup has three listeners at the port, and answers whichever gets the connection.
func serveGroup(s *side) {
	served := make(chan error, 3)
	var mu sync.Mutex
	left := 30
	var listeners []*net.TCPListener
	for range 3 {
		config := net.ListenConfig{Control: control([]option{opt(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)})}
		config.SetMultipathTCP(false)
		l, err := config.Listen(s.context(), s.net("tcp"), s.addr(0))
		s.check(err)
		s.later(func() { l.Close() })
		listeners = append(listeners, l.(*net.TCPListener))
	}
	s.ready()
	for _, l := range listeners {
		go func() {
			served <- catch(func() {
				for {
					c, err := l.AcceptTCP()
					if errors.Is(err, net.ErrClosed) {
						return
					}
					s.check(err)
					s.check(c.SetDeadline(time.Now().Add(limit)))
					s.echo(c, 2)
					c.Close()
					mu.Lock()
					if left--; left == 0 {
						for _, l := range listeners {
							l.Close()
						}
					}
					mu.Unlock()
				}
			})
		}()
	}
	for range listeners {
		select {
		case err := <-served:
			s.check(err)
		case <-time.After(3 * limit):
			s.check(errQuiet)
		}
	}
}

func serveMany(n int) func(*side) {
	return func(s *side) {
		l := s.listen()
		var all sync.WaitGroup
		for range n {
			c := s.accept(l)
			all.Go(func() {
				data := make([]byte, 2)
				if _, err := c.Read(data); err == nil {
					_, _ = c.Write(data)
				}
				c.Close()
			})
		}
		all.Wait()
	}
}

// callMany opens n connections, some at a time.
func callMany(n, atATime int) func(*side) {
	return func(s *side) {
		errs := make(chan error, atATime)
		for range atATime {
			go func() {
				for range n / atATime {
					c, err := s.tryDial(s.addr(0), "")
					if err == nil {
						err = oneEcho(c)
					}
					if err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range atATime {
			s.check(<-errs)
		}
	}
}

func oneEcho(c *net.TCPConn) error {
	defer c.Close()
	data := make([]byte, 2)
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hi")); err != nil {
		return err
	}
	_, err := c.Read(data)
	if err == nil && string(data) != "hi" {
		err = fmt.Errorf("read %q", data)
	}
	return err
}

// The client sends and closes before the server accepts.
func serveGone(s *side) {
	l := s.listen()
	s.hear()
	c := s.accept(l)
	s.read(c, "hi")
	s.ends(c)
}

func callGone(s *side) {
	c := s.dial()
	s.write(c, "hi")
	s.close(c)
	s.tell("gone")
}

// The first two connections fill the backlog, so that SYNs of others are lost.
func serveBacklog(s *side) {
	fd := s.socket(s.family(), unix.SOCK_STREAM, 0)
	s.check(unix.Bind(fd, s.sockaddr(0)))
	s.check(unix.Listen(fd, 1))
	s.ready()
	s.hear()
	for range 4 {
		c, _, err := acceptRaw(fd)
		s.check(err)
		s.later(func() { unix.Close(c) })
		s.rawRead(c, "hi")
		s.rawWrite(c, "hi")
	}
}

func callBacklog(s *side) {
	first, second := s.dial(), s.dial()
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			c, err := s.tryDial(s.addr(0), "")
			if err == nil {
				err = oneEcho(c)
			}
			errs <- err
		}()
	}
	s.tell("full")
	s.ask(first, "hi")
	s.ask(second, "hi")
	s.check(<-errs)
	s.check(<-errs)
}

// serveAgain and callAgain connect thrice from one port. Who closes first is in TIME_WAIT.
func serveAgain(first bool, options ...option) func(*side) {
	return func(s *side) {
		l := s.listen(options...)
		for range 3 {
			c := s.accept(l)
			s.echo(c, 2)
			if !first {
				s.ends(c)
			}
			s.close(c)
		}
	}
}

func callAgain(serverFirst bool) func(*side) {
	return func(s *side) {
		for range 3 {
			c := s.dialFrom()
			s.swift(func() { s.ask(c, "hi") })
			if serverFirst {
				s.ends(c)
			}
			s.close(c)
		}
	}
}

// swift wants no packet to be lost and repeated after a second, as a SYN is. Where that much passes without a loss,
// because the machine is slow, only a packet that is lost several times is found.
func (s *side) swift(fn func()) {
	begin := time.Now()
	fn()
	took := time.Since(begin)
	s.want(took < nstest.Patience(900*time.Millisecond), "it took %v: something was repeated", took)
}

func serveAgainGreeting(first bool) func(*side) {
	return func(s *side) {
		l := s.listen()
		for range 3 {
			c := s.accept(l)
			s.write(c, "220")
			if !first {
				s.ends(c)
			}
			s.close(c)
		}
	}
}

func callAgainGreeting(serverFirst bool) func(*side) {
	return func(s *side) {
		for range 3 {
			c := s.dialFrom()
			s.swift(func() { s.read(c, "220") })
			if serverFirst {
				s.ends(c)
			}
			s.close(c)
		}
	}
}

func serveSimultaneous(s *side) {
	l := s.listen()
	for range 5 {
		c := s.accept(l)
		s.echo(c, 2)
		s.tell("now")
		s.hear()
		s.close(c)
	}
}

func callSimultaneous(s *side) {
	for range 5 {
		c := s.dial()
		s.ask(c, "hi")
		s.tell("now")
		s.hear()
		s.close(c)
	}
}

func serveReset(byServer bool) func(*side) {
	return func(s *side) {
		l := s.listen()
		for range 3 {
			c := s.accept(l)
			s.echo(c, 2)
			if byServer {
				s.abort(c)
				continue
			}
			_, err := c.Read(make([]byte, 1))
			s.want(errors.Is(err, unix.ECONNRESET), "got %v, want a reset", err)
			s.close(c)
			s.tell("next")
		}
	}
}

func callReset(byServer bool) func(*side) {
	return func(s *side) {
		for range 3 {
			c := s.dialFrom()
			s.swift(func() { s.ask(c, "hi") })
			if !byServer {
				s.abort(c)
				s.hear()
				continue
			}
			_, err := c.Read(make([]byte, 1))
			s.want(errors.Is(err, unix.ECONNRESET), "got %v, want a reset", err)
			s.close(c)
		}
	}
}

func serveIdle(s *side) {
	c := s.accept(s.listen())
	s.idle(c)
	s.write(c, "tick")
	s.closed(c)
}

func callIdle(s *side) { s.read(s.dial(), "tick") }

func serveWild(s *side) {
	c := s.accept(s.listenAt(s.anyAddr(0)))
	s.echo(c, 2)
	s.closed(c)
}

func serveGreetingWild(s *side) { s.greet(s.accept(s.listenAt(s.anyAddr(0)))) }

func serveDual(s *side) {
	c := s.accept(s.listenAt("[::]:" + strconv.Itoa(s.port)))
	s.echo(c, 2)
	s.closed(c)
}

func callMapped(s *side) {
	fd := s.socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	s.check(unix.Connect(fd, &unix.SockaddrInet6{Port: s.port, Addr: s.at.As16()}))
	s.rawWrite(fd, "hi")
	s.rawRead(fd, "hi")
}

// elsewhere is another address of this node's.
func (s *side) elsewhere() string {
	other := map[string]string{"127.0.0.1": "127.0.0.7", ours4: "127.0.0.1", "::1": ours6, ours6: "::1"}[s.at.String()]
	return net.JoinHostPort(other, "0")
}

func callFromElsewhere(s *side)         { s.ask(s.dialAt(s.addr(0), s.elsewhere()), "hi") }
func callGreetingFromElsewhere(s *side) { s.greeted(s.dialAt(s.addr(0), s.elsewhere())) }

func serveDevice(first bool) func(*side) {
	return func(s *side) {
		c := s.accept(s.listenAt(s.anyAddr(0), device(deviceOf(s.at))))
		if first {
			s.greet(c)
			return
		}
		s.echo(c, 2)
		s.closed(c)
	}
}

func callDevice(s *side) { s.ask(s.dial(device(deviceOf(s.at))), "hi") }

func callClosed(s *side) {
	c, err := s.tryDial(s.addr(0), "")
	if err == nil {
		c.Close()
	}
	s.want(errors.Is(err, unix.ECONNREFUSED), "got %v, want %v", err, unix.ECONNREFUSED)
}

func serveThenGone(s *side) {
	l := s.listen()
	c := s.accept(l)
	s.echo(c, 2)
	s.close(l)
	s.tell("gone")
	s.closed(c)
}

func callThenGone(s *side) {
	c := s.dial()
	s.ask(c, "hi")
	s.hear()
	callClosed(s)
}

func serveMultipath(s *side) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(true)
	l, err := config.Listen(s.context(), s.net("tcp"), s.addr(0))
	s.check(err)
	s.later(func() { l.Close() })
	s.ready()
	c := s.accept(l.(*net.TCPListener))
	s.isMultipath(c)
	s.echo(c, 2)
	s.closed(c)
}

func (s *side) isMultipath(c *net.TCPConn) {
	is, err := c.MultipathTCP()
	s.check(err)
	s.want(is, "the connection is of plain TCP")
}

func callMultipath(both bool) func(*side) {
	return func(s *side) {
		d := net.Dialer{Timeout: limit}
		d.SetMultipathTCP(true)
		conn, err := d.Dial("tcp", s.addr(0))
		s.check(err)
		c := s.have(conn.(*net.TCPConn))
		if both {
			s.isMultipath(c)
		}
		s.ask(c, "hi")
	}
}

// callItself opens a connection whose two ends are one socket.
func callItself(s *side) {
	fd := s.socket(s.family(), unix.SOCK_STREAM, 0)
	s.check(unix.Bind(fd, s.sockaddr(0)))
	s.check(unix.Connect(fd, s.sockaddr(0)))
	s.rawWrite(fd, "hi")
	s.rawRead(fd, "hi")
}

// translated4 is an address of no machine: nftables sends what goes there to the case's server.
const translated4 = "10.0.0.77"

func dnat(protocol string) func(s *side) string {
	return func(s *side) string {
		return fmt.Sprintf("add rule ip legit output ip daddr %s %s dport %d dnat to %s\n",
			translated4, protocol, s.port+2, s.addr(0))
	}
}

func redirect(s *side) string {
	return fmt.Sprintf("add rule ip legit output ip daddr %s tcp dport %d dnat to %s\n", s.at, s.port+2, s.addr(0))
}

func (s *side) translated(to string) string { return net.JoinHostPort(to, strconv.Itoa(s.port+2)) }

func callTranslated(to string) func(*side) {
	return func(s *side) { s.ask(s.dialAt(s.translated(to), ""), "hi") }
}

func greetTranslated(to string) func(*side) {
	return func(s *side) { s.greeted(s.dialAt(s.translated(to), "")) }
}

func callRedirected(s *side) { s.ask(s.dialAt(s.addr(2), ""), "hi") }
