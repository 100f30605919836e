package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/datapath/refusal"
	"thole/datapath/token"
	"thole/internal/nstest"
)

// Two kernels' TCP, each in a namespace of its own, talk through this test:
//
//	client's TCP ── tun ── put on ══ wire ══ take off ── tun ── server's TCP
//
// A tun device neither offloads nor trusts checksums: the kernels verify every packet
// that the operations wrote, and the test parses every one that Linux wrote.

// A side is one namespace, and the end of its tun device.
type side struct {
	tun *os.File
	do  chan func() // runs in the namespace
}

func newSide(t *testing.T, number string) *side {
	s := &side{do: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with its sockets
		err := s.enter(number)
		ready <- err
		for f := range s.do {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.tun.Close()
		close(s.do)
	})
	nstest.WaitFor(t, 10*time.Second, "the namespace to know its own IPv6 address", func() (ok bool) {
		s.run(func() {
			out, err := exec.Command("ip", "-6", "route", "get", "fd00::"+number).Output()
			ok = err == nil && bytes.HasPrefix(out, []byte("local "))
		})
		return ok
	})
	return s
}

// enter makes the namespace 10.0.0.number, fd00::number, of the thread.
func (s *side) enter(number string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return err
	}
	s.tun = os.NewFile(uintptr(fd), "tun0")
	// both sides, without cookies
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("1031"), 0); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"link", "set", "tun0", "up"},
		{"addr", "add", "10.0.0." + number + "/24", "dev", "tun0"},
		{"addr", "add", "fd00::" + number + "/64", "dev", "tun0", "nodad"},
	} {
		if out, err := exec.Command("ip", command...).CombinedOutput(); err != nil {
			return errors.New(string(out))
		}
	}
	return nil
}

func (s *side) run(f func()) {
	done := make(chan struct{})
	s.do <- func() { f(); close(done) }
	<-done
}

func (s *side) listen(t *testing.T, address string, options func(fd int) error) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	s.run(func() { l, err = (&net.ListenConfig{Control: control(options)}).Listen(t.Context(), "tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (s *side) dial(t *testing.T, address string, options func(fd int) error) (c net.Conn, err error) {
	s.run(func() {
		c, err = (&net.Dialer{Timeout: 10 * time.Second, Control: control(options)}).DialContext(t.Context(), "tcp",
			address)
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
		err = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

type controlFunc = func(network, address string, c syscall.RawConn) error

func control(options func(fd int) error) controlFunc {
	if options == nil {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = options(int(fd)) }); e != nil {
			return e
		}
		return err
	}
}

// A wire stands between two sides, plays both nodes for one connection, and counts.
type wire struct {
	t              *testing.T
	client, server *side
	lost           func(w *wire, kind string, n int, b []byte) bool

	mu    sync.Mutex
	c     uint32 // client's initial sequence number
	spoke bool   // the server did, after its SYN-ACK
	seen  map[string]int
}

var (
	wireT1 = fill(561, 'A')
	wireT2 = fill(577, 'B')
	wireT3 = fill(token.T3Size, 'C')
)

const wireLimit = 1280

// lost is called for each packet on the wire, with its kind and how many of it there
// were; those for which it returns true go no further.
func newWire(t *testing.T, lost func(w *wire, kind string, n int, b []byte) bool) *wire {
	nstest.Need(t, "root", "ip")
	w := &wire{t: t, client: newSide(t, "1"), server: newSide(t, "2"), lost: lost, seen: make(map[string]int)}
	var both sync.WaitGroup
	both.Go(func() { w.pump(w.client.tun, w.server.tun, w.toServer) })
	both.Go(func() { w.pump(w.server.tun, w.client.tun, w.toClient) })
	t.Cleanup(func() {
		w.client.tun.Close()
		w.server.tun.Close()
		both.Wait()
	})
	return w
}

// pump passes on what a step makes of each TCP packet until the device is closed.
func (w *wire) pump(from, to *os.File, step func(p *Packet) [][]byte) {
	buf := make([]byte, maxPacket)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p, err := Parse(buf[:n:n])
		if errors.Is(err, refusal.NotTCP) {
			continue // router solicitations
		}
		if err != nil {
			w.t.Errorf("Linux's own packet %x: %v", buf[:n], err)
			continue
		}
		w.mu.Lock()
		out := step(&p)
		w.mu.Unlock()
		for _, b := range out {
			if _, err := to.Write(b); err != nil && !errors.Is(err, os.ErrClosed) {
				w.t.Errorf("writing to the kernel: %v", err)
			}
		}
	}
}

// cross sends a packet over the wire: it is counted, may get lost, and is parsed again.
func (w *wire) cross(kind string, b []byte, err error, take func(*Packet, []byte) ([]byte, error)) [][]byte {
	if err != nil {
		w.t.Errorf("%s: %v", kind, err)
		return nil
	}
	w.seen[kind]++
	if w.lost(w, kind, w.seen[kind], b) {
		return nil
	}
	p, err := Parse(b)
	if err == nil {
		b, err = take(&p, nil)
	}
	if err != nil {
		w.t.Errorf("%s on the wire: %v", kind, err)
		return nil
	}
	return [][]byte{b}
}

func asIs(p *Packet, dst []byte) ([]byte, error) { return append(dst, p.Bytes()...), nil }

func (w *wire) toServer(p *Packet) [][]byte {
	switch {
	case p.Flags&SYN != 0:
		w.c = p.Seq
		if len(p.Payload()) > 0 {
			w.seen["early data"]++
		}
		b, err := p.AppendSYN(nil, token.TypeFullT1, wireT1, wireLimit)
		return w.cross("SYN", b, err, (*Packet).AppendStrippedSYN)
	case p.Flags&RST == 0 && p.Seq == w.c+1 && !w.spoke:
		b, err := p.AppendProof(nil, w.c+1, wireT3, wireLimit)
		if err == nil {
			return w.cross("proof", b, nil, (*Packet).AppendStrippedProof)
		}
		b, err = p.AppendProofAlone(nil, w.c+1, wireT3, wireLimit)
		return append(w.cross("proof alone", b, err, (*Packet).AppendStrippedProof),
			w.cross("data", p.Bytes(), nil, asIs)...)
	}
	return w.cross("data", p.Bytes(), nil, asIs)
}

func (w *wire) toClient(p *Packet) [][]byte {
	switch {
	case p.Flags&SYN != 0:
		b, err := p.AppendSYNACK(nil, token.TypeFullT2, wireT2, wireLimit)
		return w.cross("SYN-ACK", b, err, (*Packet).AppendStrippedSYNACK)
	case p.Flags&RST != 0 && !w.spoke:
		b, err := p.AppendReset(nil)
		return w.cross("RST", b, err, (*Packet).AppendStrippedReset)
	}
	w.spoke = true
	return w.cross("answer", p.Bytes(), nil, asIs)
}

func (w *wire) count(kind string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[kind]
}

// echo sends data through c and takes it back from the listener's other end.
func echo(t *testing.T, l net.Listener, c net.Conn, data []byte) {
	t.Helper()
	go func() {
		s, err := l.Accept()
		if err != nil {
			return
		}
		defer s.Close()
		io.Copy(s, s) //nolint: the client tells whether it came back
	}()
	go c.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Error("other data came back")
	}
}

func setInt(level, option, value int) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, option, value) }
}

func TestKernelsConnect(t *testing.T) {
	t.Parallel()
	big := fill(200_000, 'x')
	for _, c := range []struct {
		name           string
		server, client func(fd int) error
		data           []byte
		lost           string // of this kind the first
		kind           string // of this kind there are
		least          int    // so many at least
	}{
		{"some bytes", nil, nil, []byte("hello"), "", "proof", 1},
		{"many bytes", nil, nil, big, "", "proof", 1},
		{"deferred accept", setInt(unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5), nil, []byte("hello"), "", "proof", 1},
		{"no quick ACK, a full segment", nil, setInt(unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0), big, "", "proof alone",
			1},
		{"Fast Open", setInt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5),
			setInt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1), []byte("hello"), "", "early data", 1},
		{"the SYN-ACK is lost", nil, nil, []byte("hello"), "SYN-ACK", "proof", 1},
		{"the proof is lost", nil, nil, []byte("hello"), "proof", "proof", 2},
	} {
		for _, address := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
			t.Run(c.name+" "+address, func(t *testing.T) {
				t.Parallel()
				w := newWire(t, func(_ *wire, kind string, n int, _ []byte) bool { return kind == c.lost && n == 1 })
				l := w.server.listen(t, address, c.server)
				conn, err := w.client.dial(t, address, c.client)
				if err != nil {
					t.Fatal(err)
				}
				echo(t, l, conn, c.data)
				if n := w.count(c.kind); n < c.least {
					t.Errorf("%d × %s, want %d: %v", n, c.kind, c.least, w.seen)
				}
			})
		}
	}
}

// TestKernelTakesTheReset: a closed port is refused at once. A reset whose number was
// not shifted back would be ignored.
func TestKernelTakesTheReset(t *testing.T) {
	t.Parallel()
	w := newWire(t, func(*wire, string, int, []byte) bool { return false })
	for _, address := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
		if _, err := w.client.dial(t, address, nil); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if w.count("SYN") != 2 || w.count("RST") != 2 {
		t.Errorf("%v", w.seen)
	}
}

// TestKernelTakesTheError: a router's answer to the SYN quotes the number on the wire.
// As it is, the kernel ignores it; translated, it ends the connection.
func TestKernelTakesTheError(t *testing.T) {
	for address, recvErr := range map[string]func(fd int) error{
		"10.0.0.2:80":  setInt(unix.IPPROTO_IP, unix.IP_RECVERR, 1), // a connect tells of soft errors only if asked
		"[fd00::2]:80": setInt(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1),
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, func(w *wire, _ string, n int, b []byte) bool {
				q, err := ParseQuote(unreachable(b))
				if err != nil {
					t.Error(err)
					return true
				}
				shift := uint32(0) // the kernel sends its SYN again
				if n == 2 {
					shift = w.c - q.Seq
				}
				if _, err := w.client.tun.Write(q.AppendShifted(nil, shift)); err != nil {
					t.Error(err)
				}
				return true
			})
			if _, err := w.client.dial(t, address, recvErr); !errors.Is(err, unix.ECONNREFUSED) {
				t.Error(err)
			}
			if n := w.count("SYN"); n != 2 {
				t.Errorf("%d SYNs, want 2: only the second error was translated", n)
			}
		})
	}
}

// unreachable is the answer to a packet whose port cannot be reached.
func unreachable(b []byte) []byte {
	src, dst := addresses(b)
	v6, typ, code, protocol := b[0]>>4 == 6, byte(3), byte(3), byte(protocolICMP)
	if v6 {
		typ, code, protocol = 1, 4, protocolICMPv6
	}
	m := append([]byte{typ, code, 0, 0, 0, 0, 0, 0}, b...)
	e := append(ipHeader(v6, protocol, dst, src, nil, len(m)), m...)
	at := len(e) - len(m)
	ip := e
	if !v6 {
		ip = nil
	}
	binary.BigEndian.PutUint16(e[at+2:], ^naive(ip, protocol, e[at:]))
	return e
}
