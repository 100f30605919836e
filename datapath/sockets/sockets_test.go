package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/datapath/packet"
	"thole/datapath/queue"
	"thole/internal/nlmsg"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }

const patience = 20 * time.Second

func finder(t testing.TB, host *nstest.Host) (f *Finder) {
	t.Helper()
	var err error
	if e := host.Do(func() { f, err = NewFinder() }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func ports(local, remote string) (netip.AddrPort, netip.AddrPort) {
	return netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
}

const lo = 1 // index

func TestListener(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	f := finder(t, host)
	a, b, c := host.In("a"), host.In("b/deep"), host.In("c")
	probe.Start(a, "a").Listen("tcp4", "0.0.0.0:80")
	probe.Start(b, "b").Listen("tcp6", "[::]:80")
	dual := probe.Start(c, "c")
	dual.Listen("tcp", "[::]:81")
	dual.Listen("tcp6", "[::]:82")
	dual.Listen("tcp4", "127.0.0.2:83")

	for _, x := range []struct {
		name, local, remote string
		want                uint64
	}{
		{"IPv4", "127.0.0.1:80", "127.0.0.1:5000", a.ID()},
		{"IPv6", "[::1]:80", "[::1]:5000", b.ID()},
		{"dual-stack, IPv4", "127.0.0.1:81", "127.0.0.9:5000", c.ID()},
		{"dual-stack, IPv6", "[::1]:81", "[::1]:5000", c.ID()},
		{"only IPv6, IPv4", "127.0.0.1:82", "127.0.0.1:5000", 0},
		{"only IPv6", "[::1]:82", "[::1]:5000", c.ID()},
		{"its address", "127.0.0.2:83", "127.0.0.1:5000", c.ID()},
		{"another address", "127.0.0.1:83", "127.0.0.1:5000", 0},
		{"nobody", "127.0.0.1:84", "127.0.0.1:5000", 0},
	} {
		local, remote := ports(x.local, x.remote)
		got, err := f.Listener(local, remote, lo)
		if got != x.want || (x.want == 0) != errors.Is(err, ErrNone) {
			t.Errorf("%s: cgroup %d, %v; want %d", x.name, got, err, x.want)
		}
		if _, err := f.Connecting(local, remote, lo); !errors.Is(err, ErrNone) {
			t.Errorf("%s: a listener is none that connects: %v", x.name, err)
		}
	}
}

// TestListenerOfAGroup: of several sockets with SO_REUSEPORT it is the one that the
// kernel then gives the connection to; and an open connection does not hide them.
func TestListenerOfAGroup(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	f := finder(t, host)
	names := map[uint64]string{}
	for i := range 4 {
		name := fmt.Sprint("s", i)
		cgroup := host.In(name)
		probe.Start(cgroup, name).Listen("tcp", "[::]:80", probe.ReusePort)
		names[cgroup.ID()] = name
	}
	client := probe.Start(host.In("client"), "client")
	seen := map[string]bool{}
	for i := range 20 {
		for _, ip := range []string{"127.0.0.1", "[::1]"} {
			from, to := fmt.Sprintf("%s:%d", ip, 20000+i), ip+":80"
			local, remote := ports(to, from)
			cgroup, err := f.Listener(local, remote, lo)
			if err != nil {
				t.Fatal(err)
			}
			v := client.TCPTo(probe.Target{To: to, From: from})
			if v.Server == "" || v.Server != names[cgroup] {
				t.Errorf("%s to %s: %s got it; said was %s", from, to, v.Server, names[cgroup])
			}
			seen[v.Server] = true
		}
	}
	if len(seen) < 2 {
		t.Errorf("all went to %v", seen)
	}
	conn, _ := client.DialTo(probe.Target{To: "127.0.0.1:80", From: "127.0.0.1:30000"})
	defer conn.Close()
	local, remote := ports("127.0.0.1:80", "127.0.0.1:30000")
	if cgroup, err := f.Listener(local, remote, lo); err != nil || names[cgroup] == "" {
		t.Errorf("behind an open connection: %d, %v", cgroup, err)
	}
}

// TestConnecting: also from a dual-stack socket, and with a listener of the same address.
func TestConnecting(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft", "ncat")
	host := nstest.New(t)
	f := finder(t, host)
	err := host.Nft(`table inet t { chain i { type filter hook input priority 0; tcp dport 81 drop; }; }`)
	if err != nil {
		t.Fatal(err)
	}
	probe.Start(host.In("server"), "server").Listen("tcp", "[::]:5000", probe.ReusePort)
	client := host.In("client")
	for i, x := range []struct{ dial, local, remote string }{
		{"127.0.0.1", "127.0.0.1:%d", "127.0.0.1:81"},
		{"::1", "[::1]:%d", "[::1]:81"},
		{"::ffff:127.0.0.2", "127.0.0.1:%d", "127.0.0.2:81"},
	} {
		port := 6000 + i
		client.Start("ncat", "--source-port", fmt.Sprint(port), x.dial, "81")
		local, remote := ports(fmt.Sprintf(x.local, port), x.remote)
		nstest.WaitFor(t, patience, "the socket to "+x.remote, func() bool {
			got, err := f.Connecting(local, remote, lo)
			if err != nil && !errors.Is(err, ErrNone) {
				t.Fatal(err)
			}
			return err == nil && got == client.ID()
		})
	}
	local, remote := ports("127.0.0.1:5000", "127.0.0.1:81")
	if got, err := f.Connecting(local, remote, lo); !errors.Is(err, ErrNone) {
		t.Errorf("%d, %v", got, err)
	}
}

// TestBoundDevices: sockets that are bound to a device are found by it alone.
func TestBoundDevices(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft", "ip")
	host, other := nstest.New(t), nstest.New(t)
	device, _ := nstest.Link(host, "10.0.0.1/24", "fd00::1/64", other, "10.0.0.2/24", "fd00::2/64")
	err := host.Nft(`table inet t { chain o { type filter hook output priority 0; tcp dport 81 drop; }; }`)
	if err != nil {
		t.Fatal(err)
	}
	f := finder(t, host)
	bind := func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); e != nil {
			return e
		}
		return err
	}
	var index int
	if err := host.Do(func() {
		i, err := net.InterfaceByName(device)
		if err != nil {
			t.Fatal(err)
		}
		index = i.Index
		l, err := (&net.ListenConfig{Control: bind}).Listen(t.Context(), "tcp", "[::]:80")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}); err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]string{{"10.0.0.1:80", "10.0.0.2:5000"}, {"[fd00::1]:80", "[fd00::2]:5000"}} {
		local, remote := ports(ends[0], ends[1])
		if got, err := f.Listener(local, remote, index); err != nil || got == 0 {
			t.Errorf("%s by its device: %d, %v", local, got, err)
		}
		if _, err := f.Listener(local, remote, lo); !errors.Is(err, ErrNone) {
			t.Errorf("%s by another: %v", local, err)
		}
	}
	if err := host.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		err = errors.Join(unix.BindToDevice(fd, device),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 6000, Addr: [4]byte{10, 0, 0, 1}}))
		if e := unix.Connect(fd, &unix.SockaddrInet4{Port: 81, Addr: [4]byte{10, 0, 0, 2}}); err != nil ||
			!errors.Is(e, unix.EINPROGRESS) {
			t.Fatal(err, e)
		}
	}); err != nil {
		t.Fatal(err)
	}
	local, remote := ports("10.0.0.1:6000", "10.0.0.2:81")
	if got, err := f.Connecting(local, remote, index); err != nil || got == 0 {
		t.Errorf("a connecting one by its device: %d, %v", got, err)
	}
}

func TestAnswersAreChecked(t *testing.T) {
	for n := range answerSize {
		if _, _, err := parseSocket(make([]byte, n), unix.IPPROTO_TCP); err == nil {
			t.Errorf("%d bytes are taken for an answer", n)
		}
	}
	with := func(attribute ...byte) []byte { return append(make([]byte, answerSize), attribute...) }
	if _, _, err := parseSocket(with(3, 0, 21, 0), unix.IPPROTO_TCP); err == nil {
		t.Error("an attribute that is too short")
	}
	if _, _, err := parseSocket(with(8, 0, 21, 0, 1, 2, 3, 4), unix.IPPROTO_TCP); err == nil {
		t.Error("a cgroup's id of four bytes")
	}
	whole := nlmsg.Append(nil, netlink.Message{
		Header: netlink.Header{Type: diagByFamily, Sequence: 7}, Data: make([]byte, answerSize),
	})
	if _, number, err := parseAnswer(whole); number != 7 || err != nil {
		t.Errorf("the answer to %d: %v", number, err)
	}
	for n := range whole {
		if _, _, err := parseAnswer(whole[:n]); err == nil {
			t.Errorf("%d bytes are taken for an answer", n)
		}
	}
	failed := append([]byte{20, 0, 0, 0, unix.NLMSG_ERROR}, make([]byte, 15)...)
	for errno, want := range map[unix.Errno]error{unix.ENOENT: ErrNone, unix.EPERM: unix.EPERM} {
		binary.NativeEndian.PutUint32(failed[nlmsg.HeaderSize:], uint32(-int32(errno)))
		if _, _, err := parseAnswer(failed); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// TestFailedRequest: what it leaves is not taken for the next one's answer.
func TestFailedRequest(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	f := finder(t, host)
	a, b := host.In("a"), host.In("b")
	probe.Start(a, "a").Listen("tcp", "[::]:80")
	probe.Start(b, "b").Listen("tcp", "[::]:81")
	local, remote := ports("127.0.0.1:80", "127.0.0.1:5000")
	r := findRequest(local, remote, lo)
	if _, err := unix.Write(f.fd, r.append(nil, 0, f.number)); err != nil { // nobody takes the answer
		t.Fatal(err)
	}
	other := netip.AddrPortFrom(local.Addr(), 81)
	for range 2 {
		if got, err := f.Listener(other, remote, lo); err != nil || got != b.ID() {
			t.Errorf("%d, %v, want %d", got, err, b.ID())
		}
	}
}

// TestSender: the kernel's SYN is kept back and sent by a raw socket, with a mark; it
// opens the connection. So a fallback can send a SYN again.
func TestSender(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft", "ip")
	a, b := nstest.New(t), nstest.New(t)
	nstest.Link(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
	probe.Start(b.In("server"), "server").Listen("tcp", "[::]:80")
	const check = `chain i { type filter hook input priority 10; ct state invalid counter comment "invalid"; }`
	if err := a.Nft("table inet t { chain q { }\nchain o { type filter hook output priority 0; meta mark 7 counter " +
		"accept; tcp flags & (syn|ack|rst) == syn jump q; }\n" + check + "\n}"); err != nil {
		t.Fatal(err)
	}
	enqueue(t, a)
	var s *Sender
	var q *queue.Queue
	var err, err2 error
	syns := make(chan []byte, 100)
	if e := a.Do(func() {
		s, err = NewSender()
		q, err2 = queue.Open(queue.Config{Number: 1}, func(p queue.Packet) queue.Verdict {
			syns <- p.Payload
			if err := s.Send(p.Payload, 7, p.Device); err != nil {
				t.Error(err)
			}
			return queue.Drop()
		})
	}); e != nil || err != nil || err2 != nil {
		t.Fatal(e, err, err2)
	}
	defer s.Close()
	defer q.Close()
	client := probe.Start(a.In("client"), "client")
	for _, to := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
		if v := client.TCPTo(probe.Target{To: to, Patience: patience}); v.Server != "server" {
			t.Errorf("%s: %s", to, v)
		}
		if p, err := packet.Parse(<-syns); err != nil || p.Flags != packet.SYN {
			t.Errorf("%s: %+v, %v", to, p, err)
		}
	}
	list := a.NftList()
	if strings.Contains(list, "counter packets 0 bytes 0 accept") ||
		!strings.Contains(list, `counter packets 0 bytes 0 comment "invalid"`) {
		t.Error(list)
	}
	for _, junk := range [][]byte{nil, {0x45}, make([]byte, 19), append([]byte{0x60}, make([]byte, 38)...),
		make([]byte, 60)} {
		if err := s.Send(junk, 0, 0); !errors.Is(err, ErrNoPacket) {
			t.Errorf("%x: %v", junk, err)
		}
	}
	s.Close()
	if err := s.Send(append([]byte{0x45}, make([]byte, 39)...), 0, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("after Close: %v", err)
	}
}

// enqueue sends all packets of the chain q to queue 1, as the kernel can.
func enqueue(t testing.TB, host *nstest.Host) {
	t.Helper()
	err := host.Nft("add rule inet t q queue num 1\n")
	if err == nil {
		return
	}
	if nstest.NativeQueue() {
		t.Fatal(err)
	}
	if e := host.Do(func() {
		var conn *nftables.Conn
		if conn, err = nftables.New(); err != nil {
			return
		}
		table := &nftables.Table{Name: "t", Family: nftables.TableFamilyINet}
		info := xt.Unknown{1, 0, 1, 0, 0, 0, 0, 0} // queue 1, one of them, no flags
		conn.AddRule(&nftables.Rule{
			Table: table, Chain: &nftables.Chain{Name: "q", Table: table},
			Exprs: []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}},
		})
		err = conn.Flush()
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

func TestLinkLocal(t *testing.T) {
	p := append([]byte{0x60}, make([]byte, 39)...)
	p[24], p[25] = 0xfe, 0x80
	_, to, err := destination(p, 5)
	if a, ok := to.(*unix.SockaddrInet6); err != nil || !ok || a.ZoneId != 5 {
		t.Errorf("%+v, %v", to, err)
	}
	p[25] = 0xc0 // site-local: routed
	_, to, _ = destination(p, 5)
	if a := to.(*unix.SockaddrInet6); a.ZoneId != 0 {
		t.Errorf("%+v", to)
	}
}

// BenchmarkFind among 1,000 sockets that listen.
func BenchmarkFind(b *testing.B) {
	host := nstest.New(b)
	f := finder(b, host)
	if err := host.Do(func() {
		for port := 10000; port < 11000; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { l.Close() })
		}
	}); err != nil {
		b.Fatal(err)
	}
	local, remote := ports("127.0.0.1:10500", "127.0.0.1:5000")
	for b.Loop() {
		if _, err := f.Listener(local, remote, lo); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	host := nstest.New(b)
	var s *Sender
	var err error
	if e := host.Do(func() { s, err = NewSender() }); e != nil || err != nil {
		b.Fatal(e, err)
	}
	defer s.Close()
	p := make([]byte, 40)
	p[0], p[8], p[9], p[12], p[15], p[16], p[19] = 0x45, 64, 6, 127, 1, 127, 1
	for b.Loop() {
		if err := s.Send(p, 1, 0); err != nil {
			b.Fatal(err)
		}
	}
}
