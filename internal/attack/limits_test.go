package attack

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
)

// The tests of the files limits*_test.go show what docs/SECURITY.md says that Thole does not protect from, and how far
// it goes. Each fails when the limit is gone, or wider than the page says.

// limit fails unless what the page calls a limit succeeds.
func limit(t testing.TB, what string, reached bool) {
	t.Helper()
	if !reached {
		t.Errorf("%s: it was denied: docs/SECURITY.md says that it succeeds", what)
	}
}

// CAP_NET_ADMIN is enough to remove the table, in a workload too. Other users cannot.
func TestLimitNetAdminRemovesTheTable(t *testing.T) {
	s := newScene(t, sameLabels)
	l := s.web.listen("127.0.0.1:80")
	const remove = "setpriv --reuid=1234 --clear-groups %s nft delete table inet thole"
	try := func(capabilities string) {
		_ = s.In("thole.slice/db").Command("sh", "-c", fmt.Sprintf(remove, capabilities)).Run()
	}
	try("")
	denied(t, "without a capability", reaches(s.db, "", "127.0.0.1:80", l))
	try("--inh-caps=+net_raw --ambient-caps=+net_raw")
	denied(t, "with CAP_NET_RAW", reaches(s.db, "", "127.0.0.1:80", l))
	try("--inh-caps=+net_admin --ambient-caps=+net_admin")
	limit(t, "with CAP_NET_ADMIN", reaches(s.db, "", "127.0.0.1:80", l))
}

// A socket keeps the labels of who made it: an unlabelled helper of a jailed process hands one over, through an
// abstract Unix socket, which no table sees.
func TestLimitSocketsHandedOver(t *testing.T) {
	s := newScene(t, sameLabels)
	u, l := s.free.udp("127.0.0.1:81"), s.free.listen("127.0.0.1:81")
	denied(t, "its own, UDP", reachesUDP(s.db, "", "127.0.0.1:81", u))
	denied(t, "its own", reaches(s.db, "", "127.0.0.1:81", l))
	s.free.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(s.db).sendTo("127.0.0.1:81", "secret")
	limit(t, "an unlabelled one's, UDP", u.got() == "secret")
	limit(t, "an unlabelled one's", s.free.socket("0.0.0.0:0",
		unix.SOCK_STREAM).pass(s.db).connect("127.0.0.1:81") == 0)
}

// A process takes a socket out of another of the same user, and is that one from then on.
func TestLimitProcessesOfOneUser(t *testing.T) {
	s := newScene(t, sameLabels)
	as := func(path string, uid int) *agent { return newAgent(t, s.Host, s.In(path).As(uid)) }
	helper, thief, other := as("elsewhere", 1234), as("thole.slice/db", 1234), as("thole.slice/db", 1235)
	u := s.free.udp("127.0.0.1:81")
	denied(t, "its own", reachesUDP(thief, "", "127.0.0.1:81", u))
	socket := helper.socket("0.0.0.0:0", unix.SOCK_DGRAM)
	steal := call{Op: "steal", A: helper.PID(), B: socket.fd}
	if errno := other.do(steal).Errno; errno != unix.EPERM {
		t.Errorf("another user takes a socket: %v, want it refused", errno)
	}
	stolen := &sock{thief, thief.ok(steal).FD}
	stolen.sendTo("127.0.0.1:81", "secret")
	limit(t, "a helper's", u.got() == "secret")
}

// A user with several grants may change from one label to the other; others may not.
func TestLimitSeveralGrants(t *testing.T) {
	m := newMachine(t)
	m.apply(strings.Replace(jailPolicy, "app: [jail]", "app: [jail, reader]", 1))
	jail := m.run(1234, "jail", policy.Labels{"app": "jail"})
	for app, want := range map[string]string{"secret": " 403 ", "reader": " 200 "} {
		if answer := jail.askRun(app, policy.Labels{"app": app}); !strings.Contains(answer, want) {
			t.Errorf("from jail to %s: %s, want%s", app, answer, want)
		}
	}
}

// nftables finds no listener of other protocols than TCP and UDP: on this node the sender's egress alone is asked, and
// what comes from outside is let in.
func TestLimitOtherProtocols(t *testing.T) {
	const protocol = 253 // for experiments, RFC 3692
	s := newScene(t, closedDB)
	stranger := s.stranger()
	raw := func(a *agent) *sock {
		return &sock{a, a.ok(call{Op: "socket", A: unix.AF_INET, B: unix.SOCK_RAW, C: protocol}).FD}
	}
	victim, elsewhere := raw(s.db), raw(stranger)
	for _, from := range []struct {
		name, to string
		sender   *agent
	}{
		{"web", "127.0.0.1:0", s.web}, {"free", "127.0.0.1:0", s.free},
		{"free", ours + ":0", s.free}, {"outside", ours + ":0", stranger},
	} {
		raw(from.sender).sendTo(from.to, "secret "+from.name)
		limit(t, from.name+" to an isolated workload at "+from.to, strings.Contains(victim.got(), "secret "+from.name))
	}
	u := s.db.udp("0.0.0.0:80")
	denied(t, "UDP", reachesUDP(s.free, "", "127.0.0.1:80", u))
	denied(t, "UDP from outside", reachesUDP(stranger, "", ours+":80", u))
	raw(s.db).sendTo(theirs+":0", "secret")
	denied(t, "what the workload sends outside", strings.Contains(elsewhere.got(), "secret"))
	raw(s.db).sendTo("127.0.0.1:0", "secret")
	denied(t, "what it sends here", strings.Contains(victim.got(), "secret"))
}

// What is sent to a group or to all is delivered to many sockets: sender and group decide, no receiver is asked.
func TestLimitGroups(t *testing.T) {
	s := newScene(t, closedDB)
	s.Shell("ip link set lo multicast on; ip route add 224.0.0.0/4 dev lo")
	s.outside.Shell("ip route add 224.0.0.0/4 dev veth0")
	stranger := s.stranger()
	victim, mine := s.db.udp("0.0.0.0:5353"), s.web.udp("0.0.0.0:5353")
	for _, device := range []string{"lo", "veth0"} {
		s.db.ok(call{Op: "join", FD: victim.fd, To: "224.0.0.251", Device: device})
		s.web.ok(call{Op: "join", FD: mine.fd, To: "224.0.0.251", Device: device})
	}
	limit(t, "unlabelled to a group", reachesUDP(s.free, "", "224.0.0.251:5353", victim))
	limit(t, "outside to a group", reachesUDP(stranger, "", "224.0.0.251:5353", victim))
	limit(t, "outside to all", reachesUDP(stranger, "", "10.0.0.255:5353", victim))
	victim.got()
	denied(t, "unlabelled to one", reachesUDP(s.free, "", "127.0.0.1:5353", victim))
	denied(t, "outside to one", reachesUDP(stranger, "", ours+":5353", victim))
	mine.got()
	denied(t, "the workload to a group", reachesUDP(s.db, "", "224.0.0.251:5353", mine))
}

// An address outside is believed: who takes another's there has its allowances.
func TestLimitAnothersAddressOutside(t *testing.T) {
	s := newScene(t, openDB+`---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, ingress: [{from: [{cidr: 10.0.0.77/32}]}]}
`)
	s.outside.Shell("ip addr add 10.0.0.77/24 dev veth0")
	stranger := s.stranger()
	l, u := s.web.listen("0.0.0.0:80"), s.web.udp("0.0.0.0:80")
	denied(t, "from its own address", reaches(stranger, theirs+":0", ours+":80", l))
	denied(t, "from its own address, UDP", reachesUDP(stranger, theirs+":0", ours+":80", u))
	limit(t, "from another's", reaches(stranger, "10.0.0.77:0", ours+":80", l))
	limit(t, "from another's, UDP", reachesUDP(stranger, "10.0.0.77:0", ours+":80", u))
}

// Another machine changes the address behind this node, and POSTROUTING changes the source: policies saw the one
// before.
func TestLimitNATBehindOutput(t *testing.T) {
	s := newScene(t, egress("egress: [{to: [{cidr: 198.51.100.1/32}]}]"))
	s.Shell("ip route add 198.51.100.0/24 via " + theirs + "; ip addr add 10.0.0.9/24 dev veth0")
	must(t, s.outside.Nft(`table ip other {
		chain p { type nat hook prerouting priority -100; ip daddr 198.51.100.1 dnat to `+theirs+`; }
	}`))
	must(t, s.Nft(`table ip other {
		chain p { type nat hook postrouting priority 100; oif veth0 ip saddr `+ours+` snat to 10.0.0.9; }
	}`))
	stranger := s.stranger()
	l, u := stranger.listen(theirs+":80"), stranger.udp(theirs+":80")
	denied(t, "called", reaches(s.db, "", theirs+":80", l))
	denied(t, "called, UDP", reachesUDP(s.db, "", theirs+":80", u))
	limit(t, "by another machine's NAT", reaches(s.db, "", "198.51.100.1:80", l))
	question, answer := asksUDP(s.db, "0.0.0.0:0", "198.51.100.1:80", u)
	limit(t, "by another machine's NAT, UDP", question && answer)
}
