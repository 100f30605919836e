package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }

const patience = 20 * time.Second

// enqueue adds a rule to a chain that sends every packet to a queue: nft's, or the xtables
// target, which is all that some kernels have. Info is struct xt_NFQ_info_v3, number,
// queues, flags: none, so without a reader the packet is dropped.
func enqueue(t testing.TB, host *nstest.Host, chain string, number byte) {
	t.Helper()
	err := host.Nft(fmt.Sprintf("add rule inet t %s queue num %d\n", chain, number))
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
		info := xt.Unknown{number, 0, 1, 0, 0, 0, 0, 0}
		conn.AddRule(&nftables.Rule{
			Table: table, Chain: &nftables.Chain{Name: chain, Table: table},
			Exprs: []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}},
		})
		err = conn.Flush()
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// load loads a table whose chain "q" sends all to queue 1.
func load(t testing.TB, host *nstest.Host, script string) {
	t.Helper()
	if err := host.Nft("table inet t { chain q { }\nchain none { }\n" + script + "\n}"); err != nil {
		t.Fatal(err)
	}
	enqueue(t, host, "q", 1)
}

// open opens queue 1 of the host until the test ends.
func open(t testing.TB, host *nstest.Host, config Config, handle func(Packet) Verdict) *Queue {
	t.Helper()
	config.Number = 1
	var q *Queue
	var err error
	if e := host.Do(func() { q, err = Open(config, handle) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	t.Cleanup(q.Close)
	return q
}

func kernelStats(t testing.TB, host *nstest.Host) (s KernelStats) {
	t.Helper()
	var err error
	if e := host.Do(func() { s, err = ReadKernelStats(1) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return s
}

// udpOut queues datagrams on their way out.
const udpOut = `chain o { type filter hook output priority 0; udp dport 9 jump q; }
	chain i { type filter hook input priority 0; meta mark 7 counter comment "seven"; }`

type sockets struct{ from, to *probe.UDPSocket }

func udp(host *nstest.Host) sockets {
	return sockets{probe.Start(host.In("a"), "a").OpenUDP("udp", "127.0.0.1:0"),
		probe.Start(host.In("b"), "b").OpenUDP("udp", "127.0.0.1:9")}
}

func (s sockets) send(data ...string) {
	for _, d := range data {
		s.from.Send("127.0.0.1:9", d)
	}
}

func (s sockets) got(data string) func() bool { return func() bool { return s.to.Got(data) } }

func TestVerdicts(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	hooks := make(chan Packet, 10)
	open(t, host, Config{}, func(p Packet) Verdict {
		hooks <- p
		switch {
		case bytes.HasSuffix(p.Payload, []byte("drop")):
			return Drop()
		case bytes.HasSuffix(p.Payload, []byte("mark")):
			return Accept().WithMark(7)
		case bytes.HasSuffix(p.Payload, []byte("change")):
			p.Payload[26], p.Payload[27] = 0, 0 // UDP: no checksum
			return Rewrite(append(p.Payload[:len(p.Payload)-6], "CHANGE"...)).WithMark(7)
		case bytes.HasSuffix(p.Payload, []byte("nothing")):
			return Rewrite(nil)
		}
		return Accept()
	})
	s.send("drop", "nothing", "mark", "change", "as is")
	nstest.WaitFor(t, patience, "the last datagram", s.got("as is"))
	var got []string
	for _, d := range s.to.Received() {
		got = append(got, d.Data)
	}
	if want := "mark CHANGE as is"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if list := host.NftList(); !strings.Contains(list, "counter packets 2 ") {
		t.Errorf("two packets were marked: %s", list)
	}
	if p := <-hooks; p.Hook != Output || p.Device != 1 || p.Mark != 0 || len(p.Payload) != 20+8+4 {
		t.Errorf("%+v", p)
	}
}

// TestMarkArrives: the mark that the packet has, and a namespace given by descriptor.
func TestMarkArrives(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, `chain i { type filter hook input priority 0; udp dport 9 meta mark set 0x80000001 jump q; }`)
	s := udp(host)
	var ns *os.File
	var err error
	if e := host.Do(func() { ns, err = os.Open("/proc/thread-self/ns/net") }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	defer ns.Close()
	marks := make(chan Packet, 1)
	q, err := Open(Config{Number: 1, Namespace: int(ns.Fd())}, func(p Packet) Verdict { marks <- p; return Accept() })
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	s.send("hello")
	nstest.WaitFor(t, patience, "the datagram", s.got("hello"))
	if p := <-marks; p.Mark != 0x80000001 || p.Hook != Input || p.Device != 1 {
		t.Errorf("%+v", p)
	}
}

// TestNobodyReads: closed by default, and open again when a reader comes back.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	s.send("before")
	accept := func(Packet) Verdict { return Accept() }
	q := open(t, host, Config{}, accept)
	if err := host.Do(func() {
		if second, err := Open(Config{Number: 1}, accept); err == nil {
			second.Close()
			t.Error("two readers of one queue")
		}
	}); err != nil {
		t.Fatal(err)
	}
	s.send("read")
	nstest.WaitFor(t, patience, "the datagram", s.got("read"))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- q.Run(ctx) }()
	cancel()
	if err := <-done; err != nil { // it returns: a closed queue does not spin
		t.Error(err)
	}
	q.Close() // again: no harm
	if err := host.Do(func() {
		if s, err := ReadKernelStats(1); err == nil {
			t.Errorf("the queue is still bound: %+v", s)
		}
	}); err != nil {
		t.Fatal(err)
	}
	s.send("closed")

	open(t, host, Config{}, accept)
	s.send("again")
	nstest.WaitFor(t, patience, "the datagram", s.got("again"))
	if s.to.Got("before") || s.to.Got("closed") {
		t.Error("a packet passed a queue that nobody read")
	}
}

// TestCloseUnbinds: also while a process that is being started has a copy of the socket.
func TestCloseUnbinds(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	accept := func(Packet) Verdict { return Accept() }
	q := open(t, host, Config{}, accept)
	held, err := unix.Dup(q.socket.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	q.Close()
	open(t, host, Config{}, accept)
}

// TestMessages: of what is cut off, or says to be longer than it is, nothing is taken.
func TestMessages(t *testing.T) {
	one := []byte{18, 0, 0, 0, 3, 3, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 'h', 'i', 0, 0} // little-endian, as this test
	two := append(append([]byte{}, one...), one...)
	list, err := messages(nil, two)
	if err != nil || len(list) != 2 || string(list[1].Data) != "hi" || list[1].Header.Sequence != 7 {
		t.Errorf("%v, %v", list, err)
	}
	for n := 1; n < len(two); n++ {
		list, err := messages(nil, two[:n])
		if whole := n == 18 || n == 19 || n == 20 || n >= 38; whole != (err == nil) || err == nil &&
			len(list) != (n+2)/20 {
			t.Errorf("%d bytes: %d messages, %v", n, len(list), err)
		}
	}
	for _, size := range []byte{0, 15, 21} {
		if _, err := messages(nil, append([]byte{size}, one[1:]...)); err == nil {
			t.Errorf("a message that says %d bytes", size)
		}
	}
}

// TestSocketClosedUnderneath: the reader ends with an error instead of spinning.
func TestSocketClosedUnderneath(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	q := open(t, host, Config{}, func(Packet) Verdict { return Accept() })
	q.nf.Con.Close()
	done := make(chan error)
	go func() { done <- q.Run(t.Context()) }()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "queue 1") {
		t.Errorf("%v", err)
	}
}

// TestQueueIsBounded: at the bound packets wait, beyond it they are dropped and counted.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	release := make(chan struct{})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(release) }) })
	open(t, host, Config{Length: 4}, func(Packet) Verdict { <-release; return Accept() })
	for i := range 7 {
		s.send(fmt.Sprint(i))
	}
	if k := kernelStats(t, host); k.Waiting != 4 || k.QueueDropped != 3 {
		t.Errorf("%+v, want 4 waiting, 3 dropped", k)
	}
	once.Do(func() { close(release) })
	nstest.WaitFor(t, patience, "the last in the queue", s.got("3"))
	if s.to.Got("4") {
		t.Error("one more than the queue's length passed")
	}
}

// TestOverrun: a full socket buffer loses packets, is counted, and reading goes on.
func TestOverrun(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	release := make(chan struct{})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(release) }) })
	q := open(t, host, Config{Buffer: 4096}, func(Packet) Verdict { <-release; return Accept() })
	nstest.WaitFor(t, patience, "the buffer to be full", func() bool {
		s.send("x")
		return kernelStats(t, host).UserDropped > 0
	})
	once.Do(func() { close(release) })
	nstest.WaitFor(t, patience, "a packet after that", func() bool { s.send("after"); return s.to.Got("after") })
	if n := q.Stats().Overruns; n == 0 {
		t.Error("the overrun was not counted")
	}
}

// TestLateVerdict: the kernel's answer to a verdict on a packet that it does not have.
func TestLateVerdict(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	q := open(t, host, Config{}, func(Packet) Verdict { return Accept() })
	if err := q.answer(12345, Accept()); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, patience, "the answer", func() bool { return q.Stats().Late == 1 })
	s.send("after")
	nstest.WaitFor(t, patience, "a packet after that", s.got("after"))
}

// TestAgain: a packet goes through the chain that queued it once more, with its mark.
func TestAgain(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, `chain o {
		type filter hook output priority 0; meta mark 7 drop; meta mark 8 accept; udp dport 9 jump q;
	}`)
	s := udp(host)
	times := make(chan struct{}, 10)
	open(t, host, Config{}, func(p Packet) Verdict {
		times <- struct{}{}
		switch {
		case bytes.HasSuffix(p.Payload, []byte("drop")):
			return Again().WithMark(7)
		case p.Mark == 6:
			return Again().WithMark(8)
		}
		return Again().WithMark(6)
	})
	s.send("drop", "accept")
	nstest.WaitFor(t, patience, "the datagram", s.got("accept"))
	if len(times) != 3 {
		t.Errorf("the packets came to the queue %d times, want 1 and 2", len(times))
	}
	if s.got("drop")() {
		t.Error("the chain was not asked again")
	}
}

// TestTooBigVerdict: where a verdict cannot be given, the packet is dropped, and does
// not stay.
func TestTooBigVerdict(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft")
	host := nstest.New(t)
	load(t, host, udpOut)
	s := udp(host)
	q := open(t, host, Config{}, func(p Packet) Verdict {
		if bytes.HasSuffix(p.Payload, []byte("big")) {
			return Rewrite(make([]byte, 1<<20))
		}
		return Accept()
	})
	s.send("big", "after")
	nstest.WaitFor(t, patience, "the next", s.got("after"))
	if k := kernelStats(t, host); k.Waiting != 0 {
		t.Errorf("%+v", k)
	}
	if got := q.Stats(); got.Dropped != 1 || got.Packets != 2 {
		t.Errorf("%+v", got)
	}
}

// TestTCP: the SYN of real connections goes over a wire with a token in it, and the
// kernel at the other end does not see it. Neither side's conntrack calls a packet invalid.
func TestTCP(t *testing.T) {
	t.Parallel()
	nstest.Need(t, "nft", "ip")
	client, server := nstest.New(t), nstest.New(t)
	nstest.Link(client, "10.0.0.1/24", "fd00::1/64", server, "10.0.0.2/24", "fd00::2/64")
	const check = `
		chain invalid_i {
			type filter hook input priority 10
			ct state invalid counter comment "invalid"
			meta mark 0x4001 counter comment "marked"
		}
		chain invalid_o { type filter hook output priority 10; ct state invalid counter comment "invalid"; }`
	load(t, client, `chain o { type filter hook output priority 0; tcp flags & (syn|ack|rst) == syn jump q; }`+check)
	load(t, server, `chain p { type filter hook prerouting priority raw; tcp option 254 exists jump q; }`+check)

	t1 := bytes.Repeat([]byte{'A'}, 561)
	var failed atomic.Pointer[error]
	rewrite := func(edit func(*packet.Packet) ([]byte, error)) func(Packet) Verdict {
		return func(in Packet) Verdict {
			p, err := packet.Parse(in.Payload)
			if err == nil {
				var out []byte
				if out, err = edit(&p); err == nil {
					if in.Hook == Prerouting {
						return Rewrite(out).WithMark(0x4001)
					}
					return Rewrite(out)
				}
			}
			failed.Store(&err)
			return Drop()
		}
	}
	out := open(t, client, Config{}, rewrite(func(p *packet.Packet) ([]byte, error) {
		return p.AppendSYN(nil, token.TypeFullT1, t1, 1500)
	}))
	in := open(t, server, Config{}, rewrite(func(p *packet.Packet) ([]byte, error) {
		if !bytes.Equal(p.Payload(), t1) {
			return nil, refusal.WrongPacket
		}
		return p.AppendStrippedSYN(nil)
	}))

	connections := 0
	for _, address := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
		l := listen(t, server, address)
		for range 5 {
			transfer(t, client, l, bytes.Repeat([]byte("data"), 50_000))
			connections++
		}
	}
	if err := failed.Load(); err != nil {
		t.Error(*err)
	}
	if a, b := out.Stats(), in.Stats(); a.Packets != b.Packets || a.Packets < uint64(connections) ||
		a.Dropped+b.Dropped != 0 {
		t.Errorf("%+v, %+v", a, b)
	}
	for name, host := range map[string]*nstest.Host{"client": client, "server": server} {
		list := host.NftList()
		if n := strings.Count(list, `counter packets 0 bytes 0 comment "invalid"`); n != 2 {
			t.Errorf("%s: %s", name, list)
		}
	}
	if list := server.NftList(); strings.Contains(list, `counter packets 0 bytes 0 comment "marked"`) {
		t.Errorf("the verdict's mark did not arrive: %s", list)
	}
}

func listen(t testing.TB, host *nstest.Host, address string) (l net.Listener) {
	t.Helper()
	var err error
	if e := host.Do(func() { l, err = net.Listen("tcp", address) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects from a host, on the thread that is there.
func dial(t testing.TB, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: patience}).Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// transfer sends data over a new connection and takes it back.
func transfer(t *testing.T, client *nstest.Host, l net.Listener, data []byte) {
	t.Helper()
	go func() {
		s, err := l.Accept()
		if err != nil {
			return
		}
		defer s.Close()
		io.Copy(s, s) //nolint: the client tells whether it came back
	}()
	var conn net.Conn
	if err := client.Do(func() { conn = dial(t, netip.MustParseAddrPort(l.Addr().String())) }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go conn.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Error("other data came back")
	}
}

// BenchmarkConnect is a connect over loopback, without a queue and with the SYN going
// through one.
func BenchmarkConnect(b *testing.B) {
	nstest.Need(b, "nft")
	for _, queued := range []bool{false, true} {
		b.Run(map[bool]string{false: "direct", true: "one crossing"}[queued], func(b *testing.B) {
			host := nstest.New(b)
			load(b, host, `chain o { type filter hook output priority 0; `+
				`tcp flags & (syn|ack|rst) == syn tcp dport 80 jump `+
				map[bool]string{false: "none", true: "q"}[queued]+`; }`)
			open(b, host, Config{}, func(p Packet) Verdict { return Rewrite(p.Payload) })
			l := listen(b, host, "127.0.0.1:80")
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Close()
				}
			}()
			to := netip.MustParseAddrPort(l.Addr().String())
			if err := host.Do(func() {
				for b.Loop() {
					dial(b, to).Close()
				}
			}); err != nil {
				b.Fatal(err)
			}
		})
	}
}
