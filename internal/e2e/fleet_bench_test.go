package e2e

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"thole/datapath/queue"
	"thole/internal/nstest"
)

const (
	roleFarAccepter  = "far-accepter"
	roleFarConnecter = "far-connecter"
	roleFarSink      = "far-sink"
	roleFarSource    = "far-source"
	rolePostman      = "postman"
)

var farAddress = &unix.SockaddrInet4{Port: 4242, Addr: [4]byte{10, 0, 0, 2}}

// connectingFar is connecting, to the other node. That a connection was accepted is seen
// later there.
var connectingFar = game{server: roleFarAccepter, client: roleFarConnecter, n: 200}

// A pair is two machines, one linked to the other, whose web workloads play.
type nodePair struct{ a, b *machine }

func newNodePair(b *testing.B) nodePair {
	thole, err := tholeBinary()
	must(b, err)
	p := nodePair{&machine{Host: nstest.New(b), t: b, thole: thole}, &machine{Host: nstest.New(b), t: b, thole: thole}}
	nstest.Link(p.a.Host, "10.0.0.1/24", "fd00:10::1/64", p.b.Host, "10.0.0.2/24", "fd00:10::2/64")
	return p
}

// play starts the two that play, in cgroups of the pair.
func (p nodePair) play(b *testing.B, g game, client, server *nstest.Cgroup) *contestant {
	c := &contestant{server: startRole(b, server, g.server)}
	c.drain(b)
	c.client = startRole(b, client, g.client)
	c.round(b, g) // warm
	return c
}

// tholePair is two nodes of a fleet.
func tholePair(b *testing.B, g game) (nodePair, *contestant) {
	p := newNodePair(b)
	startMembers(b, newFleetCA(b), []fleetMember{{p.a, "node-a", []string{"10.0.0.1"}}, {p.b, "node-b", []string{"10.0.0.2"}}}, "10.0.0.0/24")
	for _, m := range []*machine{p.a, p.b} { // without the log that tests want
		m.kill()
		m.start(m.args[:4]...)
	}
	return p, p.play(b, g, p.a.labelled("web", "app=web"), p.b.labelled("web", "app=web"))
}

// plainPair is two hosts without Thole, where postmen may see each packet.
func plainPair(b *testing.B, g game, postmen bool) *contestant {
	p := newNodePair(b)
	for _, m := range []*machine{p.a, p.b} {
		must(b, m.Nft(conntrackTable))
		if postmen {
			exe, err := os.Executable()
			must(b, err)
			m.Shell(queueRules)
			m.In("postman").Start("chrt", "-r", "1", exe, roleFlag, rolePostman)
			nstest.WaitFor(b, handshakes, "the queue to be read", func() bool {
				_, err := m.In("look").Command("grep", "-q", " 5448 ", "/proc/net/netfilter/nfnetlink_queue").Output()
				return err == nil
			})
		}
	}
	return p.play(b, g, p.a.In("client"), p.b.In("server"))
}

const conntrackTable = "table inet t { chain c { type filter hook input priority 0; ct state established accept; }; }"

// queueRules have userspace accept what Thole's handshake has there: of these connections,
// which are reset at once, all packets. (nft has no queue on every kernel.)
const queueRules = `
	for port in dport sport; do
		iptables -t raw -A PREROUTING -p tcp --$port 4242 -j NFQUEUE --queue-num 5448
		iptables -A OUTPUT -p tcp --$port 4242 -j NFQUEUE --queue-num 5448
	done`

// acceptAll accepts what comes to a queue.
func acceptAll() error {
	q, err := queue.Open(queue.Config{Number: 5448}, func(queue.Packet) queue.Verdict { return queue.Accept() })
	if err != nil {
		return err
	}
	return q.Run(context.Background())
}

// BenchmarkFleetConnect measures connects between two nodes that know each other, as
// ratios to conntrack alone, and to the same packets accepted in userspace.
func BenchmarkFleetConnect(b *testing.B) {
	nodes, thole := tholePair(b, connectingFar)
	conntrack := plainPair(b, connectingFar, false)
	accepted := plainPair(b, connectingFar, true)
	server := &benchedDaemon{machine: nodes.b}
	before, proven := server.cpu(), nodes.b.status().Fleet.Events["proven"]
	for b.Loop() {
		compete(b, connectingFar, thole, conntrack, accepted)
	}
	work, done := server.cpu()-before, nodes.b.status().Fleet.Events["proven"]-proven
	if want := uint64(*benchRounds * connectingFar.n); done < want*99/100 {
		b.Fatalf("%d of %d connections were proven", done, want)
	}
	for i, p := range []string{"p50", "p99"} {
		reportRatio(b, "fleet-"+p+"/conntrack", i, thole, conntrack)
		reportRatio(b, "fleet-"+p+"/userspace", i, thole, accepted)
	}
	report(b, "us/fleet-connect", thole.column(0))
	report(b, "us/fleet-userspace", accepted.column(0))
	b.ReportMetric(float64(done)/work*1000, "connections/cpu-second")
}

// BenchmarkFleetBulk measures the throughput behind the handshake.
func BenchmarkFleetBulk(b *testing.B) {
	far := game{server: roleFarSink, client: roleFarSource, n: bulk.n}
	_, thole := tholePair(b, far)
	conntrack := plainPair(b, far, false)
	for b.Loop() {
		compete(b, far, thole, conntrack)
	}
	reportRatio(b, "fleet-bulk/conntrack", 0, conntrack, thole)
}
