package attack

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// The attacks of this file succeeded once.

// A workload's flow leaves; it ends; the next workload gets its class number, takes
// its port, and goes on with the flow that it may not have.
func TestClassNumberReused(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	outside := nstest.New(t)
	nstest.Link(m.Host, ours+"/24", ours6+"/64", outside, theirs+"/24", theirs6+"/64")
	world := newAgent(t, outside, outside.In("")).udp(theirs + ":6000")

	reader := m.run(0, "reader", policy.Labels{"app": "reader"})
	reader.udp("0.0.0.0:7000").sendTo(theirs+":6000", "allowed")
	allowed(t, "the reader", world.got() == "allowed")
	reader.end()
	m.gone("reader")

	jail := m.run(1234, "jail", policy.Labels{"app": "jail"})
	s := jail.udp("0.0.0.0:7000")
	world.sendTo(ours+":7000", "for the reader")
	denied(t, "an answer for who had the number and the port before", s.got() != "")
	other := jail.udp("0.0.0.0:7001")
	other.sendTo(theirs+":6000", "secret")
	denied(t, "out, from another port", world.got() != "")
	s.sendTo(theirs+":6000", "secret")
	denied(t, "out, as who had the number and the port before", world.got() != "")
}

// A user connects, leaves the connection to a child, and executes a setgid program.
// The daemon asks for the groups of the program that runs now, not of who connected.
func TestGroupOfSetgidProgram(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy + `---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: staff}
spec: {groups: ["4444"], labels: {app: [secret]}}
`)
	m.Shell("cp /bin/sleep /run/sleep && chgrp 4444 /run/sleep && chmod 2755 /run/sleep")
	a := newAgent(t, m.Host, m.In("users").As(1234))
	const body = `{"labels":{"app":"secret"},"command":"x"}`
	if answer := a.request("POST /v1/run", body); !strings.Contains(answer, " 403 ") {
		t.Fatalf("without the group: %s", answer)
	}
	setgid := m.In("users").As(1234).Reexec(setgidMode.Name, daemonSocket, "/run/sleep", "4444")
	setgid.Stdin = strings.NewReader(fmt.Sprintf(
		"POST /v1/run HTTP/1.1\r\nHost: thole\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	setgid.Stderr = os.Stderr
	out, err := setgid.StdoutPipe()
	must(t, err)
	must(t, setgid.Start())
	answer, err := io.ReadAll(out)
	must(t, err)
	if !strings.Contains(string(answer), " 403 ") {
		t.Errorf("as a setgid program: %s", answer)
	}
	must(t, setgid.Process.Kill())
	_ = setgid.Wait() // it was killed
}

// A listener is bound to a device, in a dialogue: what the workload answers reaches the stranger.
func TestAnswersOfListenerBoundToDevice(t *testing.T) {
	s := newScene(t, sameLabels)
	l := s.db.socket("0.0.0.0:80", unix.SOCK_STREAM)
	l.device("veth0")
	l.bind("0.0.0.0:80")
	l.listen()
	c := s.free.tcp("0.0.0.0:0")
	if c.connect(ours+":80") != 0 {
		return
	}
	c.send("question")
	if conn := l.accept(); conn != nil {
		conn.send("answer")
		denied(t, "an answer of a listener bound to a device", c.got() != "")
	}
}

// A SYN for a connection that is in TIME_WAIT at the server: nftables finds what
// waits and not the listener.
func TestSYNIntoTimeWait(t *testing.T) {
	for _, c := range []struct {
		name, from, to, at string
	}{
		{"unlabelled", "127.0.0.1:5000", "127.0.0.1:80", "0.0.0.0:80"},
		{"outside", theirs + ":5000", ours + ":80", "0.0.0.0:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, sameLabels)
			attacker := s.free
			if c.name == "outside" {
				attacker = s.stranger()
			}
			before := s.free.listen(c.at)
			old := attacker.tcp(c.from)
			if errno := old.connect(c.to); errno != 0 {
				t.Fatal(errno)
			}
			conn := before.accept()
			conn.close() // the server closes first: its side waits
			s.Barrier()
			old.close()
			before.close()
			s.Barrier()
			l := s.db.listen(c.at)
			denied(t, c.name+" from another port", reaches(attacker, "", c.to, l))
			denied(t, c.name+" into TIME_WAIT", reaches(attacker, c.from, c.to, l))
		})
	}
}

// A connection that its server reset stays in conntrack for 10 s, allowed; a SYN of
// the same ports belongs to it, whoever listens there now.
func TestSYNIntoResetConnection(t *testing.T) {
	for _, c := range []struct {
		name, from, to, at string
	}{
		{"unlabelled", "127.0.0.1:5000", "127.0.0.1:80", "0.0.0.0:80"},
		{"other labels", "127.0.0.1:5000", "127.0.0.1:80", "0.0.0.0:80"},
		{"outside", theirs + ":5000", ours + ":80", "0.0.0.0:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, sameLabels)
			attacker, first := s.free, s.free
			switch c.name {
			case "other labels":
				attacker, first = s.web2, s.web
			case "outside":
				attacker = s.stranger()
			}
			before := first.listen(c.at)
			old := attacker.tcp(c.from)
			if errno := old.connect(c.to); errno != 0 {
				t.Fatal(errno)
			}
			conn := before.accept()
			conn.abort()
			before.close()
			s.Barrier()
			old.close()
			l := s.db.listen(c.at)
			denied(t, c.name+" from another port", reaches(attacker, "", c.to, l))
			denied(t, c.name+" with the ports of a reset connection", reaches(attacker, c.from, c.to, l))
		})
	}
}

// A stranger sends to a closed UDP port; an isolated workload then opens it, and
// what it sends to the stranger counts as an answer.
func TestUDPAnswerToWhoAskedNobody(t *testing.T) {
	s := newScene(t, denyAll)
	outside := s.stranger().udp(theirs + ":6000")
	free := s.free.udp("127.0.0.1:6000")
	sock := s.db.udp("0.0.0.0:7001")
	denied(t, "to outside, unasked", sock.sendTo(theirs+":6000", "secret") == 0 && outside.got() != "")
	outside.sendTo(ours+":7000", "knock")
	free.sendTo("127.0.0.1:7000", "knock")
	s.Barrier()
	sock = s.db.udp("0.0.0.0:7000")
	sock.sendTo(theirs+":6000", "secret")
	sock.sendTo("127.0.0.1:6000", "secret")
	denied(t, "to outside as an answer", outside.got() != "")
	denied(t, "to unlabelled as an answer", free.got() != "")
}

// A workload sends to the broadcast address of a network that its cidr allows, and
// the kernel delivers a copy to the workloads of this node.
func TestBroadcastOfWorkloadComesBack(t *testing.T) {
	s := newScene(t, sameLabels)
	u := s.web.udp("0.0.0.0:8125")
	for _, to := range []string{"10.0.0.255:8125", "255.255.255.255:8125", "127.255.255.255:8125"} {
		denied(t, "broadcast to "+to, reachesUDP(s.db, "", to, u))
	}
}

// 127.255.255.255 is decided by the one socket that nftables finds, the attacker's
// own decoy, and delivered to all.
func TestBroadcastOnLoopbackWithDecoy(t *testing.T) {
	s := newScene(t, sameLabels)
	u := s.web.udp("0.0.0.0:5353")
	decoy := s.db.udp("127.255.255.255:5353")
	denied(t, "broadcast on lo beside a decoy", reachesUDP(s.db, "", "127.255.255.255:5353", u))
	decoy.close()
}

// What is unlabelled is free, also where another program's rules keep its packets
// from conntrack.
func TestUntrackedUnlabelled(t *testing.T) {
	s := newScene(t, sameLabels)
	must(t, s.Nft(`table inet other {
		chain o { type filter hook output priority raw;
			udp dport 5300 notrack; tcp dport 5300 notrack; tcp sport 5300 notrack; }
		chain p { type filter hook prerouting priority raw;
			udp dport 5300 notrack; tcp dport 5300 notrack; tcp sport 5300 notrack; }
	}`))
	u := s.free.udp("0.0.0.0:5300")
	allowed(t, "untracked UDP, unlabelled to unlabelled", reachesUDP(s.free, "", "127.0.0.1:5300", u))
	l := s.free.listen("0.0.0.0:5300")
	allowed(t, "untracked TCP, unlabelled to unlabelled", reaches(s.free, "", "127.0.0.1:5300", l))
	// And what is labelled stays closed.
	lu := s.db.udp("127.0.0.1:5301")
	denied(t, "UDP", reachesUDP(s.free, "", "127.0.0.1:5301", lu))
}

// A conntrack helper expects a second connection, which inherits the mark of the
// first: allowed, in this epoch, wherever its listener is.
func TestExpectedConnectionInheritsAllowance(t *testing.T) {
	s := newScene(t, sameLabels)
	if err := s.Nft(`table inet other {
		ct helper ftp { type "ftp" protocol tcp; }
		chain o { type filter hook output priority -150; tcp dport 21 ct helper set "ftp"; }
	}`); err != nil {
		t.Skipf("no conntrack helper: %v", err)
	}
	control := s.web.listen("127.0.0.1:21")
	c := s.web2.tcp("0.0.0.0:0")
	if errno := c.connect("127.0.0.1:21"); errno != 0 {
		t.Fatal(errno)
	}
	server := control.accept()
	l := s.db.listen("127.0.0.1:5432")
	denied(t, "before", reaches(s.web2, "", "127.0.0.1:5432", l))
	server.send("220 ready\r\n")
	c.send("PASV\r\n")
	server.got()
	server.send("227 Entering Passive Mode (127,0,0,1,21,56)\r\n") // 21*256+56 = 5432
	c.got()
	denied(t, "as the data connection of FTP", reaches(s.web2, "", "127.0.0.1:5432", l))
}

// A server that defers accept (Apache does) has only a request for a connection
// until data comes. The client opens one, waits until the policy forbids it, and
// then sends: no full socket is found, and the connection is settled anew.
func TestDeferredAcceptOutlivesRevocation(t *testing.T) {
	for _, who := range []string{"unlabelled", "outside"} {
		t.Run(who, func(t *testing.T) {
			s := newScene(t, openDB)
			attacker, to := s.free, "127.0.0.1:80"
			if who == "outside" {
				attacker, to = s.stranger(), ours+":80"
			}
			l := s.db.listen("0.0.0.0:80", [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30})
			c := attacker.tcp("0.0.0.0:0")
			if errno := c.connect(to); errno != 0 {
				t.Fatal(errno)
			}
			s.enforce(closedDB)
			c.send("one")
			got := ""
			if conn := l.accept(); conn != nil {
				c.send("two")
				got = conn.got()
			}
			denied(t, "after the revocation: "+got, strings.Contains(got, "two"))
		})
	}
}

// An unlabelled client was denied by a workload. Then something unlabelled has the
// port: the flow is still dead, and its answers are discarded.
func TestDeadFlowBetweenUnlabelled(t *testing.T) {
	s := newScene(t, sameLabels)
	victim := s.db.udp("127.0.0.1:5300")
	c := s.free.udp("127.0.0.1:5301")
	c.sendTo("127.0.0.1:5300", "question")
	denied(t, "to a workload", victim.got() != "")
	victim.close()
	server := s.free.udp("127.0.0.1:5300")
	c.got() // the ICMP error
	c.sendTo("127.0.0.1:5300", "question")
	allowed(t, "to unlabelled", server.got() == "question")
	server.sendTo("127.0.0.1:5301", "answer")
	allowed(t, "the answer", c.got() == "answer")
}

// A multicast that a packet socket injects on lo came past the OUTPUT that decides
// about its sender.
func TestInjectedMulticast(t *testing.T) {
	s := newScene(t, sameLabels)
	s.Shell("ip link set lo multicast on")
	u := s.web.udp("0.0.0.0:5353")
	s.web.ok(call{Op: "join", FD: u.fd, To: "224.0.0.251", Device: "lo"})
	s.db.only(unix.CAP_NET_RAW)
	s.db.inject("lo", udpPacket("192.0.2.7:5000", "224.0.0.251:5353", "secret"))
	denied(t, "injected multicast", u.got() != "")
}

// A jailed process has a child take other, equal labels; the child makes a socket,
// hands it over and ends. The socket's cgroup is gone, and nothing lists it.
func TestUnboundSocketOutlivesItsScope(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	free := newAgent(t, m.Host, m.In("elsewhere"))
	u := free.udp("127.0.0.1:6000")
	l := free.listen("127.0.0.1:6000")
	jail := m.run(1234, "jail", policy.Labels{"app": "jail"})
	denied(t, "the jail's own socket", reachesUDP(jail, "", "127.0.0.1:6000", u))

	child := m.run(1234, "child", policy.Labels{"app": "jail"})
	udp := child.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(jail)
	tcp := child.socket("0.0.0.0:0", unix.SOCK_STREAM).pass(jail)
	denied(t, "the child's own socket", reachesUDP(child, "", "127.0.0.1:6000", u))
	child.end()
	m.ended("child")

	udp.sendTo("127.0.0.1:6000", "secret")
	denied(t, "UDP from a socket whose cgroup is gone", u.got() != "")
	errno := tcp.connect("127.0.0.1:6000")
	denied(t, "TCP from a socket whose cgroup is gone", errno == 0 && l.accept() != nil)
}

// A client whose kernel gives it a source port that is in TIME_WAIT at the server
// is not refused: the labels allow it.
func TestAllowedSYNIntoTimeWait(t *testing.T) {
	s := newScene(t, sameLabels)
	l := s.web.listen("127.0.0.1:80")
	for range 2 {
		c := s.web2.tcp("127.0.0.1:5000")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			t.Errorf("the second connect: %v", errno)
			break
		}
		c.send("hello")
		conn := l.accept()
		allowed(t, "data", conn != nil && conn.got() == "hello")
		conn.close() // first: its side waits
		s.Barrier()
		c.close()
		s.Barrier()
	}
}

// The same with a server that speaks first.
func TestAllowedSYNIntoTimeWaitGreeting(t *testing.T) {
	s := newScene(t, sameLabels)
	l := s.web.listen("127.0.0.1:80")
	for range 2 {
		c := s.web2.tcp("127.0.0.1:5000")
		if errno := c.connect("127.0.0.1:80"); errno != 0 {
			t.Errorf("the second connect: %v", errno)
			break
		}
		conn := l.accept()
		conn.send("welcome")
		allowed(t, "greeting", c.got() == "welcome")
		conn.close()
		s.Barrier()
		c.close()
		s.Barrier()
	}
}

// Another network whose address is on lo has a broadcast address, too: what is sent
// there is decided by the attacker's own decoy, and delivered to all.
func TestBroadcastOfAddressOnLoopback(t *testing.T) {
	s := newScene(t, sameLabels)
	s.Shell("ip addr add 10.8.8.8/24 dev lo")
	u := s.web.udp("0.0.0.0:5353")
	s.db.udp("10.8.8.255:5353")
	denied(t, "broadcast of a network on lo", reachesUDP(s.db, "", "10.8.8.255:5353", u))
}

// The same for one that leaves this node: the server outside names the port.
func TestExpectedConnectionLeaves(t *testing.T) {
	s := newScene(t, `apiVersion: thole/v1
kind: Policy
metadata: {name: ftp}
spec:
  selector: {matchLabels: {app: web}}
  egress: [{to: [{cidr: 10.0.0.0/24}], ports: ["21/tcp"]}]
`)
	must(t, s.Nft(`table inet other {
		ct helper ftp { type "ftp" protocol tcp; }
		chain o { type filter hook output priority -150; tcp dport 21 ct helper set "ftp"; }
	}`))
	x := s.stranger()
	control, l := x.listen(theirs+":21"), x.listen(theirs+":5432")
	c := s.web2.tcp("0.0.0.0:0")
	if errno := c.connect(theirs + ":21"); errno != 0 {
		t.Fatal(errno)
	}
	server := control.accept()
	denied(t, "before", reaches(s.web2, "", theirs+":5432", l))
	server.send("220 ready\r\n")
	c.send("PASV\r\n")
	server.got()
	server.send("227 Entering Passive Mode (10,0,0,2,21,56)\r\n")
	c.got()
	denied(t, "as the data connection of FTP", reaches(s.web2, "", theirs+":5432", l))
}

// A UDP server that only pushes goes on after the allowance is taken away.
func TestUDPPushAfterRevocation(t *testing.T) {
	m := newMachine(t)
	m.apply(openDB)
	server := m.run(0, "web", policy.Labels{"app": "web"}).udp("127.0.0.1:5000")
	client := m.run(0, "db", policy.Labels{"app": "db"}).udp("127.0.0.1:5001")
	client.sendTo("127.0.0.1:5000", "subscribe")
	allowed(t, "the request", server.got() == "subscribe")
	server.sendTo("127.0.0.1:5001", "one")
	allowed(t, "the answer", client.got() == "one")
	m.apply(closedDB)
	server.sendTo("127.0.0.1:5001", "two")
	denied(t, "pushed after the revocation", client.got() == "two")
}

// The same between this node and another machine, in both directions: the server here,
// and the server there.
func TestUDPPushAfterRevocationOutside(t *testing.T) {
	const web = `
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, ingress: [{from: [{cidr: 10.0.0.2/32}]}],
  egress: [{to: [{cidr: 10.0.0.2/32}], ports: ["6000/udp"]}]}
`
	s := newScene(t, openDB+web)
	outside := s.stranger()
	type flow struct{ server, client *sock }
	flows := map[string]flow{}
	open := func(who string, server *agent, at string, client *agent, from string) {
		f := flow{server.udp(at), client.udp(from)}
		f.client.sendTo(at, "subscribe")
		allowed(t, who+": the request", f.server.got() == "subscribe")
		flows[who] = f
	}
	open("db serves outside", s.db, ours+":5000", outside, theirs+":5001")
	open("web serves outside", s.web, ours+":5010", outside, theirs+":5011")
	open("outside serves db", outside, theirs+":7000", s.db, ours+":6001")
	open("outside serves web", outside, theirs+":6000", s.web, ours+":6011")
	to := map[string]string{"db serves outside": theirs + ":5001", "web serves outside": theirs + ":5011",
		"outside serves db": ours + ":6001", "outside serves web": ours + ":6011"}
	push := func(data string, want func(who string) bool) {
		t.Helper()
		for who, f := range flows {
			f.server.sendTo(to[who], data)
			if want(who) {
				allowed(t, who+": "+data, f.client.got() == data)
			} else {
				denied(t, who+": "+data, f.client.got() != "")
			}
		}
	}
	push("one", func(string) bool { return true })
	s.enforce(closedDB + web)
	for _, data := range []string{"two", "three"} {
		push(data, func(who string) bool { return strings.Contains(who, "web") })
	}
}

// Somebody else's revocation does not end an allowed flow on which only the server
// sends, though it would not be allowed the other way round.
func TestUDPPushOutlivesAnothersRevocation(t *testing.T) {
	s := newScene(t, openDB+portUDP)
	server, client := s.web.udp("127.0.0.1:5000"), s.web2.udp("127.0.0.1:5001")
	free, unlabelled := s.free.udp("127.0.0.1:5300"), s.web2.udp("127.0.0.1:5301")
	client.sendTo("127.0.0.1:5000", "subscribe")
	unlabelled.sendTo("127.0.0.1:5300", "subscribe")
	push := func(data string, want, wantFree bool) {
		t.Helper()
		server.sendTo("127.0.0.1:5001", data)
		free.sendTo("127.0.0.1:5301", data)
		if got := client.got(); (got == data) != want {
			t.Errorf("%s from a workload: %q; want it to arrive: %v", data, got, want)
		}
		if got := unlabelled.got(); (got == data) != wantFree {
			t.Errorf("%s from unlabelled: %q; want it to arrive: %v", data, got, wantFree)
		}
	}
	push("one", true, true)
	s.enforce(closedDB + portUDP)
	push("two", true, true)
	push("three", true, true)
	s.enforce(closedDB + strings.Replace(portUDP, "5300/udp", "5301/udp", 1))
	push("four", true, false)
	s.enforce(closedDB + strings.Replace(portUDP, "5000/udp", "5002/udp", 1))
	push("five", false, true)
}

// portUDP lets web ask itself and what is unlabelled, on one port each.
const portUDP = `
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: ["5000/udp"]}]
  egress:
  - {to: [{workloads: {matchLabels: {app: web}}}]}
  - {to: [{unlabelled: true}], ports: ["5300/udp"]}
`

// A SYN leaves from the victim's port before the victim listens there, and nobody answers it. A SYN that comes back is
// an answer to conntrack: it reached the victim, with up to 30,000 bytes behind it.
func TestSYNThatConntrackCallsAnAnswer(t *testing.T) { eachAttacker(t, sameLabels, synIsAnswer) }

func synIsAnswer(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}
	victim, mine := f.loopback+":80", fmt.Sprintf("%s:%d", f.loopback, 7000+attacker.PID()%1000)

	// A listener that does not answer: its queue is full.
	deaf := attacker.socket(mine, unix.SOCK_STREAM, reuse)
	deaf.bind(mine)
	deaf.listen()
	var fill []*sock
	for range 20 { // more than its queue holds
		c := attacker.socket(mine, unix.SOCK_STREAM)
		c.do(call{Op: "connect", FD: c.fd, To: mine})
		fill = append(fill, c)
	}
	s.Barrier()
	first := attacker.tcp(victim, reuse)
	first.do(call{Op: "connect", FD: first.fd, To: mine})
	s.Barrier()
	for _, c := range append(fill, first, deaf) {
		c.abort()
	}
	s.Barrier()
	l := s.web.listen(victim, reuse)
	defer l.close()
	denied(t, "from another port", reaches(attacker, "", victim, l))
	closed(t, old && attacker.unlabelled, "by a SYN that comes back", reaches(attacker, mine, victim, l))
	allowed(t, "the same labels", reaches(s.web2, "", victim, l))
}

// A workload that calls a closed port of this node is refused at once, whatever its policies say. The kernel's reset
// was taken for an answer that nobody was asked for, and the client waited.
func TestClosedPortRefusesAtOnce(t *testing.T) {
	for _, yaml := range []string{sameLabels, denyAll, portOnly} {
		s := newScene(t, yaml)
		for _, to := range []string{"127.0.0.1:81", "[::1]:81", ours + ":81", "[" + ours6 + "]:81"} {
			from := "0.0.0.0:0"
			if to[0] == '[' {
				from = "[::]:0"
			}
			for name, a := range map[string]*agent{"web": s.web, "free": s.free} {
				c := a.tcp(from)
				if errno := c.connect(to); errno != unix.ECONNREFUSED {
					t.Errorf("%s → %s: %v, want it refused", name, to, errno)
				}
				c.abort()
			}
		}
	}
}

// A machine outside sends with this node's own IPv6 address: as the answer to a flow between two workloads, and as a
// request. (IPv4 has its check for martians.)
func TestOwnAddressFromOutside(t *testing.T) {
	s := newScene(t, anybody)
	server, client := s.web.udp("["+ours6+"]:5000"), s.web2.udp("["+ours6+"]:5001")
	client.sendTo("["+ours6+"]:5000", "question")
	allowed(t, "the question", server.got() == "question")
	stranger := s.stranger()
	// Frames to the node's own hardware address.
	mac := s.Shell("cat /sys/class/net/veth0/address")
	stranger.injectTo("veth0", mac, udpPacket("["+ours6+"]:5000", "["+ours6+"]:5001", "forged"))
	denied(t, "an answer that came from outside", client.got() == "forged")
	stranger.injectTo("veth0", mac, udpPacket("["+ours6+"]:6000", "["+ours6+"]:5000", "forged"))
	denied(t, "a request that came from outside", server.got() == "forged")
	stranger.injectTo("veth0", mac, udpPacket("["+theirs6+"]:6000", "["+ours6+"]:5000", "theirs"))
	allowed(t, "a request with an address of its own", server.got() == "theirs")
	server.sendTo("["+ours6+"]:5001", "answer")
	allowed(t, "the real answer", client.got() == "answer")
}

// anybody admits all to everybody, and isolates.
const anybody = `apiVersion: thole/v1
kind: Policy
metadata: {name: anybody}
spec: {selector: {}, ingress: [{from: [{any: true}]}]}
`

// Sockets of two workloads share a port by SO_REUSEPORT with a selector that chooses
// by chance: the one that nftables asks about is not the one that gets the SYN.
func TestReusePortSelectorByChanceTCP(t *testing.T) {
	withBoth(t, sameLabels, func(t *testing.T, s *scene, old bool) {
		for _, at := range []string{"127.0.0.1:80", "[::1]:80"} {
			mine := s.web.listen(at, reusePort)
			victim := s.db.listen(at, reusePort)
			s.web.ok(call{Op: "cbpf", FD: mine.fd})
			reached := false
			for range 60 {
				reached = reached || reaches(s.web2, "", at, victim)
				for c := mine.accept(); c != nil; c = mine.accept() {
					c.abort()
				}
			}
			closed(t, old, "data for other labels, at "+at, reached)
		}
	})
}

const portOnly = `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: ["80/tcp"]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  egress: [{to: [{workloads: {matchLabels: {app: db}}}], ports: ["80/tcp"]}]
`

// A client whose source port is in TIME_WAIT at the server is not refused where only one port is allowed, whichever
// side sends first.
func TestAllowedSYNIntoTimeWaitByPort(t *testing.T) {
	for _, greet := range []bool{false, true} {
		s := newScene(t, portOnly)
		l := s.db.listen("127.0.0.1:80")
		for i := range 2 {
			c := s.web2.tcp("127.0.0.1:5000")
			if errno := c.connect("127.0.0.1:80"); errno != 0 {
				t.Errorf("connect %d, greeting %v: %v", i, greet, errno)
				break
			}
			if !greet {
				c.send("hello")
			}
			conn := l.accept()
			if greet {
				conn.send("welcome")
				allowed(t, "greeting", c.got() == "welcome")
			} else {
				allowed(t, "data", conn != nil && conn.got() == "hello")
			}
			conn.close()
			s.Barrier()
			c.close()
			s.Barrier()
		}
	}
}

// A listener that is bound to a device is reached over lo, where nftables looks for listeners of lo and finds none: by
// SO_BINDTODEVICE, or by a link-local address. The old table let all
// questions through, and no answer.
func TestListenerOfDeviceTCP(t *testing.T) { eachAttacker(t, sameLabels, listenerOfDevice) }

func listenerOfDevice(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	s.linkLocal()
	victims := map[string]*sock{f.node + ":80": s.web.socket(f.all+":80", unix.SOCK_STREAM)}
	if f.name == "IPv6" {
		victims["[fe80::1%veth0]:80"] = s.web.socket(f.all+":80", unix.SOCK_STREAM)
	}
	for to, l := range victims {
		if strings.Contains(to, "veth0") {
			l.bind(to)
		} else {
			l.device("veth0")
			l.bind(f.all + ":80")
		}
		l.listen()
		data, answer := dialogue(attacker, f.all+":0", to, l)
		closed(t, old, "data to "+to, data)
		denied(t, "an answer of "+to, answer)
		data, answer = dialogue(s.web2, f.all+":0", to, l)
		allowed(t, "an equal workload's data to "+to, data)
		allowed(t, "the answer of "+to, answer || old)
		l.abort()
	}
}

// A socket of UDP that is connected to itself gets what it sends, also while conntrack remembers a workload that had
// the port before: to that one's policies it would be an answer.
func TestConnectedToItselfAfterWorkloadUDP(t *testing.T) {
	s := newScene(t, sameLabels)
	for _, f := range families {
		for i, pair := range [][2]*agent{{s.db, s.free}, {s.db, s.web}} {
			at := fmt.Sprintf("%s:%d", f.loopback, 6000+i)
			for _, who := range pair {
				u := who.udp(at)
				u.connect(at)
				u.send("one")
				allowed(t, "to itself, at "+at, u.got() == "one")
				u.close()
			}
		}
	}
}

// A packet socket puts a segment on lo in the name of a living connection, with the numbers that it has seen: of one
// that was decided, and of one whose server waits for data. A workload never gets it; something unlabelled does.
func TestInjectedSegmentOfLivingConnection(t *testing.T) {
	s := newScene(t, sameLabels)
	s.db.only(unix.CAP_NET_RAW)
	packets := unix.ETH_P_IPV6<<8&0xff00 | unix.ETH_P_IPV6>>8
	seen := &sock{s.db, s.db.ok(call{Op: "socket", A: unix.AF_PACKET, B: unix.SOCK_DGRAM, C: packets}).FD}
	deferring := [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30}
	for i, c := range []struct {
		name           string
		client, server *agent
		options        [][3]int
		arrives        bool
	}{
		{"decided", s.web2, s.web, nil, false},
		{"waiting for data", s.web2, s.web, [][3]int{deferring}, false},
		{"unlabelled", s.free, s.free, nil, true},
	} {
		from, to := fmt.Sprintf("[::1]:%d", 6000+i), fmt.Sprintf("[::1]:%d", 80+i)
		l, client := c.server.listen(to, c.options...), c.client.tcp(from)
		if errno := client.connect(to); errno != 0 {
			t.Fatal(errno)
		}
		conn := l.accept()
		if conn != nil {
			client.send("question")
			allowed(t, c.name+": the question", conn.got() == "question")
		}
		seq, ack := nextSegment(t, seen, uint16(6000+i), uint16(80+i))
		for _, number := range []uint32{seq + 1<<20, seq} {
			s.db.inject("lo", tcpPacket(from, to, wire.PSH|wire.ACK, number, ack, "forged"))
			if conn == nil {
				conn = l.accept()
			}
			if got := conn != nil && conn.got() == "forged"; got != (c.arrives && number == seq) {
				t.Errorf("%s: number %d, expected %d: it arrived: %t", c.name, number, seq, got)
			}
		}
	}
}

// A raw socket sends a segment in the name of a living connection. Another workload's never arrives; the client's own
// does: it has the client's labels.
func TestRawSegmentOfLivingConnection(t *testing.T) {
	s := newScene(t, sameLabels)
	packets := unix.ETH_P_IPV6<<8&0xff00 | unix.ETH_P_IPV6>>8
	seen := &sock{s.free, s.free.ok(call{Op: "socket", A: unix.AF_PACKET, B: unix.SOCK_DGRAM, C: packets}).FD}
	const from, to = "[::1]:6000", "[::1]:80"
	l, client := s.web.listen(to), s.web2.tcp(from)
	if errno := client.connect(to); errno != 0 {
		t.Fatal(errno)
	}
	conn := l.accept()
	client.send("question")
	allowed(t, "the question", conn.got() == "question")
	seq, ack := nextSegment(t, seen, 6000, 80)
	forged := tcpPacket(from, to, wire.PSH|wire.ACK, seq, ack, "forged")
	s.db.raw(unix.AF_INET6).sendTo("[::1]:0", string(forged))
	denied(t, "another workload's segment", conn.got() == "forged")
	s.web2.raw(unix.AF_INET6).sendTo("[::1]:0", string(forged))
	allowed(t, "the client's own segment", conn.got() == "forged")
}
