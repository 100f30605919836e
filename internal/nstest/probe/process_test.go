package probe_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

func wantOutcome(t *testing.T, what string, got probe.Verdict, want probe.Outcome, server string) {
	t.Helper()
	if got.Outcome != want || got.Server != server {
		t.Errorf("%s: %v, want %v", what, got, probe.Verdict{Outcome: want, Server: server})
	}
}

func TestTCPListeners(t *testing.T) {
	host := nstest.New(t)
	server, client := probe.Start(host.In("s"), "server"), probe.Start(host.In("c"), "client")
	dual := server.Listen("tcp", "[::]:80")
	server.Listen("tcp6", "[::]:81")
	server.Listen("tcp4", "127.0.0.1:82")
	server.Listen("tcp", "127.0.0.1:83", probe.Greet)
	for _, tt := range []struct {
		to   string
		want probe.Outcome
	}{
		{"127.0.0.1:80", probe.Connected},
		{"127.0.0.7:80", probe.Connected},
		{"[::1]:80", probe.Connected},
		{"127.0.0.1:81", probe.Refused},
		{"[::1]:81", probe.Connected},
		{"127.0.0.1:82", probe.Connected},
		{"[::1]:82", probe.Refused},
	} {
		answerer := ""
		if tt.want == probe.Connected {
			answerer = "server"
		}
		wantOutcome(t, tt.to, client.TCP(tt.to), tt.want, answerer)
	}
	greeted := client.TCPTo(probe.Target{To: "127.0.0.1:83", Quiet: true})
	wantOutcome(t, "a server that speaks first", greeted, probe.Connected, "server")
	dual.Close()
	wantOutcome(t, "a closed listener", client.TCP("127.0.0.1:80"), probe.Refused, "")
}

func TestSourceAddressAndPort(t *testing.T) {
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
	l := p.Listen("tcp", "127.0.0.1:80", probe.Manual)
	conn, v := p.DialTo(probe.Target{To: "127.0.0.1:80", From: "127.0.0.9:4321"})
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
	client := probe.Start(host.In("c"), "client")
	for _, name := range []string{"one", "two"} {
		p := probe.Start(host.In(name), name)
		p.Listen("tcp", "127.0.0.1:80", probe.ReusePort)
		p.OpenUDP("udp", "127.0.0.1:80", probe.ReusePort)
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
	server, client := probe.Start(host.In("s"), "server"), probe.Start(host.In("c"), "client")
	l := server.Listen("tcp", "[::1]:80", probe.Manual)
	conn, _ := client.Dial("[::1]:80")
	accepted := l.Accept(time.Second)
	if conn == nil || accepted == nil {
		t.Fatal("no connection")
	}
	l.Close() // the connection stays
	if data, outcome := conn.Receive(0); outcome != probe.Silent {
		t.Errorf("before anything was sent: %q, %s", data, outcome)
	}
	accepted.Send("pushed")
	if data, outcome := conn.Receive(0); data != "pushed" || outcome != probe.Connected {
		t.Errorf("from the server: %q, %s", data, outcome)
	}
	conn.Send("answer")
	if data, outcome := accepted.Receive(time.Second); data != "answer" || outcome != probe.Connected {
		t.Errorf("from the client: %q, %s", data, outcome)
	}
	conn.Close()
	if data, outcome := accepted.Receive(0); outcome != probe.Closed {
		t.Errorf("after the client closed: %q, %s", data, outcome)
	}
}

func TestTCPOutcomes(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
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
	wantOutcome(t, "prohibited", p.TCP("127.0.0.1:82"), probe.Prohibited, "")
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		wantOutcome(t, ip+" accept", p.TCP(ip+":80"), probe.Connected, "p")
		wantOutcome(t, ip+" reset", p.TCP(ip+":81"), probe.Refused, "")
		wantOutcome(t, ip+" reset of data", p.TCP(ip+":84"), probe.Reset, "")
		start := time.Now()
		wantOutcome(t, ip+" drop", p.TCP(ip+":83"), probe.Silent, "")
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("silence took %v to be known", took)
		}
	}
}

func TestPatienceOutlivesARetransmission(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
	p.Listen("tcp", "127.0.0.1:80")
	// The first SYN is lost, the second, a second later, comes through.
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0;
		tcp dport 80 tcp flags syn limit rate 1/hour burst 1 packets drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	v := p.TCPTo(probe.Target{To: "127.0.0.1:80", Patience: 10 * time.Second})
	wantOutcome(t, "with patience", v, probe.Connected, "p")
}

func TestUDP(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	server, client := probe.Start(host.In("s"), "server"), probe.Start(host.In("c"), "client")
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
	wantOutcome(t, "v4 to dual-stack", client.UDP("127.0.0.1:53", dual, six), probe.Arrived, "server")
	wantOutcome(t, "v6 to dual-stack", client.UDP("[::1]:53", dual, six), probe.Arrived, "server")
	wantOutcome(t, "v4 to v6 only", client.UDP("127.0.0.1:54", dual, six), probe.Refused, "")
	wantOutcome(t, "v6 to v6 only", client.UDP("[::1]:54", dual, six), probe.Arrived, "server")
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		wantOutcome(t, ip+" dropped", client.UDP(ip+":55", dual), probe.Silent, "")
		wantOutcome(t, ip+" rejected", client.UDP(ip+":56", dual), probe.Prohibited, "")
		wantOutcome(t, ip+" not let out", client.UDP(ip+":57", dual), probe.Prohibited, "")
	}
}

func TestUDPSocketIsKept(t *testing.T) {
	host := nstest.New(t)
	server, client := probe.Start(host.In("s"), "server"), probe.Start(host.In("c"), "client")
	s, c := server.OpenUDP("udp", "127.0.0.1:0"), client.OpenUDP("udp", "127.0.0.1:4000")
	c.Send(s.Addr, "question")
	if got, want := s.Received(), (probe.Datagram{Data: "question", From: "127.0.0.1:4000"}); !slices.Equal(got,
		[]probe.Datagram{want}) {
		t.Errorf("the server received %v", got)
	}
	s.Send("127.0.0.1:4000", "answer")
	if !c.Got("answer") || c.Got("nothing") {
		t.Errorf("the client received %v", c.Received())
	}
	s.Close()
	c.Send(s.Addr, "too late")
	if got, want := c.Errors(), (probe.ICMPError{Errno: unix.ECONNREFUSED, To: s.Addr}); !slices.Equal(got,
		[]probe.ICMPError{want}) {
		t.Errorf("the client's errors: %v, want %v", got, want)
	}
}

func TestMulticast(t *testing.T) {
	host := nstest.New(t)
	a, b, client := probe.Start(host.In("a"), "a"), probe.Start(host.In("b"), "b"), probe.Start(host.In("c"), "client")
	var members []*probe.UDPSocket
	for _, p := range []*probe.Process{a, b} {
		s := p.OpenUDP("udp4", "224.0.0.251:5353", probe.ReusePort)
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
	p := probe.Start(host.In("x"), "p")
	unprivileged := probe.Start(host.In("x").As(4242), "u")
	for _, ip := range []string{"127.0.0.1", "::1"} {
		wantOutcome(t, "ping "+ip, p.Ping(ip), probe.Arrived, "")
		wantOutcome(t, "ping of a user "+ip, unprivileged.Ping(ip), probe.Arrived, "")
	}
	wantOutcome(t, "raw echo", p.ICMP("127.0.0.1", 8), probe.Arrived, "")
	wantOutcome(t, "raw v6 echo", p.ICMP("::1", 128), probe.Arrived, "")
	wantOutcome(t, "timestamp", p.ICMP("127.0.0.1", 13), probe.Arrived, "")
	wantOutcome(t, "a type that nobody answers", p.ICMP("127.0.0.1", 42), probe.Silent, "")
	if err := host.Nft(`table inet x {
		chain input { type filter hook input priority 0;
			icmp type echo-request reject with icmp admin-prohibited
			icmpv6 type echo-request drop; }
		chain output { type filter hook output priority 0; icmp type timestamp-request drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "rejected", p.Ping("127.0.0.1"), probe.Prohibited, "")
	wantOutcome(t, "dropped", p.Ping("::1"), probe.Silent, "")
	wantOutcome(t, "not let out", p.ICMP("127.0.0.1", 13), probe.Prohibited, "")
}

func TestForkInheritsAndOutlives(t *testing.T) {
	host := nstest.New(t)
	web := host.In("web")
	parent := probe.Start(web, "parent")
	child := parent.Fork("child")
	grandchild := child.Fork("grandchild")
	if got, want := web.Pids(), []int{parent.PID(), child.PID(), grandchild.PID()}; !sameElements(got, want) {
		t.Errorf("processes in the cgroup: %v, want %v", got, want)
	}
	grandchild.Listen("tcp", "127.0.0.1:80")
	child.Stop()
	parent.Stop()
	client := probe.Start(host.In("x"), "x")
	wantOutcome(t, "an orphan's listener", client.TCP("127.0.0.1:80"), probe.Connected, "grandchild")
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
	p, client := probe.Start(host.In("old"), "p"), probe.Start(host.In("c"), "client")
	p.Listen("tcp", "127.0.0.1:80")
	host.In("new").Adopt(p.PID())
	p.Listen("tcp", "127.0.0.1:81")
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0;
		socket cgroupv2 level 1 "old" reject with tcp reset
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "the socket from before the move", client.TCP("127.0.0.1:80"), probe.Refused, "")
	wantOutcome(t, "the socket from after the move", client.TCP("127.0.0.1:81"), probe.Connected, "p")
}

func TestSetUID(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
	p.SetUID(4242)
	child := p.Fork("child") // inherits the user
	p.Listen("tcp", "127.0.0.1:8080")
	if err := host.Nft(`table inet x { chain output { type filter hook output priority 0;
		meta skuid 4242 tcp flags syn / syn,ack reject with tcp reset
		}
	}`); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, "as user", p.TCP("127.0.0.1:8080"), probe.Refused, "")
	wantOutcome(t, "the user's child", child.TCP("127.0.0.1:8080"), probe.Refused, "")
	wantOutcome(t, "as root", probe.Start(host.In("x"), "root").TCP("127.0.0.1:8080"), probe.Connected, "p")
}

func TestObserverSeesWhatInputLetsPass(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
	if err := host.Nft(`table inet x { chain input { type filter hook input priority 0; th dport 81 drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	o := wire.Observe(host)
	for _, to := range []string{"127.0.0.1:80", "127.0.0.1:81", "[::1]:80", "[::1]:81"} {
		p.TCP(to) // nobody listens
		p.UDP(to)
	}
	count := func(network string, port uint16) int {
		return o.Count(func(p wire.Packet) bool {
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
