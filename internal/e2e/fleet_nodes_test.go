package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/internal/nstest"
)

// The ends of the link between the two nodes of a fleet.
var fleetEnds = [2][2]netip.Addr{
	{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00:10::1")},
	{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00:10::2")},
}

// newFleet makes two machines that are linked and have certificates of one CA. Their
// daemons run.
func newFleet(t *testing.T, args ...string) (a, b *machine) {
	t.Helper()
	a, b = bareMachine(t), bareMachine(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	ca := newFleetCA(t)
	for i, m := range []*machine{a, b} {
		dir := filepath.Join(t.TempDir(), "pki")
		ca.node(dir, []string{"node-a", "node-b"}[i], fleetEnds[i][:])
		m.start(append([]string{"--fleet", "10.0.0.0/24,fd00:10::/64", "--pki", dir, "--log-level", "debug"}, args...)...)
	}
	return a, b
}

type fleetCA struct {
	t testing.TB
	*pki.CADir
	dir string
}

func newFleetCA(t testing.TB) fleetCA {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := pki.InitCA(dir, "test", pki.For(time.Now().Add(-time.Hour), 48*time.Hour))
	must(t, err)
	t.Cleanup(ca.Close)
	return fleetCA{t, ca, dir}
}

// node makes a node's directory. It may assert any app, from its addresses.
func (ca fleetCA) node(dir, name string, addresses []netip.Addr) {
	ca.t.Helper()
	request, err := pki.Request(dir, name, false)
	must(ca.t, err)
	scope := pki.Scope{Grants: pki.Grants{"app": {"*"}}}
	for _, a := range addresses {
		scope.Addresses = append(scope.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	certificate, _, err := ca.IssueTo(request, scope, pki.For(time.Now(), time.Hour))
	must(ca.t, err)
	crt, err := os.ReadFile(filepath.Join(ca.dir, "ca.crt"))
	must(ca.t, err)
	list, err := os.ReadFile(filepath.Join(ca.dir, "ca.crl"))
	must(ca.t, err)
	_, err = pki.Install(dir, pki.Delivery{Certificate: certificate, CAs: crt, Lists: list}, time.Now())
	must(ca.t, err)
}

// Workloads of two nodes reach each other by their labels.
func TestFleetByLabels(t *testing.T) {
	a, b := newFleet(t)
	nodes := []*machine{a, b}
	web := []*nstest.Probe{a.labelledProbe("web", "app=web"), b.labelledProbe("web", "app=web")}
	db := []*nstest.Probe{a.labelledProbe("db", "app=db"), b.labelledProbe("db", "app=db")}
	for i := range nodes {
		web[i].Listen("tcp", "[::]:80")
	}
	for i, ends := range fleetEnds {
		for _, end := range ends {
			to := netip.AddrPortFrom(end, 80).String()
			from := 1 - i
			if v := web[from].TCPTo(nstest.Target{To: to, Patience: 3 * time.Second}); !v.Allowed() {
				t.Errorf("same labels, to %s: %v", to, v)
			}
			if v := db[from].TCPTo(nstest.Target{To: to, Patience: 500 * time.Millisecond}); v.Allowed() {
				t.Errorf("other labels, to %s: %v", to, v)
			}
		}
	}
	if t.Failed() {
		for _, m := range nodes {
			t.Log(m.daemon.Output())
			t.Log(m.Shell("conntrack -L 2>/dev/null || cat /proc/net/nf_conntrack; nft list counters; cat /proc/net/netfilter/nfnetlink_queue"))
		}
	}
}
