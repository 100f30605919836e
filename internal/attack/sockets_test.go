package attack

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// The attacks of this file are about which socket gets a packet of this node, and which one sent it: web and web2 may
// talk to each other, db and what is unlabelled attack. Each goes through the table of baseline.Commit.

// A family is what the addresses of IPv4 or IPv6 are called.
type family struct{ name, loopback, other, node, all, sourceLoopback, sourceNode string }

var families = []family{
	{"IPv4", "127.0.0.1", "127.0.0.2", ours, "0.0.0.0", "127.0.0.1", ours},
	{"IPv6", "[::1]", "[" + ours6 + "]", "[" + ours6 + "]", "[::]", "::1", ours6},
}

// onePort lets web ask itself, on one port of TCP and of UDP.
const onePort = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [80/tcp, 5353/udp]}]
  egress: [{to: [{workloads: {matchLabels: {app: web}}}], ports: [80/tcp, 5353/udp]}]
`

// An attack is tried by an attacker in a family of addresses.
type attack func(t *testing.T, s *scene, old bool, f family, attacker *agent)

// everyAttack tries an attack with both tables, and policies with and without ports.
func everyAttack(t *testing.T, try attack) {
	for name, yaml := range map[string]string{"labels": sameLabels, "ports": onePort} {
		t.Run(name, func(t *testing.T) { eachAttacker(t, yaml, try) })
	}
}

// eachAttacker tries an attack with both tables, in both families, by a labelled and by an unlabelled attacker.
func eachAttacker(t *testing.T, yaml string, try attack) {
	withBoth(t, yaml, func(t *testing.T, s *scene, old bool) {
		for _, f := range families {
			t.Run(f.name+" labelled", func(t *testing.T) { try(t, s, old, f, s.db) })
			t.Run(f.name+" unlabelled", func(t *testing.T) { try(t, s, old, f, s.free) })
		}
	})
}

// dialogue connects to a listener, sends, and has the listener's owner answer. It waits until what was sent arrived, or
// was sent again in vain.
func dialogue(c *agent, from, to string, l *sock, options ...[3]int) (data, answer bool) {
	c.t.Helper()
	s := c.tcp(from, options...)
	defer s.abort()
	if s.connect(to) != 0 {
		return false, false
	}
	s.send("question")
	var conn *sock
	nstest.WaitFor(c.t, 10*time.Second, "the question, or its end", func() bool {
		if conn == nil {
			conn = l.accept()
		}
		data = conn != nil && conn.got() == "question"
		return data || s.stuck()
	})
	if conn == nil {
		return false, false
	}
	defer conn.abort()
	conn.send("answer")
	nstest.WaitFor(c.t, 10*time.Second, "the answer, or its end", func() bool {
		answer = s.got() == "answer"
		return answer || conn.stuck()
	})
	return data, answer
}

var reusePort = [3]int{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}

// The attacker listens on the victim's port, on lo alone, and calls an address of another device: nftables finds the
// attacker's socket, the kernel delivers to the victim. Of sockets with SO_REUSEPORT the kernel takes the first that
// matches: of IPv4 that is the one that listens last, of IPv6 the one that listens first.
func TestDecoyOnLoopbackTCP(t *testing.T) { everyAttack(t, decoyOnLoopback) }

func decoyOnLoopback(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	from, to := f.all+":0", f.node+":80"
	victim := s.web.listen(f.all+":80", reusePort)
	data, _ := dialogue(attacker, from, to, victim)
	denied(t, "before there is a decoy", data)
	if f.name == "IPv6" {
		victim.close()
	}
	decoy := attacker.socket(f.all+":80", unix.SOCK_STREAM, reusePort)
	decoy.device("lo")
	decoy.bind(f.all + ":80")
	decoy.listen()
	if f.name == "IPv6" {
		victim = s.web.listen(f.all+":80", reusePort)
	}
	data, answer := dialogue(attacker, from, to, victim)
	closed(t, old, "data for the victim", data)
	closed(t, old, "the victim's answer", answer)
	decoy.abort()
	data, answer = dialogue(s.web2, from, to, victim)
	allowed(t, "data of an equal workload", data)
	allowed(t, "the answer for an equal workload", answer)
	victim.close()
}

// The attacker sends with the address and port of a server that the victim asked: an answer, to conntrack.
func TestForgedAnswerUDP(t *testing.T) { everyAttack(t, forgedAnswer) }

func forgedAnswer(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	server, client := s.web.udp(f.loopback+":5353"), s.web2.udp(f.loopback+":6000")
	mine := attacker.udp(f.other + ":5353")
	defer func() { server.close(); client.close(); mine.close() }()
	client.sendTo(f.loopback+":5353", "question")
	allowed(t, "the question", server.got() == "question")
	mine.forge(f.sourceLoopback, f.loopback+":6000", "forged")
	closed(t, old, "an answer with the server's address", client.got() == "forged")
	if attacker.may(unix.CAP_NET_RAW) {
		family := unix.AF_INET
		if f.name == "IPv6" {
			family = unix.AF_INET6
		}
		r := attacker.raw(family)
		defer r.close()
		r.sendTo(f.loopback+":0", string(udpPacket(f.loopback+":5353", f.loopback+":6000", "forged")))
		closed(t, old, "an answer by a raw socket", client.got() == "forged")
	}
	server.sendTo(f.loopback+":6000", "answer")
	allowed(t, "the real answer", client.got() == "answer")
}

// A packet socket puts a datagram of a living flow on lo, where no OUTPUT sees who sends it. IPv4
// accepts that only with these settings.
func TestInjectedDatagramOfLivingFlow(t *testing.T) { everyAttack(t, injectedDatagram) }

func injectedDatagram(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	s.Shell("cd /proc/sys/net/ipv4/conf; echo 1 >all/route_localnet; echo 1 >all/accept_local")
	server, client := s.web.udp(f.loopback+":5353"), s.web2.udp(f.loopback+":6000")
	defer func() { server.close(); client.close() }()
	client.sendTo(f.loopback+":5353", "question")
	allowed(t, "the question", server.got() == "question")
	attacker.inject("lo", udpPacket(f.loopback+":6000", f.loopback+":5353", "forged"))
	closed(t, old, "an injected question", server.got() == "forged")
	attacker.inject("lo", udpPacket(f.loopback+":5353", f.loopback+":6000", "forged"))
	closed(t, old, "an injected answer", client.got() == "forged")
	server.sendTo(f.loopback+":6000", "answer")
	allowed(t, "the real answer", client.got() == "answer")
}

// A connection ends with its server in TIME_WAIT, which hides the listener from nftables when the next one comes from
// that port. TCP_DEFER_ACCEPT at the client puts data into the last packet of the handshake.
func TestDataInLastACKIntoTimeWait(t *testing.T) { everyAttack(t, dataIntoTimeWait) }

func dataIntoTimeWait(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	to := f.loopback + ":80"
	server := s.web.listen(to)
	defer server.close()
	var from string
	for round := 0; round == 0 || !s.waits(to, from); round++ {
		if round == 10 {
			t.Fatal("no server stayed in TIME_WAIT")
		}
		from = fmt.Sprintf("%s:%d", f.loopback, 5000+round)
		client := s.web2.tcp(from)
		if errno := client.connect(to); errno != 0 {
			t.Fatal(errno)
		}
		client.send("hello")
		conn := server.accept()
		allowed(t, "an equal workload", conn != nil && conn.got() == "hello")
		conn.close() // first: its side waits
		s.Barrier()
		client.close()
		s.Barrier()
	}
	data, _ := dialogue(attacker, f.loopback+":0", to, server)
	denied(t, "from another port", data)
	data, _ = dialogue(attacker, from, to, server, [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1})
	closed(t, old, "from the port in TIME_WAIT", data)
}

// waits says whether the server's side of a connection is in TIME_WAIT, and the client's side gone. On a busy machine
// the client may send its data once more after its last packet: then a RST ends what waits, or both sides wait.
func (s *scene) waits(server, client string) bool {
	s.t.Helper()
	side := func(from, to string) string {
		return s.Shell(fmt.Sprintf("ss -Htan 'src %s and dst %s'", from, to))
	}
	return strings.HasPrefix(side(server, client), "TIME-WAIT") && side(client, server) == ""
}

// A socket of UDP that is connected to itself gets what it sends, though its datagrams are answers of each other, also
// where conntrack remembers them of something unlabelled.
func TestConnectedToItselfUDP(t *testing.T) { everyAttack(t, connectedToItself) }

func connectedToItself(t *testing.T, s *scene, old bool, f family, who *agent) {
	at := f.loopback + ":5353"
	itself := func(who *agent) bool {
		u := who.udp(at)
		defer u.close()
		u.connect(at)
		u.send("one")
		one := u.got() == "one"
		u.send("two")
		return one && u.got() == "two"
	}
	allowed(t, "unlabelled", itself(s.free))
	allowed(t, "unlabelled, again", itself(s.free))
	if got := itself(who); got == old && !who.unlabelled {
		t.Errorf("behind something unlabelled, to itself: %t, want %t", got, !old)
	}
}

// Another program saves its mark to conntrack behind Thole's OUTPUT. What is unlabelled asks and is answered.
func TestConntrackMarkOfAnotherProgram(t *testing.T) {
	withBoth(t, sameLabels, func(t *testing.T, s *scene, old bool) {
		must(t, s.Nft(`table inet other {
			chain o { type filter hook output priority 20; ct mark set 0x12345; }
		}`))
		stranger := s.stranger()
		for _, f := range []struct{ at, from, to string }{
			{"0.0.0.0:6000", ours + ":6000", theirs + ":5353"}, {"[::]:6000", "[" + ours6 + "]:6000", "[" + theirs6 +
				"]:5353"},
		} {
			server, client := stranger.udp(f.to), s.free.udp(f.at)
			client.sendTo(f.to, "question")
			allowed(t, "a question to "+f.to, server.got() == "question")
			server.sendTo(f.from, "answer")
			if got := client.got() == "answer"; got == old {
				t.Errorf("the answer of %s arrived: %t", f.to, got)
			}
		}
	})
}

// The attacker sends with the address and port of a client that may ask, while that client asks: one of them is taken
// for the other.
func TestForgedQuestionsInRaceUDP(t *testing.T) {
	eachAttacker(t, sameLabels, func(t *testing.T, s *scene, old bool, f family, attacker *agent) {
		at := f.loopback + ":5353"
		server, client := s.web.udp(at), s.web2.udp(f.loopback+":6000")
		mine := attacker.udp(f.other + ":6000")
		defer func() { server.close(); client.close(); mine.close() }()
		client.sendTo(at, "before")
		seen := map[string]int{}
		for round := 0; round == 0 || old && round < 10 && seen["forged"] == 0; round++ { // the old table may be lucky
			together(
				func() { seen = server.count(true) },
				func() { client.flood(f.sourceLoopback, at, "asked", 10000, 0) },
				func() { mine.flood(f.sourceLoopback, at, "forged", 10000, 0) },
			)
		}
		closed(t, old, "one of the forged questions", seen["forged"] > 0)
		allowed(t, "one of the real questions", seen["asked"] > 0)
	})
}

// One forged question a millisecond does not cost the client its answers.
func TestForgedQuestionsCostNoAnswers(t *testing.T) {
	eachAttacker(t, sameLabels, func(t *testing.T, s *scene, old bool, f family, attacker *agent) {
		at := f.loopback + ":5353"
		server, client := s.web.udp(at), s.web2.udp(f.loopback+":6000")
		mine := attacker.udp(f.other + ":6000")
		defer func() { server.close(); client.close(); mine.close() }()
		together(
			func() { server.count(false) },
			func() { client.flood(f.sourceLoopback, at, "asked", 100, 3*time.Millisecond) },
			func() { mine.flood(f.sourceLoopback, at, "forged", 300, time.Millisecond) },
		)
		n := strings.Count(client.got(), "asked")
		if !old && n < 95 {
			t.Errorf("%d of 100 questions were answered", n)
		}
	})
}

// together runs functions at the same time, each with another agent.
func together(all ...func()) {
	var wait sync.WaitGroup
	for _, f := range all {
		wait.Go(f)
	}
	wait.Wait()
}

// A process that may send nothing away from this node sends with the address and port of one that may: from a socket
// that shares them, or by choosing its source.
func TestForgedSourceLeavesInRaceUDP(t *testing.T) {
	const yaml = jailPolicy + `---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, egress: [{to: [{any: true}]}]}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {selector: {matchLabels: {app: db}}, ingress: [], egress: []}
`
	withBoth(t, yaml, func(t *testing.T, s *scene, old bool) {
		world := s.stranger()
		forged := 0
		for _, f := range families {
			to := map[string]string{"IPv4": theirs, "IPv6": "[" + theirs6 + "]"}[f.name] + ":5353"
			for _, bound := range []string{f.node + ":6000", f.loopback + ":6000"} {
				server, sender, jail := world.udp(to), s.web.udp(f.node+":6000"), s.db.udp(bound)
				sender.sendTo(to, "before")
				var seen map[string]int
				together(
					func() { seen = server.count(true) },
					func() { sender.flood(f.sourceNode, to, "sent", 10000, 0) },
					func() { jail.flood(f.sourceNode, to, "forged", 10000, 0) },
				)
				forged += seen["forged"]
				allowed(t, "the allowed sender", seen["sent"] > 0)
				server.close()
				sender.close()
				jail.close()
			}
		}
		closed(t, old, "what the jailed process sent", forged > 0)
	})
}

// The attacker has a decoy on the victim's port, and answers its own call in the victim's name by a raw socket, with
// the numbers that it has seen: nobody else has spoken for the connection yet. IPv6 knows no decoy.
func TestDecoyAnswersByRawSocket(t *testing.T) { everyAttack(t, decoyAnswers) }

func decoyAnswers(t *testing.T, s *scene, old bool, f family, attacker *agent) {
	if f.name == "IPv6" {
		return
	}
	victim := s.web.listen(f.all+":80", reusePort)
	defer victim.close()
	decoy := attacker.socket(f.all+":80", unix.SOCK_STREAM, reusePort)
	decoy.device("lo")
	decoy.bind(f.all + ":80")
	decoy.listen()
	defer decoy.abort()
	seen := &sock{attacker, attacker.ok(call{Op: "socket", A: unix.AF_INET, B: unix.SOCK_RAW, C: unix.IPPROTO_TCP}).FD}
	raw := attacker.raw(unix.AF_INET)
	c := attacker.tcp(f.all + ":6000")
	defer func() { seen.close(); raw.close(); c.abort() }()
	if c.connect(f.node+":80") != 0 {
		t.Fatal("the handshake failed: nothing was tried")
	}
	seq, ack := synAck(t, seen, 80)
	raw.sendTo(f.node+":0", string(tcpPacket(f.node+":80", ours+":6000", wire.ACK, seq+1, ack, "")))
	s.Barrier()
	c.send("question")
	var conn *sock
	data := false
	nstest.WaitFor(t, 10*time.Second, "the question, or its end", func() bool {
		if conn == nil {
			conn = victim.accept()
		}
		data = conn != nil && conn.got() == "question"
		return data || c.stuck()
	})
	closed(t, old, "data for the victim", data)
	if conn != nil {
		conn.send("answer")
		s.Barrier()
		closed(t, old, "the victim's answer", c.got() == "answer")
		conn.abort()
	}
}

// synAck returns the numbers of the SYN-ACK from a port.
func synAck(t testing.TB, seen *sock, port uint16) (seq, ack uint32) {
	t.Helper()
	nstest.WaitFor(t, 5*time.Second, "the SYN-ACK", func() bool {
		p := seen.do(call{Op: "recv", FD: seen.fd}).Data
		if len(p) < 40 || p[33] != 0x12 || binary.BigEndian.Uint16(p[20:]) != port {
			return false
		}
		seq, ack = binary.BigEndian.Uint32(p[24:]), binary.BigEndian.Uint32(p[28:])
		return true
	})
	return seq, ack
}
