package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// An agent is a probe that also makes the system calls the test says, one after the other, on one thread. It is the
// attacker, and the attacked where the sockets of a probe do not do what is needed.
type agent struct {
	*probe.Process
	t    testing.TB
	host *nstest.Host

	unlabelled bool // so that the old table lets it do more
}

// A call is one system call that the test asks for; a result is what came of it.
type call struct {
	Op         string
	FD         int    `json:",omitempty"`
	A, B, C    int    `json:",omitempty"`
	To, Device string `json:",omitempty"`
	Data       []byte `json:",omitempty"`
}

type result struct {
	FD    int        `json:",omitempty"`
	Errno unix.Errno `json:",omitempty"`
	Data  []byte     `json:",omitempty"`
	From  string     `json:",omitempty"`
}

// operations are what agents do beside what probes do.
var operations = probe.Operations{"call": func(args json.RawMessage) (any, error) {
	var c call
	if err := json.Unmarshal(args, &c); err != nil {
		return nil, err
	}
	r, err := perform(c)
	if errors.As(err, &r.Errno) {
		err = nil // it is the result
	}
	return r, err
}}

// newAgent starts an agent in the cgroup.
func newAgent(t testing.TB, h *nstest.Host, cg *nstest.Cgroup) *agent {
	t.Helper()
	return asAgent(t, h, probe.Start(cg, "agent"))
}

// asAgent makes a probe an agent, which ends with the test.
func asAgent(t testing.TB, h *nstest.Host, p *probe.Process) *agent {
	t.Cleanup(p.Stop)
	return &agent{Process: p, t: t, host: h}
}

func (a *agent) do(c call) (r result) {
	a.t.Helper()
	a.Call("call", c, &r)
	return r
}

// ok is do for a call that must succeed.
func (a *agent) ok(c call) result {
	a.t.Helper()
	r := a.do(c)
	if r.Errno != 0 {
		a.t.Fatalf("agent: %+v: %v", c, r.Errno)
	}
	return r
}

// A sock is a socket of an agent.
type sock struct {
	*agent
	fd int
}

// socket opens a socket of the family that addr is of, and binds it unless addr
// has port 0 and is unspecified.
func (a *agent) socket(addr string, kind int, options ...[3]int) *sock {
	a.t.Helper()
	family := unix.AF_INET
	if addr != "" && addr[0] == '[' {
		family = unix.AF_INET6
	}
	s := &sock{a, a.ok(call{Op: "socket", A: family, B: kind}).FD}
	s.set([3]int{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	for _, o := range options {
		s.set(o)
	}
	return s
}

func (a *agent) tcp(from string, options ...[3]int) *sock {
	return a.bound(from, unix.SOCK_STREAM, options)
}
func (a *agent) udp(from string, options ...[3]int) *sock {
	return a.bound(from, unix.SOCK_DGRAM, options)
}

func (a *agent) bound(from string, kind int, options [][3]int) *sock {
	a.t.Helper()
	s := a.socket(from, kind, options...)
	s.bind(from)
	return s
}

// listen opens a listener.
func (a *agent) listen(at string, options ...[3]int) *sock {
	a.t.Helper()
	s := a.tcp(at, options...)
	s.listen()
	return s
}

func (s *sock) set(o [3]int) {
	s.t.Helper()
	s.ok(call{Op: "setint", FD: s.fd, A: o[0], B: o[1], C: o[2]})
}

// get returns an option's value.
func (s *sock) get(level, option int) int {
	s.t.Helper()
	return s.ok(call{Op: "getint", FD: s.fd, A: level, B: option}).FD
}

func (s *sock) device(name string) {
	s.t.Helper()
	s.ok(call{Op: "device", FD: s.fd, Device: name})
}

func (s *sock) bind(to string) { s.t.Helper(); s.ok(call{Op: "bind", FD: s.fd, To: to}) }
func (s *sock) listen()        { s.t.Helper(); s.ok(call{Op: "listen", FD: s.fd}) }
func (s *sock) close()         { s.t.Helper(); s.ok(call{Op: "close", FD: s.fd}) }

// abort closes with a RST.
func (s *sock) abort() { s.t.Helper(); s.ok(call{Op: "abort", FD: s.fd}) }

// connect connects; what does not come of it at once, a barrier decides.
func (s *sock) connect(to string) unix.Errno {
	s.t.Helper()
	r := s.do(call{Op: "connect", FD: s.fd, To: to})
	if r.Errno == unix.EINPROGRESS {
		s.host.Barrier()
		r = s.do(call{Op: "connected", FD: s.fd})
	}
	return r.Errno
}

// accept returns the next connection, nil if there is none.
func (s *sock) accept() *sock {
	s.t.Helper()
	s.host.Barrier()
	r := s.do(call{Op: "accept", FD: s.fd})
	if r.Errno != 0 {
		return nil
	}
	return &sock{s.agent, r.FD}
}

func (s *sock) send(data string) unix.Errno {
	s.t.Helper()
	return s.do(call{Op: "send", FD: s.fd, Data: []byte(data)}).Errno
}

func (s *sock) sendTo(to, data string) unix.Errno {
	s.t.Helper()
	return s.do(call{Op: "sendto", FD: s.fd, To: to, Data: []byte(data)}).Errno
}

// got returns all that has arrived, and what ended it.
func (s *sock) got() string {
	s.t.Helper()
	s.host.Barrier()
	var all strings.Builder
	for {
		r := s.do(call{Op: "recv", FD: s.fd})
		if r.Errno == unix.ECONNREFUSED || r.Errno == unix.EHOSTUNREACH || r.Errno == unix.EACCES {
			continue // an ICMP error of what was sent before
		}
		if r.Errno != 0 || len(r.Data) == 0 {
			return all.String()
		}
		all.Write(r.Data)
	}
}

// pass gives the socket to another agent, by SCM_RIGHTS.
func (s *sock) pass(to *agent) *sock {
	s.t.Helper()
	name := fmt.Sprintf("@attack-%d-%d", to.PID(), s.fd)
	box := to.ok(call{Op: "box", To: name}).FD
	s.ok(call{Op: "sendfd", FD: s.fd, To: name})
	got := &sock{to, to.ok(call{Op: "recvfd", FD: box}).FD}
	to.ok(call{Op: "close", FD: box})
	return got
}

// only leaves the agent one capability.
func (a *agent) only(capability int) { a.t.Helper(); a.ok(call{Op: "caps", A: capability}) }

// capabilities are what the agent may use now.
func (a *agent) capabilities() uint64 {
	a.t.Helper()
	n, err := strconv.ParseUint(string(a.ok(call{Op: "capabilities"}).Data), 16, 64)
	must(a.t, err)
	return n
}

// may says whether the agent has a capability.
func (a *agent) may(capability int) bool { a.t.Helper(); return a.capabilities()>>capability&1 == 1 }

// raw opens a raw IPv4 or IPv6 socket that takes whole packets.
func (a *agent) raw(family int) *sock {
	a.t.Helper()
	return &sock{a, a.ok(call{Op: "socket", A: family, B: unix.SOCK_RAW, C: unix.IPPROTO_RAW}).FD}
}

// inject sends a frame's payload by a packet socket on a device.
func (a *agent) inject(device string, packet []byte) {
	a.t.Helper()
	a.ok(call{Op: "inject", Device: device, Data: packet})
}

// injectTo is inject to a neighbour with that hardware address.
func (a *agent) injectTo(device, mac string, packet []byte) {
	a.t.Helper()
	a.ok(call{Op: "inject", Device: device, To: strings.TrimSpace(mac), Data: packet})
}

// perform is the side of the process.
func perform(c call) (r result, err error) {
	switch c.Op {
	case "socket":
		r.FD, err = unix.Socket(c.A, c.B|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, c.C)
	case "setint":
		err = unix.SetsockoptInt(c.FD, c.A, c.B, c.C)
	case "getint":
		r.FD, err = unix.GetsockoptInt(c.FD, c.A, c.B)
	case "retransmitted":
		r.FD, err = retransmitted(c.FD)
	case "steal":
		r.FD, err = steal(c.A, c.B)
	case "device":
		err = unix.BindToDevice(c.FD, c.Device)
	case "cbpf":
		err = randomReuseport(c.FD)
	case "join":
		err = probe.JoinGroup(c.FD, c.To, c.Device)
	case "close":
		err = unix.Close(c.FD)
	case "abort":
		if err = unix.SetsockoptLinger(c.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err == nil {
			err = unix.Close(c.FD)
		}
	case "shutdown":
		err = unix.Shutdown(c.FD, c.A)
	case "listen":
		err = unix.Listen(c.FD, 16)
	case "accept":
		r.FD, _, err = unix.Accept4(c.FD, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	case "bind", "connect", "sendto", "fastopen":
		err = withAddress(c)
	case "connected":
		err = connected(c.FD)
	case "send":
		err = unix.Sendto(c.FD, c.Data, unix.MSG_NOSIGNAL, nil)
		if errors.Is(err, unix.EINVAL) {
			_, err = unix.Write(c.FD, c.Data)
		}
	case "recv":
		return receive(c.FD)
	case "sendby":
		err = sendBy(c)
	case "flood":
		err = flood(c)
	case "count":
		return count(c)
	case "stuck":
		return stuck(c.FD)
	case "inject":
		err = inject(c)
	case "frame":
		err = sendFrame(c)
	case "mkdir":
		err = os.MkdirAll(c.To, 0o755)
	case "churn":
		churn(c)
	case "write":
		err = os.WriteFile(c.To, c.Data, 0)
	case "xattr":
		err = unix.Setxattr(c.To, c.Device, c.Data, 0)
	case "unshare":
		err = unix.Unshare(c.A)
	case "caps":
		err = keepCapability(c.A)
	case "capabilities":
		r.Data, err = effective()
	case "swarm":
		swarm(c)
	case "leave":
		err = exec.Command("sleep", "600").Start() // in the cgroup where this process is now; it ends with the host
	case "threads":
		return threads(c)
	case "ask":
		return askDaemon(c)
	case "box", "sendfd", "recvfd":
		return passing(c)
	default:
		err = fmt.Errorf("no such operation: %s", c.Op)
	}
	return r, err
}

func withAddress(c call) error {
	to, err := probe.ParseSockaddr(c.To)
	if err != nil {
		return err
	}
	switch c.Op {
	case "bind":
		return unix.Bind(c.FD, to)
	case "connect":
		return unix.Connect(c.FD, to)
	case "fastopen":
		return unix.Sendto(c.FD, c.Data, unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, to)
	default:
		return unix.Sendto(c.FD, c.Data, unix.MSG_NOSIGNAL, to)
	}
}

// connected is the outcome of a connect that was under way.
func connected(fd int) error {
	done, err := probe.ConnectOutcome(fd, 0)
	if !done && err == nil {
		return unix.ETIMEDOUT
	}
	return err
}

func receive(fd int) (r result, err error) {
	buf := make([]byte, 64<<10)
	n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	r.Data = buf[:max(n, 0)]
	r.From = probe.FormatSockaddr(from)
	return r, err
}

// inject sends an IP packet by a packet socket: no OUTPUT hook sees it.
func inject(c call) error {
	device, err := net.InterfaceByName(c.Device)
	if err != nil {
		return err
	}
	protocol := uint16(unix.ETH_P_IP)
	if c.Data[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	protocol = protocol<<8 | protocol>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: device.Index, Halen: 6}
	if c.To != "" {
		mac, err := net.ParseMAC(c.To)
		if err != nil {
			return err
		}
		copy(to.Addr[:], mac)
	}
	return unix.Sendto(fd, c.Data, 0, to)
}

// sendFrame sends a frame by a packet socket, its Ethernet header included.
func sendFrame(c call) error {
	device, err := net.InterfaceByName(c.Device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, c.Data, 0, &unix.SockaddrLinklayer{Ifindex: device.Index})
}

// randomReuseport has the kernel choose by chance among the sockets that share a
// port: SO_ATTACH_REUSEPORT_CBPF, for which no privilege is needed.
func randomReuseport(fd int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0xfffff000 + 56}, // SKF_AD_OFF + SKF_AD_RANDOM
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: 2},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// keepCapability gives away all capabilities of this thread but one.
func keepCapability(n int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	data[n/32] = unix.CapUserData{Effective: 1 << (n % 32), Permitted: 1 << (n % 32)}
	return unix.Capset(&header, &data[0])
}

// steal takes a descriptor out of another process.
func steal(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(process)
	return unix.PidfdGetfd(process, fd, 0)
}

// effective returns the capabilities of this thread, in hexadecimal digits.
func effective() ([]byte, error) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return nil, err
	}
	_, after, _ := strings.Cut(string(status), "\nCapEff:\t")
	digits, _, _ := strings.Cut(after, "\n")
	return []byte(digits), nil
}

// passing sends and receives descriptors.
func passing(c call) (r result, err error) {
	switch c.Op {
	case "box":
		if r.FD, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return r, err
		}
		return r, unix.Bind(r.FD, &unix.SockaddrUnix{Name: c.To})
	case "sendfd":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return r, err
		}
		defer unix.Close(fd)
		return r, unix.Sendmsg(fd, []byte("x"), unix.UnixRights(c.FD), &unix.SockaddrUnix{Name: c.To}, 0)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(c.FD, make([]byte, 1), oob, 0)
	if err != nil {
		return r, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return r, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err == nil {
		r.FD = fds[0]
	}
	return r, err
}

// swarm asks the daemon from many threads; with B it does not wait for answers.
func swarm(c call) {
	var all sync.WaitGroup
	for range c.A {
		all.Go(func() {
			conn, err := net.Dial("unix", c.To)
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := conn.Write(c.Data); err == nil && c.B == 0 {
				_, _ = io.ReadAll(conn)
			}
		})
	}
	all.Wait()
}

// churn makes and removes a directory, A times a second for B seconds.
func churn(c call) {
	tick := time.NewTicker(time.Second / time.Duration(2*c.A))
	defer tick.Stop()
	for range c.A * c.B {
		_ = os.Mkdir(c.To, 0o755)
		<-tick.C
		_ = os.Remove(c.To)
		<-tick.C
	}
}

// threads has four threads make sockets and send without an end, asks the daemon to
// be moved, and lets them send on for a while, saying so.
func threads(c call) (r result, err error) {
	to := &unix.SockaddrInet4{Port: 6000, Addr: [4]byte{127, 0, 0, 1}}
	var after, stop atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			runtime.LockOSThread()
			for n := 0; !stop.Load() || n < 50; n++ {
				word := "before"
				if after.Load() {
					word = "after"
				}
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return
				}
				_ = unix.Sendto(fd, []byte(word), 0, to)
				_ = unix.Close(fd)
			}
		})
	}
	r, err = askDaemon(c)
	after.Store(true)
	stop.Store(true)
	all.Wait()
	return r, err
}

// askDaemon sends the bytes to the daemon's socket and returns the answer.
func askDaemon(c call) (r result, err error) {
	conn, err := net.Dial("unix", c.To)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return r, err
	}
	if _, err := conn.Write(c.Data); err != nil && !errors.Is(err, syscall.EPIPE) {
		return r, err
	}
	r.Data, err = io.ReadAll(conn)
	if len(r.Data) > 0 {
		err = nil
	}
	return r, err
}
