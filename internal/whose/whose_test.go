package whose

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
	"thole/internal/api"
)

// A clock goes on at each look at it.
type clock struct {
	now  time.Time
	tick time.Duration
}

func (c *clock) time() time.Time {
	c.now = c.now.Add(c.tick)
	return c.now
}

// A list of sockets counts how often it was listed.
type list struct {
	sockets []sockets.Socket
	listed  int
	err     error
}

func (l *list) each(visit func(sockets.Socket) bool) error {
	l.listed++
	for _, s := range l.sockets {
		if !visit(s) {
			break
		}
	}
	return l.err
}

func listener(address string, cgroup uint64) sockets.Socket {
	local := netip.MustParseAddrPort(address)
	return sockets.Socket{Protocol: unix.IPPROTO_TCP, Local: local, Bound: true, Inode: uint32(local.Port()),
		Cgroup: cgroup}
}

// In these tests the workload of cgroup 1 is web, cgroup 2 is closed, and all others are unlabelled.
func judge(cgroup uint64) (string, api.Ownership) {
	switch path := fmt.Sprintf("c%d", cgroup); cgroup {
	case 1:
		return path, api.Ownership{Workload: &api.Workload{Name: "web"}}
	case 2:
		return path, api.Ownership{Closed: true}
	default:
		return path, api.Ownership{}
	}
}

// ids know no cgroup.
type ids struct{}

func (ids) ID(string) (uint64, error) { return 0, fs.ErrNotExist }

func asker(l *list) *Asker { return New(NewLooks(l.each, (&clock{}).time), ids{}, judge) }

func TestUnlabelled(t *testing.T) {
	connection := listener("127.0.0.1:81", 3)
	connection.Bound, connection.Remote = false, netip.MustParseAddrPort("127.0.0.1:9")
	got, err := asker(&list{sockets: []sockets.Socket{
		listener("[::ffff:10.0.0.1]:90", 3), listener("127.0.0.1:80", 3), listener("127.0.0.1:82", 1),
		listener("127.0.0.1:83", 2), connection,
	}}).Unlabelled()
	if err != nil {
		t.Fatal(err)
	}
	want := api.Listeners{Complete: true, Listeners: []api.Socket{
		{Protocol: "tcp", Local: "127.0.0.1:80", Listens: true, Inode: 80, CgroupID: 3, Cgroup: "c3"},
		{Protocol: "tcp", Local: "10.0.0.1:90", Listens: true, Inode: 90, CgroupID: 3, Cgroup: "c3"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestOwner(t *testing.T) {
	only6 := listener("[::]:80", 4)
	only6.OnlyV6 = true
	client := listener("127.0.0.1:4000", 5)
	client.Bound, client.Remote = false, netip.MustParseAddrPort("127.0.0.1:80")
	all := &list{sockets: []sockets.Socket{listener("127.0.0.1:80", 1), listener("0.0.0.0:80", 2), only6,
		listener("[::]:81", 3), client}}
	for _, tt := range []struct {
		name string
		req  api.OwnerRequest
		want []uint64 // cgroups; nil: refused
	}{
		{"a port", api.OwnerRequest{Port: 80}, []uint64{2, 1, 4}},
		{"a port of no listener", api.OwnerRequest{Port: 4000}, []uint64{}},
		{"an address", api.OwnerRequest{Address: "127.0.0.1", Port: 80}, []uint64{1}},
		{"another address", api.OwnerRequest{Address: "10.0.0.1", Port: 80}, []uint64{2}},
		{"an address of IPv6", api.OwnerRequest{Address: "fd00::1", Port: 80}, []uint64{4}},
		{"IPv4 in IPv6", api.OwnerRequest{Address: "::ffff:10.0.0.1", Port: 81}, []uint64{3}},
		{"a connection", api.OwnerRequest{Address: "127.0.0.1", Port: 4000}, []uint64{5}},
		{"no address", api.OwnerRequest{Address: "x", Port: 80}, nil},
		{"nothing", api.OwnerRequest{}, nil},
		{"two things", api.OwnerRequest{PID: 1, Port: 80}, nil},
		{"a negative process", api.OwnerRequest{PID: -1}, nil},
		{"no process", api.OwnerRequest{PID: 1 << 30}, nil},
		{"a process in a cgroup that is not ours", api.OwnerRequest{PID: os.Getpid()}, nil},
	} {
		answer, err := asker(all).Owner(tt.req)
		if tt.want == nil || err != nil {
			if (err == nil) != (tt.want != nil) {
				t.Errorf("%s: %+v, %v", tt.name, answer, err)
			}
			continue
		}
		got := []uint64{}
		for _, s := range answer.Sockets {
			got = append(got, s.CgroupID)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
	}
}

// An answer has so many sockets, and counts the others.
func TestMaxSockets(t *testing.T) {
	all := &list{}
	for range MaxSockets + 3 {
		all.sockets = append(all.sockets, listener("127.0.0.1:80", 1))
	}
	answer, err := asker(all).Owner(api.OwnerRequest{Port: 80})
	if err != nil || len(answer.Sockets) != MaxSockets || answer.Omitted != 3 || !answer.Complete {
		t.Errorf("%d sockets, %d omitted, complete: %v, %v", len(answer.Sockets), answer.Omitted, answer.Complete, err)
	}
}

// A look has bounds, and is the answer for as long as it was expensive.
func TestLooksAreBounded(t *testing.T) {
	many := &list{}
	for range maxLooked + 1 {
		many.sockets = append(many.sockets, listener("127.0.0.1:80", 3))
	}
	for _, tt := range []struct {
		name  string
		tick  time.Duration
		found int
	}{{"so many", 0, maxLooked}, {"so long", maxTime / 100, 99}} {
		found, complete, err := NewLooks(many.each, (&clock{tick: tt.tick}).time).look()
		if err != nil || complete || len(found) < tt.found-1 || len(found) > tt.found+1 {
			t.Errorf("%s: %d sockets, complete: %v, %v", tt.name, len(found), complete, err)
		}
	}

	one := &list{sockets: []sockets.Socket{listener("127.0.0.1:80", 3)}}
	c := &clock{tick: time.Millisecond}
	looks := NewLooks(one.each, c.time)
	for range 20 {
		if _, _, err := looks.look(); err != nil {
			t.Fatal(err)
		}
	}
	if one.listed > 3 {
		t.Errorf("20 questions in a row had the sockets listed %d times", one.listed)
	}
	c.now = c.now.Add(time.Minute)
	before := one.listed
	if _, _, err := looks.look(); err != nil || one.listed != before+1 {
		t.Errorf("later: listed %d times, %v", one.listed-before, err)
	}
}

// If the kernel does not list the sockets, or not their cgroups, the question fails.
func TestLooksFail(t *testing.T) {
	for _, l := range []*list{{err: errors.New("no")}, {sockets: []sockets.Socket{listener("127.0.0.1:80", 0)}}} {
		looks := NewLooks(l.each, (&clock{}).time)
		for range 2 {
			if _, _, err := looks.look(); err == nil {
				t.Errorf("%+v: no error", l)
			}
		}
		if l.listed != 2 {
			t.Errorf("%+v: the failure was an answer", l)
		}
	}
}
