package nstest_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

func exitGoroutine() { runtime.Goexit() }

func wantOutcome(t *testing.T, what string, got nstest.Verdict, want nstest.Outcome, server string) {
	t.Helper()
	if got.Outcome != want || got.Server != server {
		t.Errorf("%s: %v, want %v", what, got, nstest.Verdict{Outcome: want, Server: server})
	}
}

func TestTCPListeners(t *testing.T) {
	host := nstest.New(t)
	server, client := host.In("s").Probe("server"), host.In("c").Probe("client")
	dual := server.Listen("tcp", "[::]:80")
	server.Listen("tcp6", "[::]:81")
	server.Listen("tcp4", "127.0.0.1:82")
	server.Listen("tcp", "127.0.0.1:83", nstest.Greet)
	for _, tt := range []struct {
		to   string
		want nstest.Outcome
	}{
		{"127.0.0.1:80", nstest.Connected},
		{"127.0.0.7:80", nstest.Connected},
		{"[::1]:80", nstest.Connected},
		{"127.0.0.1:81", nstest.Refused},
		{"[::1]:81", nstest.Connected},
		{"127.0.0.1:82", nstest.Connected},
		{"[::1]:82", nstest.Refused},
	} {
		answerer := ""
		if tt.want == nstest.Connected {
			answerer = "server"
		}
		wantOutcome(t, tt.to, client.TCP(tt.to), tt.want, answerer)
	}
	greeted := client.TCPTo(nstest.Target{To: "127.0.0.1:83", Quiet: true})
	wantOutcome(t, "a server that speaks first", greeted, nstest.Connected, "server")
	dual.Close()
	wantOutcome(t, "a closed listener", client.TCP("127.0.0.1:80"), nstest.Refused, "")
}

func TestSourceAddressAndPort(t *testing.T) {
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	l := p.Listen("tcp", "127.0.0.1:80", nstest.Manual)
	conn, v := p.DialTo(nstest.Target{To: "127.0.0.1:80", From: "127.0.0.9:4321"})
	if conn == nil {
		t.Fatalf("dial: %v", v)
	}
	if accepted := l.Accept(time.Second); accepted == nil || accepted.Remote != "127.0.0.9:4321" ||
		conn.Local != accepted.Remote {
		t.Errorf("dialed from %s, accepted %+v", conn.Local, accepted)
	}
}

func TestReusePortSharesAmongProcesses(t *testing.T) {
	host := nstest.New(t)
	client := host.In("c").Probe("client")
	for _, name := range []string{"one", "two"} {
		p := host.In(name).Probe(name)
		p.Listen("tcp", "127.0.0.1:80", nstest.ReusePort)
		p.OpenUDP("udp", "127.0.0.1:80", nstest.ReusePort)
	}
	met := map[string]bool{}
	for range 64 {
		met[client.TCP("127.0.0.1:80").Server] = true
	}
	if !met["one"] || !met["two"] || len(met) != 2 {
		t.Errorf("64 connections to two listeners on one port met %v", met)
	}
}

func TestConnectionBothWays(t *testing.T) {
	host := nstest.New(t)
	server, client := host.In("s").Probe("server"), host.In("c").Probe("client")
	l := server.Listen("tcp", "[::1]:80", nstest.Manual)
	conn, _ := client.Dial("[::1]:80")
	accepted := l.Accept(time.Second)
	if conn == nil || accepted == nil {
		t.Fatal("no connection")
	}
	l.Close() // the connection stays
	if data, outcome := conn.Receive(0); outcome != nstest.Silent {
		t.Errorf("before anything was sent: %q, %s", data, outcome)
	}
	accepted.Send("pushed")
	if data, outcome := conn.Receive(0); data != "pushed" || outcome != nstest.Connected {
		t.Errorf("from the server: %q, %s", data, outcome)
	}
	conn.Send("answer")
	if data, outcome := accepted.Receive(time.Second); data != "answer" || outcome != nstest.Connected {
		t.Errorf("from the client: %q, %s", data, outcome)
	}
	conn.Close()
	if data, outcome := accepted.Receive(0); outcome != nstest.Closed {
		t.Errorf("after the client closed: %q, %s", data, outcome)
	}
}

func TestTCPOutcomes(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	for port := 80; port < 85; port++ {
		p.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	}
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0;
		tcp dport 81 reject with tcp reset
		tcp dport 82 reject with icmpx admin-prohibited
		tcp dport 83 drop
		tcp dport 84 ct state established tcp flags & (psh|ack) == psh|ack reject with tcp reset
		}
	}`); err != nil {
		t.Fatal(err)
	}
	// Over IPv6 an ICMP error does not end a connect: the kernel takes it for a passing trouble.
	wantOutcome(t, "prohibited", p.TCP("127.0.0.1:82"), nstest.Prohibited, "")
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		wantOutcome(t, ip+" accept", p.TCP(ip+":80"), nstest.Connected, "p")
		wantOutcome(t, ip+" reset", p.TCP(ip+":81"), nstest.Refused, "")
		wantOutcome(t, ip+" reset of data", p.TCP(ip+":84"), nstest.Reset, "")
		start := time.Now()
		wantOutcome(t, ip+" drop", p.TCP(ip+":83"), nstest.Silent, "")
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("silence took %v to be known", took)
		}
	}
}

func TestPatienceOutlivesARetransmission(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	p.Listen("tcp", "127.0.0.1:80")
	// The first SYN is lost, the second, a second later, comes through.
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0;
		tcp dport 80 tcp flags syn limit rate 1/hour burst 1 packets drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	v := p.TCPTo(nstest.Target{To: "127.0.0.1:80", Patience: 10 * time.Second})
	wantOutcome(t, "with patience", v, nstest.Connected, "p")
}

func TestUDP(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	server, client := host.In("s").Probe("server"), host.In("c").Probe("client")
	dual, six := server.OpenUDP("udp", "[::]:53"), server.OpenUDP("udp6", "[::]:54")
	if err := host.Nft(`table inet x {
		chain input { type filter hook input priority 0;
			udp dport 55 drop
			udp dport 56 reject with icmpx admin-prohibited; }
		chain output { type filter hook output priority 0; udp dport 57 drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "v4 to dual-stack", client.UDP("127.0.0.1:53", dual, six), nstest.Arrived, "server")
	wantOutcome(t, "v6 to dual-stack", client.UDP("[::1]:53", dual, six), nstest.Arrived, "server")
	wantOutcome(t, "v4 to v6 only", client.UDP("127.0.0.1:54", dual, six), nstest.Refused, "")
	wantOutcome(t, "v6 to v6 only", client.UDP("[::1]:54", dual, six), nstest.Arrived, "server")
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		wantOutcome(t, ip+" dropped", client.UDP(ip+":55", dual), nstest.Silent, "")
		wantOutcome(t, ip+" rejected", client.UDP(ip+":56", dual), nstest.Prohibited, "")
		wantOutcome(t, ip+" not let out", client.UDP(ip+":57", dual), nstest.Prohibited, "")
	}
}

func TestUDPSocketIsKept(t *testing.T) {
	host := nstest.New(t)
	server, client := host.In("s").Probe("server"), host.In("c").Probe("client")
	s, c := server.OpenUDP("udp", "127.0.0.1:0"), client.OpenUDP("udp", "127.0.0.1:4000")
	c.Send(s.Addr, "question")
	if got, want := s.Received(), (nstest.Datagram{Data: "question", From: "127.0.0.1:4000"}); !slices.Equal(got,
		[]nstest.Datagram{want}) {
		t.Errorf("the server received %v", got)
	}
	s.Send("127.0.0.1:4000", "answer")
	if !c.Got("answer") || c.Got("nothing") {
		t.Errorf("the client received %v", c.Received())
	}
	s.Close()
	c.Send(s.Addr, "too late")
	if got, want := c.Errors(), (nstest.NetError{Errno: unix.ECONNREFUSED, To: s.Addr}); !slices.Equal(got,
		[]nstest.NetError{want}) {
		t.Errorf("the client's errors: %v, want %v", got, want)
	}
}

func TestMulticast(t *testing.T) {
	host := nstest.New(t)
	a, b, client := host.In("a").Probe("a"), host.In("b").Probe("b"), host.In("c").Probe("client")
	var members []*nstest.UDPSocket
	for _, p := range []*nstest.Probe{a, b} {
		s := p.OpenUDP("udp4", "224.0.0.251:5353", nstest.ReusePort)
		s.Join("224.0.0.251", "lo")
		members = append(members, s)
	}
	sender := client.OpenUDP("udp4", "127.0.0.1:0")
	sender.MulticastTo("lo")
	sender.Send("224.0.0.251:5353", "hello")
	for i, s := range members {
		if !s.Got("hello") {
			t.Errorf("member %d did not get the multicast", i)
		}
	}
}

func TestICMP(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	unprivileged := host.In("x").As(4242).Probe("u")
	for _, ip := range []string{"127.0.0.1", "::1"} {
		wantOutcome(t, "ping "+ip, p.Ping(ip), nstest.Arrived, "")
		wantOutcome(t, "ping of a user "+ip, unprivileged.Ping(ip), nstest.Arrived, "")
	}
	wantOutcome(t, "raw echo", p.ICMP("127.0.0.1", 8), nstest.Arrived, "")
	wantOutcome(t, "raw v6 echo", p.ICMP("::1", 128), nstest.Arrived, "")
	wantOutcome(t, "timestamp", p.ICMP("127.0.0.1", 13), nstest.Arrived, "")
	wantOutcome(t, "a type that nobody answers", p.ICMP("127.0.0.1", 42), nstest.Silent, "")
	if err := host.Nft(`table inet x {
		chain input { type filter hook input priority 0;
			icmp type echo-request reject with icmp admin-prohibited
			icmpv6 type echo-request drop; }
		chain output { type filter hook output priority 0; icmp type timestamp-request drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "rejected", p.Ping("127.0.0.1"), nstest.Prohibited, "")
	wantOutcome(t, "dropped", p.Ping("::1"), nstest.Silent, "")
	wantOutcome(t, "not let out", p.ICMP("127.0.0.1", 13), nstest.Prohibited, "")
}

func TestForkInheritsAndOutlives(t *testing.T) {
	host := nstest.New(t)
	web := host.In("web")
	parent := web.Probe("parent")
	child := parent.Fork("child")
	grandchild := child.Fork("grandchild")
	if got, want := web.Pids(), []int{parent.PID(), child.PID(), grandchild.PID()}; !sameElements(got, want) {
		t.Errorf("processes in the cgroup: %v, want %v", got, want)
	}
	grandchild.Listen("tcp", "127.0.0.1:80")
	child.Stop()
	parent.Stop()
	wantOutcome(t, "an orphan's listener", host.In("x").Probe("x").TCP("127.0.0.1:80"), nstest.Connected, "grandchild")
	grandchild.Stop()
	if got := web.Pids(); len(got) != 0 {
		t.Errorf("processes left: %v", got)
	}
}

func sameElements(a, b []int) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func TestSocketKeepsItsBirthCgroup(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	host.In("new")
	p, client := host.In("old").Probe("p"), host.In("c").Probe("client")
	p.Listen("tcp", "127.0.0.1:80")
	host.In("new").Adopt(p.PID())
	p.Listen("tcp", "127.0.0.1:81")
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0;
		socket cgroupv2 level 1 "old" reject with tcp reset
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "the socket from before the move", client.TCP("127.0.0.1:80"), nstest.Refused, "")
	wantOutcome(t, "the socket from after the move", client.TCP("127.0.0.1:81"), nstest.Connected, "p")
}

func TestSetUID(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	p.SetUID(4242)
	child := p.Fork("child") // inherits the user
	p.Listen("tcp", "127.0.0.1:8080")
	if err := host.Nft(`table inet x { chain output { type filter hook output priority 0;
		meta skuid 4242 tcp flags syn / syn,ack reject with tcp reset
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "as user", p.TCP("127.0.0.1:8080"), nstest.Refused, "")
	wantOutcome(t, "the user's child", child.TCP("127.0.0.1:8080"), nstest.Refused, "")
	wantOutcome(t, "as root", host.In("x").Probe("root").TCP("127.0.0.1:8080"), nstest.Connected, "p")
}

func TestObserverSeesWhatInputLetsPass(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := host.In("x").Probe("p")
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0; th dport 81 drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	o := host.Observe()
	for _, to := range []string{"127.0.0.1:80", "127.0.0.1:81", "[::1]:80", "[::1]:81"} {
		p.TCP(to) // nobody listens
		p.UDP(to)
	}
	count := func(network string, port uint16) int {
		return o.Count(func(p nstest.Packet) bool {
			return p.Network == network && p.To.Port() == port && (network == "udp" || p.SYN && !p.ACK)
		})
	}
	for _, network := range []string{"tcp", "udp"} {
		if got := count(network, 80); got != 2 {
			t.Errorf("%s packets to port 80: %d, want one of each family", network, got)
		}
		if got := count(network, 81); got != 0 {
			t.Errorf("%s packets to port 81, where all is dropped: %d", network, got)
		}
	}
}
