package legit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// A side is one end of a case, and runs in a worker.
type side struct {
	at      netip.Addr // the server's address
	port    int        // the case has the ports from here on, portsOfCase of them
	box     chan string
	send    func(kind, text string)
	closers []func()
}

const portsOfCase = 4

// limit is how long one step of a case may take.
var limit = nstest.Patience(4 * time.Second)

var errQuiet = errors.New("the other side said nothing")

// play plays the side of the situation. The client begins when the server is ready.
func (s *side) play(of *situation, server bool) error {
	if of == nil {
		return errors.New("no such situation")
	}
	return s.protect(func() {
		if server {
			of.server(s)
			return
		}
		s.hear()
		of.client(s)
	})
}

// check ends the side if err is an error.
func (s *side) check(err error) {
	if err != nil {
		line := 0
		for skip := 1; ; skip++ { // the first line outside this file
			_, file, at, ok := runtime.Caller(skip)
			if line = at; !ok || !strings.HasSuffix(file, "/side_test.go") {
				break
			}
		}
		panic(failure{fmt.Errorf("line %d: %w", line, err)})
	}
}

func (s *side) want(ok bool, format string, args ...any) {
	if !ok {
		s.check(fmt.Errorf(format, args...))
	}
}

// tell says something to the other side, and hear waits for it.
func (s *side) tell(text string) { s.send("tell", text) }
func (s *side) ready()           { s.tell("ready") }

func (s *side) hear() string {
	select {
	case text := <-s.box:
		return text
	case <-time.After(2 * limit):
		s.check(errQuiet)
		return ""
	}
}

// pause waits until the test has loaded the table.
func (s *side) pause() {
	s.send("pause", "")
	s.check(s.patient(func() bool { return <-s.box == "go on" }))
}

func (s *side) patient(fn func() bool) error {
	done := make(chan bool, 1)
	go func() { done <- fn() }()
	select {
	case ok := <-done:
		if ok {
			return nil
		}
		return errors.New("something else was said")
	case <-time.After(10 * limit):
		return errQuiet
	}
}

// later has fn called when the side ends.
func (s *side) later(fn func()) { s.closers = append(s.closers, fn) }

func (s *side) is6() bool { return s.at.Is6() }

// addr is the server's address with one of the case's ports.
func (s *side) addr(n int) string { return netip.AddrPortFrom(s.at, uint16(s.port+n)).String() }

func (s *side) sockaddr(n int) unix.Sockaddr { return sockaddr(s.at, s.port+n) }

func sockaddr(at netip.Addr, port int) unix.Sockaddr {
	if at.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: at.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: at.As16()}
}

// any is the unspecified address of the same family.
func (s *side) any() netip.Addr {
	if s.is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (s *side) anyAddr(n int) string {
	return net.JoinHostPort(s.any().String(), strconv.Itoa(s.port+n))
}

func (s *side) family() int {
	if s.is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// net is the network of the address: "tcp4", "udp6".
func (s *side) net(protocol string) string {
	if s.is6() {
		return protocol + "6"
	}
	return protocol + "4"
}

// An option is set on a socket before it is bound.
type option func(fd int) error

func opt(level, name, value int) option {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

func device(name string) option {
	return func(fd int) error { return unix.BindToDevice(fd, name) }
}

// deviceOf is the device that has an address: the node's own two.
func deviceOf(at netip.Addr) string {
	if at.IsLoopback() {
		return "lo"
	}
	return link
}

func control(options []option) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		inner := c.Control(func(fd uintptr) {
			for _, o := range options {
				err = errors.Join(err, o(int(fd)))
			}
		})
		return errors.Join(inner, err)
	}
}

// listen opens a listener on the case's first port, and says that it is ready.
func (s *side) listen(options ...option) *net.TCPListener {
	return s.listenAt(s.addr(0), options...)
}

func (s *side) listenAt(addr string, options ...option) *net.TCPListener {
	network := s.net("tcp")
	if strings.HasPrefix(addr, "[::]") && !s.is6() {
		network = "tcp" // dual-stack
	}
	config := net.ListenConfig{Control: control(options), KeepAlive: -1}
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), network, addr)
	s.check(err)
	s.later(func() { l.Close() })
	s.ready()
	return l.(*net.TCPListener)
}

func (s *side) accept(l *net.TCPListener) *net.TCPConn {
	s.check(l.SetDeadline(time.Now().Add(limit)))
	c, err := l.AcceptTCP()
	s.check(err)
	return s.have(c)
}

// have gives a connection its deadline, and has it closed at the end.
func (s *side) have(c *net.TCPConn) *net.TCPConn {
	s.check(c.SetDeadline(time.Now().Add(limit)))
	s.later(func() { c.Close() })
	return c
}

func (s *side) dial(options ...option) *net.TCPConn { return s.dialAt(s.addr(0), "", options...) }

func (s *side) dialAt(to, from string, options ...option) *net.TCPConn {
	c, err := s.tryDial(to, from, options...)
	s.check(err)
	return s.have(c)
}

func (s *side) tryDial(to, from string, options ...option) (*net.TCPConn, error) {
	d := net.Dialer{Control: control(options), Timeout: limit, KeepAlive: -1}
	d.SetMultipathTCP(false)
	if from != "" {
		a, err := net.ResolveTCPAddr("tcp", from)
		s.check(err)
		d.LocalAddr = a
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// dialFrom connects from the case's second port, as soon as the kernel allows it to be used again.
func (s *side) dialFrom(options ...option) *net.TCPConn {
	options = append(options, opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	var c *net.TCPConn
	s.until("the port to be free", func() bool {
		var err error
		c, err = s.tryDial(s.addr(0), s.addr(1), options...)
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
			return false
		}
		s.check(err)
		return true
	})
	return s.have(c)
}

// until polls the condition until it holds. The side fails if it does not within limit.
func (s *side) until(what string, cond func() bool) {
	for deadline := time.Now().Add(limit); !cond(); time.Sleep(5 * time.Millisecond) {
		s.want(time.Now().Before(deadline), "waited in vain for %s", what)
	}
}

// info is what the kernel knows of a connection.
func (s *side) info(c *net.TCPConn) (info *unix.TCPInfo) {
	raw, err := c.SyscallConn()
	s.check(err)
	var infoErr error
	s.check(raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}))
	s.check(infoErr)
	return info
}

// idle waits until nothing came on a connection for longer than TCP delays an acknowledgement.
func (s *side) idle(c *net.TCPConn) {
	s.until("an idle connection", func() bool {
		i := s.info(c)
		return i.Unacked == 0 && min(i.Last_ack_recv, i.Last_data_recv, i.Last_data_sent) > 300 // milliseconds
	})
}

func (s *side) write(c io.Writer, data string) {
	_, err := io.WriteString(c, data)
	s.check(err)
}

// read wants just these bytes next.
func (s *side) read(c io.Reader, want string) {
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	s.check(err)
	s.want(string(got[:n]) == want, "read %.20q, want %.20q", got[:n], want)
}

// ends wants the other side's FIN next.
func (s *side) ends(c io.Reader) {
	n, err := c.Read(make([]byte, 1))
	s.want(n == 0 && err == io.EOF, "read %d bytes and %v, want the end", n, err)
}

// closed is ends, or a reset.
func (s *side) closed(c io.Reader) {
	n, err := c.Read(make([]byte, 1))
	s.want(n == 0 && (err == io.EOF || errors.Is(err, unix.ECONNRESET)), "read %d bytes and %v, want the end", n, err)
}

// close closes a socket. A process that is being started meanwhile has no copy of it.
func (s *side) close(c io.Closer) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	s.check(c.Close())
}

// abort closes with a RST.
func (s *side) abort(c *net.TCPConn) {
	s.check(c.SetLinger(0))
	s.close(c)
}

// echo answers n bytes.
func (s *side) echo(c io.ReadWriter, n int) {
	data := make([]byte, n)
	_, err := io.ReadFull(c, data)
	s.check(err)
	s.write(c, string(data))
}

// ask writes, and wants the same back.
func (s *side) ask(c io.ReadWriter, data string) {
	s.write(c, data)
	s.read(c, data)
}

// file is a copy of the connection's or listener's descriptor; the original is closed.
func (s *side) file(c interface {
	File() (*os.File, error)
	Close() error
}) *os.File {
	f, err := c.File()
	s.check(err)
	s.close(c)
	return f
}

// wait waits for a child to end without an error.
func (s *side) wait(cmd interface{ Wait() error }) { s.check(cmd.Wait()) }

// datagrams opens a socket of UDP that is bound to an address.
func (s *side) datagrams(addr string, options ...option) *net.UDPConn {
	config := net.ListenConfig{Control: control(options)}
	c, err := config.ListenPacket(context.Background(), s.net("udp"), addr)
	s.check(err)
	return s.haveUDP(c.(*net.UDPConn))
}

func (s *side) haveUDP(c *net.UDPConn) *net.UDPConn {
	s.check(c.SetDeadline(time.Now().Add(limit)))
	s.later(func() { c.Close() })
	return c
}

// connectUDP opens a connected socket; from may be "".
func (s *side) connectUDP(to, from string, options ...option) *net.UDPConn {
	d := net.Dialer{Control: control(options)}
	if from != "" {
		a, err := net.ResolveUDPAddr("udp", from)
		s.check(err)
		d.LocalAddr = a
	}
	c, err := d.Dial(s.net("udp"), to)
	s.check(err)
	return s.haveUDP(c.(*net.UDPConn))
}

// next returns the next datagram.
func (s *side) next(c *net.UDPConn) (string, netip.AddrPort) {
	buf := make([]byte, 64<<10)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	s.check(err)
	return string(buf[:n]), from
}

func (s *side) nextIs(c *net.UDPConn, want string) {
	got, _ := s.next(c)
	s.want(got == want, "got %.20q, want %.20q", got, want)
}

func (s *side) sendTo(c *net.UDPConn, data string, to netip.AddrPort) {
	_, err := c.WriteToUDPAddrPort([]byte(data), to)
	s.check(err)
}

// answer sends the next n datagrams back.
func (s *side) answer(c *net.UDPConn, n int) {
	for range n {
		data, from := s.next(c)
		s.sendTo(c, data, from)
	}
}

// socket opens a blocking socket whose calls end after the limit.
func (s *side) socket(family, kind, protocol int, options ...option) int {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	s.check(err)
	s.later(func() { unix.Close(fd) })
	timeout := unix.NsecToTimeval(limit.Nanoseconds())
	s.check(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	s.check(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
	for _, o := range append(options, opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)) {
		s.check(o(fd))
	}
	return fd
}

// receive is recvfrom. A blocking call with a time-out is interrupted by the signals of Go's scheduler.
func receive(fd int, buf []byte) (n int, from unix.Sockaddr, err error) {
	for {
		if n, from, err = unix.Recvfrom(fd, buf, 0); !errors.Is(err, unix.EINTR) {
			return n, from, err
		}
	}
}

// acceptRaw is accept, not interrupted either.
func acceptRaw(fd int) (conn int, from unix.Sockaddr, err error) {
	for {
		if conn, from, err = unix.Accept4(fd, unix.SOCK_CLOEXEC); !errors.Is(err, unix.EINTR) {
			return conn, from, err
		}
	}
}

// rawRead wants just these bytes from a descriptor.
func (s *side) rawRead(fd int, want string) {
	var got bytes.Buffer
	for buf := make([]byte, 64<<10); got.Len() < len(want); {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		s.check(err)
		s.want(n > 0, "the end after %d bytes, want %d", got.Len(), len(want))
		got.Write(buf[:n])
	}
	s.want(got.String() == want, "read %.20q, want %.20q", got.String(), want)
}

func (s *side) rawWrite(fd int, data string) {
	n, err := unix.Write(fd, []byte(data))
	s.check(err)
	s.want(n == len(data), "wrote %d of %d bytes", n, len(data))
}

// context ends with the process.
func (s *side) context() context.Context { return context.Background() }

func payload(n int) string { return strings.Repeat("0123456789abcdef", n/16+1)[:n] }
