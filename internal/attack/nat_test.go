package attack

import (
	"fmt"
	"testing"
)

// What a program calls is not always what it reaches: here the node's NAT leads two addresses, as agents of clouds do
// with that of the metadata service, to a port of this node and to one of the machine outside.
const (
	calledHere, calledAway   = "169.254.169.254", "203.0.113.9"
	calledHere6, calledAway6 = "fd00:ec2::254", "2001:db8::9"
)

// translate makes the rules, and routes that lead what is called outside.
func (s *scene) translate() {
	s.t.Helper()
	s.Shell(fmt.Sprintf(`echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
		ip route add %[1]s via %[3]s; ip route add %[2]s via %[3]s
		ip -6 route add %[4]s via %[6]s; ip -6 route add %[5]s via %[6]s`,
		calledHere, calledAway, theirs, calledHere6, calledAway6, theirs6))
	must(s.t, s.Nft(fmt.Sprintf(`table inet nat {
		chain output { type nat hook output priority -100;
			meta l4proto { tcp, udp } ip daddr %s th dport 80 dnat ip to 127.0.0.1:8080
			meta l4proto { tcp, udp } ip daddr %s th dport 80 dnat ip to %s:8080
			meta l4proto { tcp, udp } ip6 daddr %s th dport 80 dnat ip6 to [%s]:8080
			meta l4proto { tcp, udp } ip6 daddr %s th dport 80 dnat ip6 to [%s]:8080
			meta l4proto tcp ip daddr %s tcp dport 81 dnat ip to 127.0.0.1:8080
		}
	}
`, calledHere, calledAway, theirs, calledHere6, ours6, calledAway6, theirs6, ours)))
}

// egress is a policy for db's connections.
func egress(rules string) string {
	return fmt.Sprintf(`apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {selector: {matchLabels: {app: db}}, %s}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]}
`, rules)
}

// Egress to addresses is about the one that is called; a denied one must not be reached either. With the old table only
// the one that is reached counted.
func TestCalledAddress(t *testing.T) {
	rule := func(addr4, addr6, more string) string {
		return fmt.Sprintf("[{to: [{cidr: %s/32}, {cidr: %q}]%s}]", addr4, addr6+"/128", more)
	}
	to := func(addr4, addr6, more string) string { return "egress: " + rule(addr4, addr6, more) }
	deny := func(addr4, addr6, more string) string { return "deny: {egress: " + rule(addr4, addr6, more) + "}" }
	unlabelled := "egress: [{to: [{unlabelled: true}], ports: [8080/tcp, 8080/udp]}]"
	for _, c := range []struct {
		name      string
		egress    string
		here, out bool // what may be reached: the program on this node, the machine outside
		old       [2]bool
	}{
		{"called may be", to(calledHere, calledHere6, ""), true, false, [2]bool{false, false}},
		{"called may be, by its port", to(calledHere, calledHere6, ", ports: [80/tcp, 80/udp]"), true, false,
			[2]bool{false, false}},
		{"called may be, by the port that is reached", to(calledHere, calledHere6, ", ports: [8080/tcp, 8080/udp]"),
			false, false, [2]bool{}},
		{"called outside may be", to(calledAway, calledAway6, ""), false, true, [2]bool{}},
		{"called outside may be, by its port", to(calledAway, calledAway6, ", ports: [80/tcp, 80/udp]"), false, true,
			[2]bool{}},
		{"reached may be", to(theirs, theirs6, ""), false, false, [2]bool{false, true}},
		{"receiver may be", unlabelled, true, false, [2]bool{true, false}},
		{"called must not be", deny(calledHere, calledHere6, ""), false, true, [2]bool{true, true}},
		{"called must not be, by its port", deny(calledHere, calledHere6, ", ports: [80/tcp, 80/udp]"), false, true,
			[2]bool{true, true}},
		{"called outside must not be", deny(calledAway, calledAway6, ""), true, false, [2]bool{true, true}},
		{"reached must not be", deny(theirs, theirs6, ""), true, false, [2]bool{true, false}},
		{"nothing may be", "egress: []", false, false, [2]bool{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			withBoth(t, egress(c.egress), func(t *testing.T, s *scene, old bool) {
				s.translate()
				here, out := c.here, c.out
				if old {
					here, out = c.old[0], c.old[1]
				}
				s.calls(t, s.db, hereTo, s.free, old, here)
				s.calls(t, s.db, awayTo, s.stranger(), old, out)
			})
		})
	}
}

// A way is a call: of which address, and where that leads, for both families.
type way [2]struct{ called, from, at string }

var (
	hereTo = way{{calledHere + ":80", "0.0.0.0:0", "127.0.0.1:8080"},
		{"[" + calledHere6 + "]:80", "[::]:0", "[" + ours6 + "]:8080"}}
	awayTo = way{{calledAway + ":80", "0.0.0.0:0", theirs + ":8080"},
		{"[" + calledAway6 + "]:80", "[::]:0", "[" + theirs6 + "]:8080"}}
)

// calls has c call another, over TCP and UDP. The old table loses answers of UDP that NAT changes.
func (s *scene) calls(t *testing.T, c *agent, by way, other *agent, old, want bool) {
	t.Helper()
	for _, f := range by {
		l := other.listen(f.at)
		closed(t, want, "TCP to "+f.called, reaches(c, f.from, f.called, l))
		l.close()
		u := other.udp(f.at)
		question, answer := asksUDP(c, f.from, f.called, u)
		closed(t, want, "a datagram to "+f.called, question)
		if !old {
			closed(t, want, "its answer from "+f.called, answer)
		}
		u.close()
	}
}

// asksUDP sends a datagram to u, which answers it.
func asksUDP(c *agent, from, to string, u *sock) (question, answer bool) {
	c.t.Helper()
	s := c.udp(from)
	defer s.close()
	if s.connect(to) != 0 {
		return false, false
	}
	s.send("question")
	u.host.Barrier()
	r := u.do(call{Op: "recv", FD: u.fd})
	if string(r.Data) != "question" {
		return false, false
	}
	u.sendTo(r.From, "answer")
	return true, s.got() == "answer"
}

// Who gets it is judged by its labels, whatever was called.
func TestCalledAddressLeadsToWorkload(t *testing.T) {
	yaml := egress(fmt.Sprintf("egress: [{to: [{cidr: %s/32}, {cidr: %q}]}]", calledHere, calledHere6+"/128"))
	withBoth(t, yaml, func(t *testing.T, s *scene, old bool) {
		s.translate()
		s.calls(t, s.db, hereTo, s.web, old, false)
		s.calls(t, s.web2, hereTo, s.web, old, true)
	})
}

// An address of this node is no cidr, although NAT changes it.
func TestCalledAddressOfThisNode(t *testing.T) {
	withBoth(t, egress("egress: [{to: [{cidr: 10.0.0.0/8}]}]"), func(t *testing.T, s *scene, old bool) {
		s.translate()
		l := s.free.listen("0.0.0.0:8080")
		denied(t, "a port of this node", reaches(s.db, "", ours+":81", l))
		allowed(t, "without a label", reaches(s.web, "", ours+":81", l))
		l.close()
	})
}

// A flow whose destination NAT changes is decided again by the address that was called, at an answer too: it outlives
// another's revocation, and not its own, though the address that it reaches is allowed.
func TestCalledAddressAtAnAnswerAfterRevocation(t *testing.T) {
	to := func(addr4, addr6 string) string {
		return egress(fmt.Sprintf("egress: [{to: [{cidr: %s/32}, {cidr: %q}]}]", addr4, addr6+"/128"))
	}
	for name, f := range map[string]struct{ called, from, at, client string }{
		"IPv4": {calledAway + ":80", "0.0.0.0:6000", theirs + ":8080", ours + ":6000"},
		"IPv6": {"[" + calledAway6 + "]:80", "[::]:6000", "[" + theirs6 + "]:8080", "[" + ours6 + "]:6000"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, to(calledAway, calledAway6))
			s.translate()
			server, client := s.stranger().udp(f.at), s.db.udp(f.from)
			client.sendTo(f.called, "question")
			allowed(t, "the question", server.got() == "question")
			push := func() bool {
				server.sendTo(f.client, "pushed")
				return client.got() == "pushed"
			}
			allowed(t, "pushed", push())
			s.enforce(to(calledAway, calledAway6))
			allowed(t, "pushed after another's revocation", push())
			s.enforce(to(theirs, theirs6))
			denied(t, "pushed after the revocation", push())
			client.sendTo(f.called, "question")
			denied(t, "a question after the revocation", server.got() == "question")
			s.enforce(to(calledAway, calledAway6))
			client.sendTo(f.called, "question")
			allowed(t, "a question when it is allowed again", server.got() == "question")
			allowed(t, "pushed then", push())
		})
	}
}
