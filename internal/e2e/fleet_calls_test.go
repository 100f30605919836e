package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// Calls are many connections at once of one process to another, each to a port of its
// own, by which the test knows them on the wire. Who is called sends back what it gets.
const (
	roleCaller   = "caller"
	roleAnswerer = "answerer"
)

// A call is one connection. It ends when all that was sent has come back, or something fails.
type call struct {
	To      string
	Bytes   int
	Greeted bool          // who is called speaks first
	Asks    bool          // the caller closes when all has come back, not when all is sent
	Delayed bool          // its first ACK carries the data
	Wait    time.Duration // until it is given up
}

// A result is what the caller knows of a call.
type result struct {
	Connected bool
	Whole     bool   // all came back, and nothing else
	Error     string // or ""
	GivenUp   bool   // neither an end nor an error came in time
	Elapsed   time.Duration
}

// A port is what is answered at.
type port struct {
	Number  int
	Greeted bool
}

const greeting = "hello\n"

// A party is a process of one of these roles.
type party struct {
	t   testing.TB
	out *json.Encoder
	in  *json.Decoder
}

func startParty(t testing.TB, cg *nstest.Cgroup, role string) *party {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := cg.Command(exe, roleFlag, role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { endRole(cmd, in) })
	return &party{t, json.NewEncoder(in), json.NewDecoder(out)}
}

// calls makes calls, all at once.
func (p *party) calls(calls []call) []result {
	p.t.Helper()
	var results []result
	calls = slices.Clone(calls)
	for i := range calls {
		calls[i].Wait = nstest.Patience(calls[i].Wait)
	}
	must(p.t, p.out.Encode(calls))
	must(p.t, p.in.Decode(&results))
	return results
}

// someCalls makes calls, as many at once as this machine can have without meeting the
// product's own limits of time.
func (p *party) someCalls(calls []call) (results []result) {
	p.t.Helper()
	atOnce := len(calls)
	if nstest.Slow() {
		atOnce = 16
	}
	for some := range slices.Chunk(calls, atOnce) {
		results = append(results, p.calls(some)...)
	}
	return results
}

// listens has an answerer listen at all addresses.
func (p *party) listens(ports []port) {
	p.t.Helper()
	var before delivery
	must(p.t, p.out.Encode(ports))
	must(p.t, p.in.Decode(&before))
}

// got returns how many bytes of its callers an answerer was given at each port.
func (p *party) got() map[int]int { p.t.Helper(); return p.delivered().Bytes }

// A delivery is what came to an answerer, by port.
type delivery struct{ Connections, Bytes map[int]int }

func (p *party) delivered() (d delivery) {
	p.t.Helper()
	must(p.t, p.out.Encode([]port{}))
	must(p.t, p.in.Decode(&d))
	return d
}

func makeCalls() error {
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var calls []call
		if err := in.Decode(&calls); err != nil {
			return nil // the test has ended
		}
		results := make([]result, len(calls))
		var all sync.WaitGroup
		for i, c := range calls {
			all.Go(func() { results[i] = c.make() })
		}
		all.Wait()
		if err := out.Encode(results); err != nil {
			return err
		}
	}
}

func (c call) make() (r result) {
	begin := time.Now()
	err := c.exchange(&r)
	r.Elapsed = time.Since(begin)
	if err != nil {
		r.Error = err.Error()
		var timeout net.Error
		// The kernel's own timeout is an end; ours is not.
		r.GivenUp = errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, syscall.ETIMEDOUT)
	}
	return r
}

func (c call) exchange(r *result) error {
	deadline := time.Now().Add(c.Wait)
	dialer := net.Dialer{Deadline: deadline, KeepAlive: -1}
	if c.Delayed {
		dialer.Control = func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
			}), err)
		}
	}
	conn, err := dialer.Dial("tcp", c.To)
	if err != nil {
		return err
	}
	defer conn.Close()
	r.Connected = true
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if c.Greeted {
		hello := make([]byte, len(greeting))
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != greeting {
			return fmt.Errorf("the greeting %q: %w", hello, err)
		}
	}
	sent := make([]byte, c.Bytes)
	for i := range sent {
		sent[i] = byte(i >> 8 * 7 >> (i & 7))
	}
	if c.Asks {
		return c.ask(conn, sent, r)
	}
	var writing sync.WaitGroup
	var writeErr error
	writing.Go(func() {
		_, writeErr = conn.Write(sent)
		if writeErr == nil {
			writeErr = conn.(*net.TCPConn).CloseWrite()
		}
	})
	got, err := io.ReadAll(conn)
	writing.Wait()
	if err := errors.Join(err, writeErr); err != nil {
		return err
	}
	if r.Whole = bytes.Equal(got, sent); !r.Whole {
		return fmt.Errorf("%d bytes came back, not the %d that were sent", len(got), len(sent))
	}
	return nil
}

// ask sends, has all come back, and closes.
func (c call) ask(conn net.Conn, sent []byte, r *result) error {
	got := make([]byte, len(sent))
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	more, err := io.ReadAll(conn)
	r.Whole = err == nil && len(more) == 0 && bytes.Equal(got, sent)
	return err
}

// An answerer counts what it is given.
type answerer struct {
	mu  sync.Mutex // guards got
	got delivery
}

func answerCalls() error {
	a := answerer{got: delivery{map[int]int{}, map[int]int{}}}
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var ports []port
		if err := in.Decode(&ports); err != nil {
			return nil // the test has ended
		}
		for _, p := range ports {
			l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", p.Number))
			if err != nil {
				return err
			}
			go a.serve(l, p)
		}
		a.mu.Lock()
		err := out.Encode(a.got)
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (a *answerer) serve(l net.Listener, p port) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		a.got.Connections[p.Number]++
		a.mu.Unlock()
		go func() {
			defer conn.Close()
			if p.Greeted {
				io.WriteString(conn, greeting) //nolint:errcheck // the caller tells
			}
			b := make([]byte, 64<<10)
			for {
				n, err := conn.Read(b)
				a.mu.Lock()
				a.got.Bytes[p.Number] += n
				a.mu.Unlock()
				if err != nil {
					return
				}
				if _, err := conn.Write(b[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// forwardedFleet is newFleet with a forwarder in the place of the link.
func forwardedFleet(t *testing.T) (a, b *machine, f *wire.Forwarder) {
	t.Helper()
	a, b = bareMachine(t), bareMachine(t)
	f = wire.Forward(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	startFleet(t, newFleetCA(t), a, b)
	tell(t, a, b)
	return a, b, f
}

// at is an address of the second node, IPv4 or IPv6.
func at(version6 bool, port int) string {
	end := fleetEnds[1][0]
	if version6 {
		end = fleetEnds[1][1]
	}
	return netip.AddrPortFrom(end, uint16(port)).String()
}

// portOf returns by which of the ports from first on a segment's connection is known.
func portOf(s *wire.Segment) int { return int(min(s.From.Port(), s.To.Port())) }

// conntrackStats returns a sum over all processors of what conntrack -S tells: "invalid".
func (m *machine) conntrackStats(name string) int {
	m.t.Helper()
	return conntrackStats(m.t, m.Host, name)
}

func conntrackStats(t testing.TB, h *nstest.Host, name string) int {
	t.Helper()
	sum := 0
	for _, field := range bytes.Fields([]byte(h.Shell("conntrack -S"))) {
		var n int
		if _, err := fmt.Sscanf(string(field), name+"=%d", &n); err == nil {
			sum += n
		}
	}
	return sum
}
