package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// own is the kernel's route of an address that a device has; over, throw and link are ours.
func own(to string, device int) Route {
	r := Route{To: netip.MustParsePrefix(to), Type: unix.RTN_LOCAL, Protocol: unix.RTPROT_KERNEL, Device: device}
	if r.To.Addr().Is4() {
		r.Scope, r.Source = unix.RT_SCOPE_HOST, r.To.Addr()
	}
	return r
}

func over(to string) Route {
	r := own(to, loopback)
	r.Protocol = Protocol
	return r
}

func throw(to string) Route {
	return Route{To: netip.MustParsePrefix(to), Type: unix.RTN_THROW, Protocol: Protocol, Scope: unix.RT_SCOPE_HOST}
}

func link(to string, device int) Route {
	return Route{To: netip.MustParsePrefix(to), Type: unix.RTN_UNICAST, Protocol: Protocol, Device: device}
}

func TestPlan(t *testing.T) {
	const a, b = "10.0.0.1/32", "10.0.0.2/32"
	half := func(r Route, from string, metric uint32) Route {
		r.From, r.Metric, r.Scope = netip.MustParsePrefix(from), metric, 0
		return r
	}
	to := netip.MustParsePrefix(a)
	six := []Route{
		half(link("fd00::1/128", 2), "::/1", 2048), half(link("fd00::1/128", 2), "8000::/1", 2048),
		half(over("fd00::1/128"), "::/1", 1024), half(over("fd00::1/128"), "8000::/1", 1024),
	}
	for _, test := range []struct {
		name      string
		have      []Route
		want      []Change
		addresses int
	}{
		{"nothing", nil, nil, 0},
		{"lo alone", []Route{own("127.0.0.0/8", loopback), own("::1/128", loopback), own("192.0.2.0/24", loopback)},
			nil, 0},
		{"an address", []Route{own(a, 2)}, []Change{{To: to, Add: []Route{throw(a), over(a)}}}, 1},
		{"done", []Route{over(a), throw(a), own(a, 2)}, nil, 1},
		{"the address is gone", []Route{over(a), throw(a)}, []Change{{To: to, Remove: []Route{throw(a), over(a)}}}, 0},
		{"throw is lost", []Route{over(a), own(a, 2)}, []Change{{To: to, Remove: []Route{over(a)},
			Add: []Route{throw(a), over(a)}}}, 1},
		{"out of order", []Route{over(a), own(a, 2), throw(a)}, []Change{{To: to, Remove: []Route{throw(a), over(a)},
			Add: []Route{throw(a), over(a)}}}, 1},
		{"two devices have it", []Route{own(a, 2), own(a, 3)}, []Change{{To: to, Add: []Route{throw(a), over(a)}}}, 1},
		{"two devices, done", []Route{over(a), throw(a), own(a, 2), own(a, 3)}, nil, 1},
		{"one of two addresses", []Route{over(a), throw(a), own(a, 2), own(b, 2)},
			[]Change{{To: netip.MustParsePrefix(b), Add: []Route{throw(b), over(b)}}}, 2},
		{"broadcast, and a route of others", []Route{{To: to, Type: unix.RTN_BROADCAST, Device: 2},
			{To: to, Type: unix.RTN_UNICAST, Device: 2}}, nil, 0},
		{"IPv6", []Route{own("fd00::1/128", 2)}, []Change{{To: netip.MustParsePrefix("fd00::1/128"), Add: six}}, 1},
		{"IPv6, two devices", append(slices.Clone(six), own("fd00::1/128", 2), own("fd00::1/128", 3)), []Change{{
			To: netip.MustParsePrefix("fd00::1/128"), Remove: six,
			Add: slices.Concat(six[:2], []Route{half(link("fd00::1/128", 3), "::/1", 2048),
				half(link("fd00::1/128", 3), "8000::/1", 2048)}, six[2:]),
		}}, 1},
		{"IPv6, done", append(slices.Clone(six), own("fd00::1/128", 2)), nil, 1},
		{"IPv6, one is lost", append(slices.Clone(six[1:]), own("fd00::1/128", 2)),
			[]Change{{To: netip.MustParsePrefix("fd00::1/128"), Remove: six[1:], Add: six}}, 1},
		{"link-local", []Route{own("fe80::1/128", 2)}, nil, 0},
	} {
		got, addresses := Plan(test.have)
		same := cmp.Comparer(func(a, b Route) bool { return a == b })
		if diff := cmp.Diff(test.want, got, same,
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || addresses != test.addresses {
			t.Errorf("%s: %d addresses (-want +got):\n%s", test.name, addresses, diff)
		}
	}
}

// scratch is a host with two devices and the Kernel of its namespace.
func scratch(t *testing.T) (*nstest.Host, *Kernel) {
	t.Helper()
	host := nstest.New(t)
	host.Shell(`ip link add va type veth peer name va1; ip link add vb type veth peer name vb1
for d in va va1 vb vb1; do ip link set $d up; done
ip addr add 10.0.0.1/24 dev va; ip addr add 10.0.0.9/24 dev va; ip addr add 10.1.0.1/24 dev vb
ip addr add fd00::1/64 dev va nodad`)
	nstest.WaitFor(t, 10*time.Second, "addresses to be usable",
		func() bool { return !strings.Contains(host.Shell("ip -6 addr"), "tentative") })
	var k *Kernel
	var err error
	if e := host.Do(func() { k, err = Open() }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return host, k
}

// all is every route of the host, as ip prints it.
func all(host *nstest.Host) string {
	return host.Shell("ip -d route show table all; ip -6 -d route show table all")
}

var silent = slog.New(slog.DiscardHandler)

// The routes of a real kernel are what Plan wants, follow what becomes of addresses and devices, and are gone without a
// trace when they are not wanted any more.
func TestKeeper(t *testing.T) {
	host, kernel := scratch(t)
	before := all(host)
	var on atomic.Bool
	on.Store(true)
	k := NewKeeper(kernel, on.Load, silent)
	if err := k.Sync(); err != nil {
		t.Fatal(err)
	}
	if s := k.State(); !s.Closed() || s.Addresses != 4 {
		t.Errorf("%+v, want four addresses", s)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	ended := sync.OnceFunc(func() { stop(); running.Wait() })
	defer ended()
	settled := func(what string, addresses int) {
		t.Helper()
		nstest.WaitFor(t, 10*time.Second, what, func() bool {
			have, err := kernel.List()
			if err != nil {
				t.Fatal(err)
			}
			changes, n := Plan(have)
			return len(changes) == 0 && n == addresses && k.State().Closed()
		})
	}
	settled("what Sync did", 4)
	for _, step := range []struct {
		do        string
		addresses int
	}{
		{"ip addr add 10.2.0.1/24 dev vb", 5},
		{"ip addr add 10.0.0.1/24 dev vb", 5}, // another device has it, too
		{"ip addr del 10.0.0.1/24 dev vb", 5},
		{"ip link set vb down", 5}, // what is not up keeps its IPv4 addresses
		{"ip link set vb up", 5},
		{"ip link set vb down; ip link set vb up", 5},
		{"ip addr del 10.0.0.9/24 dev va; ip -6 addr add fd00::2/64 dev va nodad", 5},
		{fmt.Sprintf("ip route flush table local proto %d; ip -6 route flush table local proto %[1]d", Protocol), 5},
		{"ip route del local 10.2.0.1 dev lo table local", 5},
		{"ip link add vc type veth peer name vc1; ip link set vc up; ip addr add 10.3.0.1/24 dev vc", 6},
		{"ip addr add fd03::1/64 dev vc nodad", 7},
		{"ip link del vc", 5},
		{"ip -6 addr del fd00::2/64 dev va; ip addr del 10.2.0.1/24 dev vb; ip addr add 10.0.0.9/24 dev va", 4},
	} {
		host.Shell(step.do)
		settled(step.do, step.addresses)
	}
	on.Store(false) // noticed by itself
	nstest.WaitFor(t, 10*time.Second, "the routes to be removed",
		func() bool { return all(host) == before && !k.State().On })
	ended()
}

// Own addresses are routed over lo, and by their own device to the link; what comes from outside is for this node.
func TestPackets(t *testing.T) {
	host, kernel := scratch(t)
	if err := NewKeeper(kernel, func() bool { return true }, silent).Sync(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.0.0.1", "10.0.0.9", "10.1.0.1", "fd00::1"} {
		got := host.Shell("ip route get " + to)
		if !strings.Contains(got, "local "+to) || !strings.Contains(got, " dev lo ") ||
			strings.Contains(got, "src 127") {
			t.Errorf("to %s: %s", to, got)
		}
	}
	for to, device := range map[string]string{"10.0.0.1": "va", "10.1.0.1": "vb"} {
		if got := host.Shell("ip route get " + to + " oif " + device); strings.Contains(got, "local") {
			t.Errorf("to %s by %s: %s", to, device, got)
		}
	}
	// From outside, packets are for this node as before.
	for to, device := range map[string]string{"10.0.0.1": "va", "10.1.0.1": "vb"} {
		from := strings.TrimSuffix(to, "1") + "7"
		got := host.Shell("ip route get " + to + " from " + from + " iif " + device)
		if !strings.Contains(got, "local "+to) {
			t.Errorf("to %s from outside: %s", to, got)
		}
	}
	if got := host.Shell("ip -6 route get fd00::1 from fd00::7 iif va"); !strings.Contains(got, "local fd00::1") {
		t.Errorf("IPv6, from outside: %s", got)
	}
	got := host.Shell("ip route get 10.0.0.5; ip -6 route get fd00::5")
	if !strings.Contains(got, "dev va src 10.0.0.1") || !strings.Contains(got, "src fd00::1") {
		t.Errorf("to neighbours: %s", got)
	}
}

// The kernel says why it refuses a route.
func TestRefused(t *testing.T) {
	_, kernel := scratch(t)
	bad := over("10.0.0.1/32")
	bad.Source = netip.MustParseAddr("192.0.2.1") // that this node does not have
	err := kernel.Apply(Change{Add: []Route{bad}})
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "prefsrc") {
		t.Errorf("got %v", err)
	}
}

// A Keeper that is told nothing looks once a second.
func TestDeaf(t *testing.T) {
	table := failing{list: []Route{own("10.0.0.1/32", 2)}}
	k := NewKeeper(&table, func() bool { return true }, silent)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	nstest.WaitFor(t, 10*time.Second, "a look", func() bool { return k.State().Addresses == 1 })
	stop()
	running.Wait()
}

// A failing table fails at chosen calls.
type failing struct {
	list     []Route
	listErr  error
	failures int // of Apply, from the first
	applied  []Change
	stubborn bool // another program takes away what was added
}

func (f *failing) List() ([]Route, error) { return slices.Clone(f.list), f.listErr }

func (f *failing) Apply(c Change) error {
	f.applied = append(f.applied, c)
	if f.failures--; f.failures >= 0 {
		return unix.ENOMEM
	}
	if f.stubborn {
		return nil
	}
	f.list = slices.DeleteFunc(f.list, func(r Route) bool { return slices.Contains(c.Remove, r) })
	for _, r := range c.Add {
		f.list = slices.Insert(f.list, 0, r)
	}
	return nil
}

func (f *failing) Wait() error  { return errors.New("it is closed") }
func (f *failing) Close() error { return nil }

func TestFailures(t *testing.T) {
	address := own("10.0.0.1/32", 2)
	yes := func() bool { return true }
	// All rounds fail: what may have been added is taken away, and it is said.
	table := failing{list: []Route{address}, failures: 1000}
	k := NewKeeper(&table, yes, silent)
	if err := k.Sync(); !errors.Is(err, unix.ENOMEM) || k.State().Closed() || !k.State().On {
		t.Errorf("%v, %+v", err, k.State())
	}
	if len(table.applied) != 2*rounds || len(table.applied[1].Add) != 0 || order(table.applied[1].Remove[0]) != 0 {
		t.Errorf("after a failure: %+v", table.applied)
	}
	// The first fails.
	table = failing{list: []Route{address}, failures: 1}
	if err := k.Sync(); err != nil || !k.State().Closed() {
		t.Errorf("the second round: %v", err)
	}
	// Another program undoes each change.
	table = failing{list: []Route{address}, stubborn: true}
	if err := k.Sync(); err == nil || len(table.applied) != rounds {
		t.Errorf("%v after %d changes", err, len(table.applied))
	}
	table = failing{listErr: unix.EPERM}
	if err := k.Sync(); !errors.Is(err, unix.EPERM) {
		t.Errorf("the list: %v", err)
	}
}
