package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// A Process is a probe: a process in a cgroup of a host that opens sockets and uses them as the test says. Several
// goroutines may call its methods; it does one thing at a time.
type Process struct {
	Name string // what its servers answer

	t     testing.TB // of the host
	host  *nstest.Host
	pid   int
	pidfd int

	mu      sync.Mutex // held from a request to its reply
	control *net.UnixConn
	replies *json.Decoder
}

// Start starts a probe in the cgroup. It ends with the host.
func Start(c *nstest.Cgroup, name string) *Process {
	host := c.Host()
	host.T().Helper()
	p, theirs := newProcess(host, name)
	defer theirs.Close()
	cmd := c.Reexec(modeName, name)
	cmd.ExtraFiles = []*os.File{theirs}
	p.setPID(host.StartCommand(cmd).Pid)
	return p
}

// Attach returns the probe at the other end of control, where another program started it and it calls Serve.
func Attach(host *nstest.Host, name string, control *net.UnixConn) *Process {
	host.T().Helper()
	p := newProcessOn(host, name, control)
	pid, err := peerPID(control)
	if err != nil {
		p.t.Fatalf("nstest: probe %s: %v", name, err)
	}
	p.setPID(pid)
	return p
}

// newProcess returns a probe that lacks its process, and the end of the control connection that belongs to that.
func newProcess(host *nstest.Host, name string) (*Process, *os.File) {
	host.T().Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		host.T().Fatalf("nstest: probe %s: %v", name, err)
	}
	return newProcessOn(host, name, ours.(*net.UnixConn)), theirs
}

// newProcessOn returns a probe, without its process, that is reached by control.
func newProcessOn(host *nstest.Host, name string, control *net.UnixConn) *Process {
	host.OnEnd(func() error {
		if err := control.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return &Process{Name: name, t: host.T(), host: host, control: control, replies: json.NewDecoder(control)}
}

func (p *Process) setPID(pid int) {
	p.t.Helper()
	var err error
	p.pid = pid
	if p.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		p.t.Fatalf("nstest: probe %s ended at once: %v", p.Name, err)
	}
	p.host.OnEnd(func() error { return unix.Close(p.pidfd) })
}

// PID is the probe's process.
func (p *Process) PID() int { return p.pid }

// Fork has the probe start a child, itself a probe, that inherits the cgroup and the user, and outlives its parent.
func (p *Process) Fork(name string) *Process {
	p.t.Helper()
	child, theirs := newProcess(p.host, name)
	defer theirs.Close()
	pid, err := p.childPID(p.exchange(request{Op: "fork", Data: name}, unix.UnixRights(int(theirs.Fd()))).PID)
	if err != nil {
		p.t.Fatalf("nstest: %v", err)
	}
	child.setPID(pid)
	return child
}

// SetUID makes the probe an unprivileged process of that user. Its sockets stay.
func (p *Process) SetUID(uid int) {
	p.t.Helper()
	p.call(request{Op: "setuid", UID: uid})
}

// Stop ends the probe and waits until it is gone, and its sockets with it.
func (p *Process) Stop() {
	p.t.Helper()
	p.control.Close()
	gone, err := pollFD(p.pidfd, unix.POLLIN, nstest.Patience(endPatience)) // readable when the last thread is gone
	if err != nil || !gone {
		p.t.Fatalf("nstest: probe %s (pid %d) does not end: %v", p.Name, p.pid, err)
	}
}

func (p *Process) call(req request) reply {
	p.t.Helper()
	return p.exchange(req, nil)
}

func (p *Process) exchange(req request, rights []byte) reply {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	req.Patience = nstest.Patience(req.Patience) // here: a probe in a container has another environment
	line, err := json.Marshal(req)
	if err != nil {
		p.t.Fatalf("nstest: %+v: %v", req, err)
	}
	if err := p.write(line, rights); err != nil {
		p.t.Fatalf("nstest: probe %s takes no requests: %v", p.Name, err)
	}
	var r reply
	if err := p.replies.Decode(&r); err != nil {
		p.t.Fatalf("nstest: probe %s ended instead of answering %s: %v", p.Name, line, err)
	}
	if r.Err != "" {
		p.t.Fatalf("nstest: probe %s: %s: %s", p.Name, line, r.Err)
	}
	return r
}

// write sends all of a request. WriteMsgUnix may send only the first part of a long one.
func (p *Process) write(line, rights []byte) error {
	n, _, err := p.control.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = p.control.Write(line[n:])
	}
	return err
}

// Call has the probe do one of the Operations that its package passed to NewMode. The arguments are encoded as JSON,
// and so is the result, which is a pointer.
func (p *Process) Call(operation string, args, result any) {
	p.t.Helper()
	encoded, err := json.Marshal(args)
	if err != nil {
		p.t.Fatalf("nstest: probe %s: arguments of %s: %v", p.Name, operation, err)
	}
	r := p.call(request{Op: operation, Args: encoded})
	if err := json.Unmarshal(r.Result, result); err != nil {
		p.t.Fatalf("nstest: probe %s: result of %s: %v", p.Name, operation, err)
	}
}

// A Verdict says how an attempt went.
type Verdict struct {
	Outcome
	Server  string        // the name of the probe that answered (TCP) or received (UDP)
	Elapsed time.Duration // until the outcome was known
}

// Allowed says whether the other end was reached.
func (v Verdict) Allowed() bool { return v.Outcome == Connected || v.Outcome == Arrived }

func (v Verdict) String() string {
	if v.Server == "" {
		return string(v.Outcome)
	}
	return fmt.Sprintf("%s (%s)", v.Outcome, v.Server)
}

// An Option changes what a socket does.
type Option string

// Options.
const (
	ReusePort Option = "reuseport" // SO_REUSEPORT
	Greet     Option = "greet"     // TCP: the server speaks first
	Manual    Option = "manual"    // TCP: connections wait for Accept, and nobody answers by himself
)

// Device binds a socket to a device (SO_BINDTODEVICE).
func Device(name string) Option { return Option("device " + name) }

// Mark gives the packets of a socket a mark (SO_MARK).
func Mark(mark uint32) Option { return Option(fmt.Sprintf("mark %d", mark)) }

// Priority gives the packets of a socket a priority (SO_PRIORITY).
func Priority(priority uint32) Option { return Option(fmt.Sprintf("priority %d", priority)) }

// Target is where to connect to, and how.
type Target struct {
	To, From string // addresses with ports; From may be empty, or have port 0
	Quiet    bool   // let the server speak first; see Greet
	Options  []Option

	// Patience is how long to wait for a server that is silent. 0 means no longer than packets live: a Barrier decides.
	// Say more where something outside the kernel has a part in the answer, or a retransmission is to succeed.
	Patience time.Duration
}

// endPatience is how long a probe may take to end.
const endPatience = 10 * time.Second

// answerPatience is how long a server that was reached may take to answer. It ends early in all cases but one: that the
// answer was lost silently.
const answerPatience = 2 * time.Second

// TCP connects to an address of a listener of another probe, asks who it is, and closes.
func (p *Process) TCP(to string) Verdict {
	p.t.Helper()
	return p.TCPTo(Target{To: to})
}

// TCPTo is TCP with all that can be said about a connection.
func (p *Process) TCPTo(target Target) Verdict {
	p.t.Helper()
	conn, v := p.DialTo(target)
	if conn == nil {
		return v
	}
	defer conn.abort()
	if !target.Quiet {
		if v.Outcome = conn.Send("who?\n"); v.Outcome != Connected {
			return v
		}
	}
	answer, outcome := conn.Receive(answerPatience)
	v.Outcome, v.Server = outcome, strings.TrimSpace(answer)
	return v
}

// Dial connects and keeps the connection, which is nil if there is none.
func (p *Process) Dial(to string) (*Conn, Verdict) {
	p.t.Helper()
	return p.DialTo(Target{To: to})
}

// DialTo is Dial with all that can be said about a connection.
func (p *Process) DialTo(target Target) (*Conn, Verdict) {
	p.t.Helper()
	r := p.call(request{Op: "connect", To: target.To, From: target.From, Options: target.Options})
	if r.Outcome == pending {
		if target.Patience == 0 {
			p.host.Barrier()
		}
		if r = p.call(request{Op: "connected", Handle: r.Handle, Patience: target.Patience}); r.Outcome == pending {
			p.close(r.Handle)
			r.Outcome = Silent
		}
	}
	v := Verdict{Outcome: r.Outcome, Elapsed: r.Elapsed}
	if r.Outcome != Connected {
		return nil, v
	}
	return &Conn{process: p, handle: r.Handle, Local: r.Addr}, v
}

// A Listener is a TCP socket that listens. Unless it is Manual, it answers every line with the name of its probe.
type Listener struct {
	Addr string // with the port that was chosen

	process *Process
	handle  int
}

// Listen listens as net.Listen does: network "tcp" with "[::]:80" is a dual-stack listener, "tcp6" is not.
func (p *Process) Listen(network, addr string, options ...Option) *Listener {
	p.t.Helper()
	r := p.call(request{Op: "listen", Network: network, From: addr, Options: options})
	return &Listener{Addr: r.Addr, process: p, handle: r.Handle}
}

// Accept returns the next connection of a Manual listener, nil if none comes within patience.
func (l *Listener) Accept(patience time.Duration) *Conn {
	l.process.t.Helper()
	r := l.process.call(request{Op: "accept", Handle: l.handle, Patience: patience})
	if r.Outcome != Connected {
		return nil
	}
	return &Conn{process: l.process, handle: r.Handle, Local: l.Addr, Remote: r.Addr}
}

// Close closes the listener. Its connections stay.
func (l *Listener) Close() { l.process.close(l.handle) }

// A Conn is a TCP connection that a probe holds.
type Conn struct {
	Local, Remote string // Remote is known of an accepted connection

	process *Process
	handle  int
}

// Send hands data to the kernel: Connected, or how the connection had ended before.
func (c *Conn) Send(data string) Outcome {
	c.process.t.Helper()
	return c.process.call(request{Op: "send", Handle: c.handle, Data: data}).Outcome
}

// Receive returns what has come: Connected with data, else Closed, Reset, or Silent after patience. With patience 0 a
// Barrier decides whether what was sent before has come.
func (c *Conn) Receive(patience time.Duration) (string, Outcome) {
	c.process.t.Helper()
	if patience == 0 {
		c.process.host.Barrier()
	}
	r := c.process.call(request{Op: "receive", Handle: c.handle, Patience: patience})
	return r.Data, r.Outcome
}

// Close closes the connection in good order.
func (c *Conn) Close() {
	c.process.t.Helper()
	c.process.close(c.handle)
}

// abort closes with a RST, which leaves no TIME_WAIT behind.
func (c *Conn) abort() {
	c.process.t.Helper()
	c.process.call(request{Op: "abort", Handle: c.handle})
}

func (p *Process) close(handle int) {
	p.t.Helper()
	p.call(request{Op: "close", Handle: handle})
}
