package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcpListener is a listener; a Manual one keeps its connections for accept.
type tcpListener struct {
	*net.TCPListener
}

func (w *worker) listen(req request) (reply, error) {
	config := net.ListenConfig{Control: socketOptions(req.Options)}
	l, err := config.Listen(context.Background(), req.Network, req.From)
	if err != nil {
		return reply{}, err
	}
	listener := tcpListener{l.(*net.TCPListener)}
	if !slices.Contains(req.Options, Manual) {
		go w.answerAll(l, slices.Contains(req.Options, Greet))
	}
	return reply{Handle: w.keep(listener), Addr: l.Addr().String()}, nil
}

func socketOptions(options []Option) func(network, address string, conn syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) error {
		return control(conn, func(fd int) error { return setOptions(fd, options) })
	}
}

func setOptions(fd int, options []Option) error {
	var all error
	for _, o := range options {
		name, value, _ := strings.Cut(string(o), " ")
		switch name {
		case string(ReusePort):
			all = errors.Join(all, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		case "device":
			all = errors.Join(all, unix.BindToDevice(fd, value))
		case "mark":
			all = errors.Join(all, setNumber(fd, unix.SO_MARK, value))
		case "priority":
			all = errors.Join(all, setNumber(fd, unix.SO_PRIORITY, value))
		}
	}
	return all
}

func setNumber(fd, option int, value string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, int(int32(n)))
}

// control calls fn with the descriptor of a socket of package net.
func control(conn syscall.RawConn, fn func(fd int) error) error {
	var err error
	if outer := conn.Control(func(fd uintptr) { err = fn(int(fd)) }); outer != nil {
		return outer
	}
	return err
}

func (w *worker) answerAll(l net.Listener, greet bool) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go w.answer(conn, greet)
		}
	}
}

// answer says the probe's name whenever something comes, and, as a greeting, before.
func (w *worker) answer(conn net.Conn, greet bool) {
	defer conn.Close()
	name := []byte(w.name + "\n")
	if greet {
		if _, err := conn.Write(name); err != nil {
			return
		}
	}
	question := make([]byte, 4096)
	for {
		if _, err := conn.Read(question); err != nil {
			return
		}
		if _, err := conn.Write(name); err != nil {
			return
		}
	}
}

func (w *worker) accept(req request) (reply, error) {
	l, err := socketOf[tcpListener](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	if err := l.SetDeadline(time.Now().Add(req.Patience)); err != nil {
		return reply{}, err
	}
	conn, err := l.AcceptTCP()
	outcome, err := outcomeOf(err)
	if outcome != Connected {
		return reply{Outcome: outcome}, err
	}
	return reply{Outcome: Connected, Handle: w.keep(conn), Addr: conn.RemoteAddr().String()}, nil
}

// dialing is a socket whose connect has begun.
type dialing struct {
	*os.File
	fd    int
	since time.Time
}

// connect begins to connect. Over loopback and veth the outcome is there when connect(2) returns, unless it is silence.
func (w *worker) connect(req request) (reply, error) {
	to, err := ParseSockaddr(req.To)
	if err != nil {
		return reply{}, err
	}
	fd, err := unix.Socket(familyOf(to), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return reply{}, err
	}
	d := &dialing{File: os.NewFile(uintptr(fd), req.To), fd: fd, since: time.Now()}
	handle := w.keep(d)
	if err := setOptions(fd, req.Options); err != nil {
		return reply{}, err
	}
	if req.From != "" {
		if err := bindSource(fd, req.From); err != nil {
			return reply{}, err
		}
	}
	err = unix.Connect(fd, to)
	if errors.Is(err, unix.EINPROGRESS) {
		return w.connected(request{Handle: handle})
	}
	return w.settle(handle, d, err)
}

func bindSource(fd int, from string) error {
	addr, err := ParseSockaddr(from)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	return unix.Bind(fd, addr)
}

// connected says what became of a connect.
func (w *worker) connected(req request) (reply, error) {
	d, err := socketOf[*dialing](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	done, err := ConnectOutcome(d.fd, req.Patience)
	if !done && err == nil {
		return reply{Outcome: pending, Handle: req.Handle, Elapsed: time.Since(d.since)}, nil
	}
	return w.settle(req.Handle, d, err)
}

// settle replaces the dialing by its connection, or forgets it.
func (w *worker) settle(handle int, d *dialing, err error) (reply, error) {
	elapsed := time.Since(d.since)
	defer d.Close()
	delete(w.sockets, handle)
	outcome, err := outcomeOf(err)
	if outcome != Connected {
		return reply{Outcome: outcome, Elapsed: elapsed}, err
	}
	conn, err := net.FileConn(d.File)
	if err != nil {
		return reply{}, err
	}
	return reply{Outcome: Connected, Handle: w.keep(conn), Addr: conn.LocalAddr().String(), Elapsed: elapsed}, nil
}

func (w *worker) send(req request) (reply, error) {
	conn, err := socketOf[*net.TCPConn](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(answerPatience)); err != nil {
		return reply{}, err
	}
	_, err = conn.Write([]byte(req.Data))
	outcome, err := outcomeOf(err)
	return reply{Outcome: outcome}, err
}

func (w *worker) receive(req request) (reply, error) {
	conn, err := socketOf[*net.TCPConn](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	buf := make([]byte, 64<<10)
	n, err := readNow(conn, buf)
	if errors.Is(err, unix.EAGAIN) && req.Patience > 0 {
		if err := conn.SetReadDeadline(time.Now().Add(req.Patience)); err != nil {
			return reply{}, err
		}
		n, err = conn.Read(buf)
	}
	outcome, err := outcomeOf(err)
	return reply{Data: string(buf[:n]), Outcome: outcome}, err
}

// readNow reads what is there. (A Read with a deadline that has passed would not look.)
func readNow(conn *net.TCPConn, buf []byte) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	err = control(raw, func(fd int) error {
		var err error
		n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err == nil && n == 0 {
			return io.EOF
		}
		return err
	})
	return max(0, n), err
}

func (w *worker) abort(req request) (reply, error) {
	conn, err := socketOf[*net.TCPConn](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	if err := conn.SetLinger(0); err != nil {
		return reply{}, err
	}
	return w.close(req)
}

func familyOf(sa unix.Sockaddr) int {
	if _, ok := sa.(*unix.SockaddrInet4); ok {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
