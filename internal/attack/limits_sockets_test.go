package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// Sockets of two workloads share a port of UDP by SO_REUSEPORT, with a selector that chooses by chance. A request
// arrives at the one that nobody asked; its answer does not.
func TestLimitReusePortSelectorUDP(t *testing.T) {
	for _, f := range families {
		s := newScene(t, sameLabels)
		at := f.loopback + ":53"
		mine, victim := s.web.udp(at, reusePort), s.db.udp(at, reusePort)
		s.web.ok(call{Op: "cbpf", FD: mine.fd})
		arrived, own := 0, 0
		for i := range 60 {
			from := fmt.Sprintf("%s:%d", f.loopback, 6000+i)
			c := s.web2.udp(from)
			c.sendTo(at, "question")
			if victim.got() == "question" {
				arrived++
				victim.sendTo(from, "answer")
				denied(t, "an answer of other labels", c.got() != "")
			}
			if mine.got() == "question" {
				own++
				mine.sendTo(from, "answer")
				allowed(t, "an answer of equal labels", c.got() == "answer")
			}
			c.close()
		}
		limit(t, "questions past the selector, "+f.name, arrived > 0)
		allowed(t, "questions to equal labels", own > 0)
	}
}

// decoyFor has the attacker listen on a port of lo alone, for the victim's listener.
func decoyFor(attacker *agent) *sock {
	d := attacker.socket("0.0.0.0:80", unix.SOCK_STREAM, reusePort)
	d.device("lo")
	d.bind("0.0.0.0:80")
	d.listen()
	return d
}

// Behind a decoy, a listener gets what comes before its first answer: where it defers accept, where it has Fast Open,
// where it is bound to another device, and where the client puts data into the last packet of its handshake. It is one
// window at most, nothing comes back, and the connection ends.
func TestLimitDecoyBeforeTheFirstAnswer(t *testing.T) {
	type options [][3]int
	deferring := [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5}
	fastOpen := [3]int{unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16}
	connecting := [3]int{unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1}
	for _, c := range []struct {
		name           string
		server         options
		device         string
		client         options
		before, behind bool // whether data arrives, without a decoy and with one
	}{
		{"an ordinary listener", nil, "", nil, false, false},
		{"the client defers", nil, "", options{deferring}, false, true},
		{"the client tries Fast Open", nil, "", options{connecting}, false, true},
		{"TCP_DEFER_ACCEPT", options{deferring}, "", nil, false, true},
		{"Fast Open", options{fastOpen}, "", options{connecting}, false, true},
		{"bound to a device", nil, "veth0", nil, false, true},
		{"bound to a device, the client defers", nil, "veth0", options{deferring}, false, true},
		{"bound to a device, TCP_DEFER_ACCEPT", options{deferring}, "veth0", nil, false, true},
		{"bound to a device, Fast Open", options{fastOpen}, "veth0", options{connecting}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, sameLabels)
			s.Shell("sysctl -qw net.ipv4.tcp_fastopen=0x207") // client and server, without cookies
			l := s.db.socket("0.0.0.0:80", unix.SOCK_STREAM, append(c.server, reusePort)...)
			if c.device != "" {
				l.device(c.device)
			}
			l.bind("0.0.0.0:80")
			l.listen()
			got, answer := s.beforeTheFirstAnswer(l, c.client)
			if (got > 0) != c.before || got > 64<<10 || answer > 0 {
				t.Errorf("before there is a decoy: %d bytes arrived, %d came back", got, answer)
			}
			defer decoyFor(s.web).close()
			got, answer = s.beforeTheFirstAnswer(l, c.client)
			if (got > 0) != c.behind || got > 64<<10 || answer > 0 {
				t.Errorf("behind a decoy: %d bytes arrived, %d came back", got, answer)
			}
		})
	}
}

// beforeTheFirstAnswer has web send more than a window to db's listener, which then answers, until the connection ends.
// It returns how many bytes arrived, and came back.
func (s *scene) beforeTheFirstAnswer(l *sock, options [][3]int) (got, answer int) {
	s.t.Helper()
	client := s.web.socket("0.0.0.0:0", unix.SOCK_STREAM, options...)
	defer client.abort()
	if errno := client.connect(ours + ":80"); errno != 0 {
		return 0, 0
	}
	for range 30 {
		client.send(strings.Repeat("x", 8<<10))
	}
	var conn *sock
	nstest.WaitFor(s.t, 10*time.Second, "a connection, or its end", func() bool {
		conn = l.accept()
		return conn != nil || client.stuck()
	})
	if conn == nil {
		return 0, 0
	}
	defer conn.abort()
	got = len(conn.got())
	conn.send("answer")
	nstest.WaitFor(s.t, 10*time.Second, "the end of the connection", func() bool {
		client.send("y")
		got += len(conn.got())
		answer += len(client.got())
		return conn.stuck() || client.stuck()
	})
	return got + len(conn.got()), answer + len(client.got())
}

// With a raw socket a process answers its own call in the victim's name. What it sends then arrives where the victim's
// listener is bound to a device, whoever the attacker is; nothing comes back. (An ordinary listener: decoyAnswers.)
func TestLimitRawAnswerForListenerOfDevice(t *testing.T) {
	for _, labelled := range []bool{true, false} {
		for _, device := range []string{"", "veth0"} {
			s := newScene(t, sameLabels)
			attacker := s.free
			if labelled {
				attacker = s.web
			}
			l := s.db.socket("0.0.0.0:80", unix.SOCK_STREAM, reusePort)
			if device != "" {
				l.device(device)
			} else if labelled {
				defer decoyFor(attacker).close() // its connect would be refused else
			}
			l.bind("0.0.0.0:80")
			l.listen()
			data, answer := s.answersItself(attacker, l)
			if want := device != ""; data != want || answer {
				t.Errorf("a labelled attacker: %t, a listener bound to %q: data %t, answer %t", labelled, device, data,
					answer)
			}
		}
	}
}

// answersItself has an attacker call a listener and answer by a raw socket.
func (s *scene) answersItself(attacker *agent, l *sock) (data, answer bool) {
	t := s.t
	t.Helper()
	seen := &sock{attacker, attacker.ok(call{Op: "socket", A: unix.AF_INET, B: unix.SOCK_RAW, C: unix.IPPROTO_TCP}).FD}
	raw, c := attacker.raw(unix.AF_INET), attacker.tcp("0.0.0.0:6000")
	defer c.abort()
	if c.connect(ours+":80") != 0 {
		return false, false
	}
	seq, ack := synAck(t, seen, 80)
	raw.sendTo(ours+":0", string(tcpPacket(ours+":80", ours+":6000", wire.ACK, seq+1, ack, "")))
	s.Barrier()
	c.send("question")
	var conn *sock
	nstest.WaitFor(t, 10*time.Second, "the question, or its end", func() bool {
		if conn == nil {
			conn = l.accept()
		}
		data = data || conn != nil && conn.got() == "question"
		return data || c.stuck()
	})
	if conn == nil {
		return false, false
	}
	defer conn.abort()
	conn.send("answer")
	nstest.WaitFor(t, 10*time.Second, "the answer, or its end", func() bool {
		answer = c.got() == "answer"
		return answer || conn.stuck()
	})
	return data, answer
}

// A datagram of this node to a socket that is bound to a device arrives, its answer does not; and an answer to a
// workload's socket that is bound to a device is discarded.
func TestLimitDatagramsOfDevice(t *testing.T) {
	s := newScene(t, sameLabels)
	bound := func(a *agent, at string) *sock {
		u := a.socket(at, unix.SOCK_DGRAM)
		u.device("veth0")
		u.bind(at)
		return u
	}
	victim := bound(s.db, "0.0.0.0:53")
	stranger, equal := s.free.udp(ours+":6000"), s.web2.udp(ours+":6001")
	for _, c := range []*sock{stranger, equal} {
		c.sendTo(ours+":53", "question")
		limit(t, "a question to a socket of a device", victim.got() == "question")
	}
	for i, c := range []*sock{stranger, equal} {
		victim.sendTo(fmt.Sprintf("%s:600%d", ours, i), "answer")
		denied(t, "the answer of a socket of a device", c.got() != "")
	}
	server := s.web.udp(ours + ":54")
	for name, client := range map[string]*sock{"a device": bound(s.web2, ours+":6002"),
		"none": s.web2.udp(ours + ":6003")} {
		client.sendTo(ours+":54", "question")
		s.Barrier()
		from := server.do(call{Op: "recv", FD: server.fd}).From
		server.sendTo(from, "answer")
		if got := client.got() == "answer"; got != (name == "none") {
			t.Errorf("an allowed answer to a client that is bound to %s arrived: %t", name, got)
		}
	}
}

// On this node the first data for a listener that is bound to a device arrives when it is sent again.
func TestLimitListenerOfDeviceWaits(t *testing.T) {
	s := newScene(t, sameLabels)
	for _, device := range []string{"veth0", ""} {
		l := s.web.socket("0.0.0.0:80", unix.SOCK_STREAM)
		if device != "" {
			l.device(device)
		}
		l.bind("0.0.0.0:80")
		l.listen()
		c := s.web2.tcp("0.0.0.0:0")
		if errno := c.connect(ours + ":80"); errno != 0 {
			t.Fatal(errno)
		}
		c.send("question")
		conn := l.accept()
		got := ""
		nstest.WaitFor(t, 10*time.Second, "the question", func() bool { got += conn.got(); return got == "question" })
		conn.send("answer")
		again := c.ok(call{Op: "retransmitted", FD: c.fd}).FD
		if again > 1 || (again == 1) != (device != "") {
			t.Errorf("device %q: sent again %d times", device, again)
		}
		allowed(t, "the answer", c.got() == "answer")
		conn.abort()
		c.abort()
		l.close()
	}
}

// From outside, a client's port waits in TIME_WAIT at a server that defers accept: the client's data waits until the
// server defers no more. From another port, it does not.
func TestLimitDeferredAcceptBehindTimeWait(t *testing.T) {
	s := newScene(t, anybody)
	stranger := s.stranger()
	for _, c := range []struct {
		seconds int
		atLeast time.Duration
	}{{1, 500 * time.Millisecond}, {2, 2 * time.Second}} {
		to := fmt.Sprintf("%s:%d", ours, 80+c.seconds)
		l := s.web.listen(to, [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, c.seconds})
		s.delayed(stranger, theirs+":5000", to, l)
		behind, other := s.delayed(stranger, theirs+":5000", to, l), s.delayed(stranger, theirs+":5001", to, l)
		if behind < c.atLeast || behind < 2*other {
			t.Errorf("deferred for %d s: the data arrived after %v, and from another port after %v", c.seconds, behind,
				other)
		}
	}
}

// delayed is how long what a client sends is under way. The server closes first, so that its side waits.
func (s *scene) delayed(client *agent, from, to string, l *sock) time.Duration {
	s.t.Helper()
	c := client.tcp(from)
	if errno := c.connect(to); errno != 0 {
		s.t.Fatal(errno)
	}
	start := time.Now()
	c.send("question")
	var conn *sock
	nstest.WaitFor(s.t, 20*time.Second, "the question", func() bool {
		if conn == nil {
			conn = l.accept()
		}
		return conn != nil && conn.got() == "question"
	})
	took := time.Since(start)
	conn.close()
	s.Barrier()
	c.close()
	s.Barrier()
	return took
}
