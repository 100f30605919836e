package bench

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/internal/nstest"
	"thole/internal/paired"
	"thole/policies"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

var benchRounds = flag.Int("rounds", 150, "rounds of four slices each: A, B, B, A or B, A, A, B")

// An arena is a host with two tables: Thole's, and one that only tracks connections. One of the two is dormant at
// any time, so that both meet the same processes, sockets and memory: two hosts with equal tables differ by some
// percent.
type arena struct {
	*nstest.Host
	b              *testing.B
	name           string
	server, client *nstest.Cgroup
	nl             *netlink.Conn
	tracked        bool
}

const (
	serverCgroup = "thole.slice/server"
	clientCgroup = "thole.slice/client"
	onlyTracking = "table inet tracking { chain input {" +
		" type filter hook input priority 0; ct state established accept; }; }"
)

// newDefaultArena has a server and a client of the same labels, under the default policy.
func newDefaultArena(b *testing.B) *arena {
	a := newArena(b, "default")
	in := compiler.Input{Workloads: a.workloads()}
	in.Policies = parse(b, string(policies.Default))
	a.load(in)
	return a
}

// portPolicy isolates the app web in both directions, but for some ports.
const portPolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: both}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [4242/tcp, 4242/udp]}]
  egress: [{to: [{workloads: {matchLabels: {app: web}}}], ports: [4242/tcp, 4242/udp]}]
`

// newPortArena has a server and a client that are isolated in both directions by port, beside as many other
// workloads of up to 200 classes, under 1,000 policies more.
func newPortArena(b *testing.B, others int) *arena {
	a := newArena(b, fmt.Sprintf("port@%d", others))
	in := reference.Scale(others, 200, 1000)
	in.Policies = append(in.Policies, parse(b, portPolicy)...)
	in.Workloads = append(in.Workloads, a.workloads()...)
	a.load(in)
	return a
}

func newArena(b *testing.B, name string) *arena {
	h := nstest.New(b)
	a := &arena{Host: h, b: b, name: name, server: h.In(serverCgroup), client: h.In(clientCgroup)}
	must(b, h.Nft(onlyTracking))
	var err error
	must(b, h.Do(func() { a.nl, err = netlink.Dial(unix.NETLINK_NETFILTER, nil) }))
	must(b, err)
	b.Cleanup(func() { a.nl.Close() })
	return a
}

func (a *arena) workloads() []policy.Workload {
	web := policy.Labels{"app": "web"}
	return []policy.Workload{
		{Name: "server", Kind: policy.KindRun, Labels: web,
			Cgroup: policy.Cgroup{Path: serverCgroup, ID: a.server.ID()}},
		{Name: "client", Kind: policy.KindRun, Labels: web,
			Cgroup: policy.Cgroup{Path: clientCgroup, ID: a.client.ID()}},
	}
}

func parse(b *testing.B, text string) []policy.Policy {
	docs, err := policy.Parse([]policy.File{{Name: "policies.yaml", Data: []byte(text)}})
	must(b, err)
	return docs.Policies
}

// load loads Thole's table, and has it awake.
func (a *arena) load(in compiler.Input) {
	result, err := compiler.Compile(in)
	must(a.b, err)
	if path := os.Getenv("THOLE_BENCH_TABLE"); path != "" {
		must(a.b, os.WriteFile(path+"."+a.name, []byte(result.Table.Text()), 0o644))
	}
	var conn *kernel.Conn
	must(a.b, a.Do(func() {
		if conn, err = kernel.Open(kernel.Options{}); err == nil {
			defer conn.Close()
			err = conn.Apply(ruleset.Diff(nil, &result.Table)) // here, since levels count from the cgroup namespace
		}
	}))
	must(a.b, err)
	a.wake(true)
}

// wake has Thole's table decide, or the other one.
func (a *arena) wake(thole bool) {
	flags := map[bool]uint32{false: unix.NFT_TABLE_F_DORMANT}
	batch := []netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		tableFlags("thole", flags[thole]),
		tableFlags("tracking", flags[!thole]),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	}
	_, err := a.nl.SendMessages(batch)
	must(a.b, err)
	for range 2 { // an answer for each table
		_, err := a.nl.Receive()
		must(a.b, err)
	}
	a.tracked = !thole
}

func tableFlags(name string, flags uint32) netlink.Message {
	e := netlink.NewAttributeEncoder()
	e.String(unix.NFTA_TABLE_NAME, name)
	e.ByteOrder = bigEndian
	e.Uint32(unix.NFTA_TABLE_FLAGS, flags)
	data, err := e.Encode()
	if err != nil {
		panic(err) // a name and a number
	}
	return message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge, unix.NFPROTO_INET, 0, data)
}

// message has the header of nfnetlink: family, version, resource.
func message(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, data []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}, data...),
	}
}

// forget has conntrack forget all connections: so each slice begins with an empty table, and no port is met twice.
func (a *arena) forget() {
	_, err := a.nl.Execute(message(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, netlink.Acknowledge, unix.AF_UNSPEC, 0, nil))
	must(a.b, err)
}

const ctDelete = 2 // IPCTNL_MSG_CT_DELETE of linux/netfilter/nfnetlink_conntrack.h

// A duel is what a slice measured, of each side, in each round. The values of a slice have names.
type duel struct{ thole, tracking map[string][]float64 }

// fight has both tables decide in turns, while slice does work and returns what it measured, by name: times, so
// that less is better. Each round has two slices of each table, in an order that changes, and pairs their sums.
func (a *arena) fight(slice func() map[string]float64) duel {
	d := duel{map[string][]float64{}, map[string][]float64{}}
	slice() // warm, with Thole's table: whoever has a connection that lasts opens it now
	for i := range *benchRounds {
		first := i%2 == 0
		sums := map[bool]map[string]float64{true: {}, false: {}}
		for _, thole := range []bool{first, !first, !first, first} {
			if a.tracked == thole {
				a.wake(thole)
			}
			for name, value := range slice() {
				sums[thole][name] += value / 2
			}
		}
		for name := range sums[true] {
			d.thole[name] = append(d.thole[name], sums[true][name])
			d.tracking[name] = append(d.tracking[name], sums[false][name])
		}
	}
	a.wake(true)
	return d
}

// against reports how one duel's ratio compares with another's, round by round.
func (d duel) against(b *testing.B, metric, name string, other duel) {
	of, err := paired.Ratios(d.thole[name], d.tracking[name])
	must(b, err)
	to, err := paired.Ratios(other.thole[name], other.tracking[name])
	must(b, err)
	ratios, err := paired.Ratios(of, to)
	must(b, err)
	reportInterval(b, metric, paired.Median(ratios))
}

// report reports the median of the ratios of one value, with its bounds (internal/figures). Of speeds it is the
// inverse of that of times.
func (d duel) report(b *testing.B, metric, name string, speed bool) {
	of, to := d.thole[name], d.tracking[name]
	if speed {
		of, to = to, of
	}
	ratios, err := paired.Ratios(of, to)
	must(b, err)
	reportInterval(b, metric, paired.Median(ratios))
}

func reportInterval(b *testing.B, metric string, i paired.Interval) {
	b.ReportMetric(i.Median, metric)
	b.ReportMetric(i.Low, metric+":low")
	b.ReportMetric(i.High, metric+":high")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
