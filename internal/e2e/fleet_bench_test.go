package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thole/datapath/pki"
	"thole/datapath/queue"
	"thole/datapath/token"
	"thole/internal/nstest"
)

const (
	roleFarAccepter  = "far-accepter"
	roleFarConnecter = "far-connecter"
	roleFarCrowd     = "far-crowd"
	roleFarSink      = "far-sink"
	roleFarSource    = "far-source"
	rolePostman      = "postman"
	roleBurner       = "burner"
)

var farAddress = &unix.SockaddrInet4{Port: 4242, Addr: [4]byte{10, 0, 0, 2}}

// connectingFar is to connect to the other node 200 times; the median and the 99th percentile are measured, in µs. That
// a connection was accepted is seen later there.
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

// tholePair is two nodes of a fleet, which may assert what is granted.
func tholePair(b *testing.B, grants pki.Grants) nodePair {
	p := newNodePair(b)
	ca := newFleetCA(b)
	ca.grants = grants
	startMembers(b, ca, []fleetMember{{p.a, "node-a", []string{"10.0.0.1"}}, {p.b, "node-b", []string{"10.0.0.2"}}},
		"10.0.0.0/23")
	for _, m := range []*machine{p.a, p.b} { // without the log that tests want
		m.kill()
		m.start(m.args[:4]...)
		must(b, m.apply(webToWeb))
	}
	return p
}

// webToWeb lets web reach web, whatever else their labels are.
const webToWeb = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]
`

var anyApp = pki.Grants{"app": {"*"}}

// playLabelled has a workload of each node play.
func (p nodePair) playLabelled(b *testing.B, g game) *contestant {
	return p.play(b, g, p.a.labelled("web", "app=web"), p.b.labelled("web", "app=web"))
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
// ratios to conntrack alone, and to the same packets accepted in userspace; and those of
// workloads that the other node never heard of, whose labels are new to its table.
func BenchmarkFleetConnect(b *testing.B) {
	nodes := tholePair(b, pki.Grants{"app": {"*"}, "n": {"*"}})
	thole := nodes.playLabelled(b, connectingFar)
	conntrack := plainPair(b, connectingFar, false)
	accepted := plainPair(b, connectingFar, true)
	before := nodes.b.proven()
	var first []float64
	for b.Loop() {
		compete(b, connectingFar, thole, conntrack, accepted)
		if done, want := nodes.b.proven()-before, uint64(*benchRounds*connectingFar.n); done < want*99/100 {
			b.Fatalf("%d of %d connections were proven", done, want)
		}
		for i := range firstContacts {
			label := fmt.Sprintf("n%d", i)
			c := &contestant{server: thole.server, client: startRole(b, nodes.a.labelled(label, "app=web,n="+label),
				roleFarConnecter)}
			first = append(first, c.round(b, game{n: 1})[0])
		}
	}
	for i, p := range []string{"p50", "p99"} {
		reportRatio(b, "fleet-"+p+"/conntrack", i, thole, conntrack)
		reportRatio(b, "fleet-"+p+"/userspace", i, thole, accepted)
	}
	report(b, "us/fleet-connect", thole.column(0))
	report(b, "us/fleet-userspace", accepted.column(0))
	report(b, "us/fleet-first", first)
	slices.Sort(first)
	b.ReportMetric(first[len(first)*99/100], "us/fleet-first-p99")
	report(b, "fleet-first/conntrack", ratios(first, conntrack.column(0)))
	report(b, "fleet-first/userspace", ratios(first, accepted.column(0)))
}

const firstContacts = 50

// ratios are those to a median.
func ratios(of, to []float64) []float64 {
	slices.Sort(to)
	var r []float64
	for _, v := range of {
		r = append(r, v/to[len(to)/2])
	}
	return r
}

// proven is how many connections were, to this node.
func (m *machine) proven() uint64 { return m.status().Fleet.Events["proven"] }

// BenchmarkFleetRate has many connect at once, so that daemons are never without work.
func BenchmarkFleetRate(b *testing.B) {
	many := game{server: roleFarAccepter, client: roleFarCrowd, n: 1000} // as many as may wait to be accepted
	nodes := tholePair(b, anyApp)
	thole := nodes.playLabelled(b, many)
	var perCPU []float64
	for b.Loop() {
		for range *benchRounds {
			before, proven := nodes.b.daemonTime(), nodes.b.proven()
			thole.rounds = append(thole.rounds, thole.round(b, many))
			if done := nodes.b.proven() - proven; done < uint64(many.n)*99/100 {
				b.Fatalf("%d of %d connections were proven", done, many.n)
			}
			perCPU = append(perCPU, float64(many.n)/(nodes.b.daemonTime()-before).Seconds())
		}
	}
	report(b, "connections/cpu-second", perCPU)
	report(b, "connections/second", thole.column(0))
}

// daemonTime is the processor time that the daemon has had, by its cgroup.
func (m *machine) daemonTime() time.Duration {
	m.t.Helper()
	data, err := os.ReadFile(m.CgroupDir("daemon") + "/cpu.stat")
	must(m.t, err)
	var us time.Duration
	_, err = fmt.Sscanf(string(data), "usage_usec %d", &us)
	must(m.t, err)
	return us * time.Microsecond
}

// crowd is how many connect at once.
const crowd = 32

// connectCrowd connects n times and returns how often a second.
func connectCrowd(n int) ([]float64, error) {
	var group errgroup.Group
	began := time.Now()
	for i := range crowd {
		group.Go(func() error {
			for ; i < n; i += crowd {
				if _, err := connectOnce(farAddress); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return []float64{float64(n) / time.Since(began).Seconds()}, err
}

// BenchmarkFleetSYN measures by how much a SYN is longer, by the number of its sender's
// labels: the first time, and when the nodes know each other.
func BenchmarkFleetSYN(b *testing.B) {
	for b.Loop() {
		for _, n := range []int{3, 20, 40} {
			grants, labels := pki.Grants{"app": {"*"}}, []string{"app=web"}
			for i := range n - 1 {
				key := fmt.Sprintf("l%d", i)
				grants[key] = []string{"*"}
				labels = append(labels, key+"=ok")
			}
			p := tholePair(b, grants)
			server := startRole(b, p.b.labelled("web", "app=web"), roleFarAccepter)
			must(b, p.b.Nft(countSYNs))
			connect := func(client role) float64 {
				c := &contestant{server: server, client: client}
				before := p.b.bytesOfSYNs()
				c.round(b, game{n: 1})
				return p.b.bytesOfSYNs() - before - plainSYN
			}
			client := startRole(b, p.a.labelled("client", strings.Join(labels, ",")), roleFarConnecter)
			b.ReportMetric(connect(client), fmt.Sprintf("bytes/syn-first@%d", n))
			b.ReportMetric(connect(client), fmt.Sprintf("bytes/syn-known@%d", n))
		}
	}
}

// plainSYN is what a SYN of this kernel has without Thole, by IPv4, in bytes.
const plainSYN = 60

const countSYNs = "table inet t { chain c { type filter hook prerouting priority -400; tcp dport 4242 tcp flags & " +
	"(syn | ack) == syn counter; }; }"

func (m *machine) bytesOfSYNs() float64 {
	m.t.Helper()
	var bytes float64
	_, err := fmt.Sscan(m.Shell("nft list table inet t | sed -n 's/.*counter packets [0-9]* bytes //p'"), &bytes)
	must(m.t, err)
	return bytes
}

// BenchmarkFleetFlooded measures connects on lo of a node that is flooded with SYNs that
// name statements, from another host as fast as that can; and those of a host without
// Thole that has the flood, too, and a process that takes as much of a processor as the
// daemon did.
func BenchmarkFleetFlooded(b *testing.B) {
	node := tholePair(b, anyApp).b
	plain := &machine{Host: nstest.New(b), t: b}
	must(b, plain.Nft(conntrackTable))
	sides := []*flooded{
		{contestant: playLocal(b, node.labelled("server", "app=web"), node.labelled("client", "app=web")),
			attacker: newAttacker(b, node)},
		{contestant: playLocal(b, plain.In("server"), plain.In("client")), attacker: newAttacker(b, plain)},
	}
	burner := startRole(b, plain.In("burner"), roleBurner)
	var sent, share []float64
	for b.Loop() {
		for range *benchRounds {
			before, began := node.daemonTime(), time.Now()
			rate := sides[0].round(b)
			part := float64(node.daemonTime()-before) / float64(time.Since(began))
			sent, share = append(sent, rate), append(share, part)
			fmt.Fprintln(burner.in, part)
			sides[1].round(b)
			fmt.Fprintln(burner.in, 0)
		}
	}
	for i, p := range []string{"p50", "p99"} {
		reportRatio(b, "flooded-"+p+"/equal-load", i, sides[0].contestant, sides[1].contestant)
	}
	report(b, "us/flooded-p99", sides[0].column(1))
	report(b, "packets/s-flood", sent)
	report(b, "share/flooded-daemon", share)
}

// A flooded contestant has its rounds during a flood.
type flooded struct {
	*contestant
	attacker *nstest.Host
}

// underFlood is to connect on one node, long enough for a flood to be felt.
var underFlood = game{server: roleAccepter, client: roleConnecter, n: 1000, arrives: true}

func playLocal(b *testing.B, server, client *nstest.Cgroup) *contestant {
	c := &contestant{server: startRole(b, server, underFlood.server)}
	c.drain(b)
	c.client = startRole(b, client, underFlood.client)
	c.round(b, underFlood) // warm
	return c
}

// newAttacker is a host that is linked to m, as 10.0.1.2 to 10.0.1.1.
func newAttacker(b *testing.B, m *machine) *nstest.Host {
	attacker := nstest.New(b)
	nstest.Link(m.Host, "10.0.1.1/24", "fd00:11::1/64", attacker, "10.0.1.2/24", "fd00:11::2/64")
	m.Shell("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
	return attacker
}

// round has the client do its work during a flood, and returns the packets a second.
func (f *flooded) round(b *testing.B) float64 {
	packet := syn(netip.MustParseAddr("10.0.1.1"), token.TypeShortT1, append([]byte{1, 1, 0, 0}, make([]byte, 64)...))
	binary.BigEndian.PutUint16(packet[22:], 4242)
	began := time.Now()
	stop := flooder(b, f.attacker, flood{packet, 52, netip.MustParsePrefix("10.0.1.0/24")})
	f.rounds = append(f.rounds, f.contestant.round(b, underFlood))
	return float64(stop()) / time.Since(began).Seconds()
}

// burn takes a share of one processor, that of the last line on stdin, with the daemon's
// priority: of each millisecond.
func burn() error {
	shares := make(chan float64)
	go func() {
		defer close(shares)
		var share float64
		for _, err := fmt.Scan(&share); err == nil; _, err = fmt.Scan(&share) {
			shares <- share
		}
	}()
	var share float64
	runtime.LockOSThread()
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1},
		0); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	for {
		select {
		case s, ok := <-shares:
			if !ok {
				return nil
			}
			share = s
		case began := <-tick.C:
			for time.Since(began) < time.Duration(share*float64(time.Millisecond)) {
			}
		}
	}
}

// BenchmarkFleetBulk measures the throughput behind the handshake.
func BenchmarkFleetBulk(b *testing.B) {
	far := game{server: roleFarSink, client: roleFarSource, n: 64 << 20}
	thole := tholePair(b, anyApp).playLabelled(b, far)
	conntrack := plainPair(b, far, false)
	for b.Loop() {
		compete(b, far, thole, conntrack)
	}
	reportRatio(b, "fleet-bulk/conntrack", 0, conntrack, thole)
}
