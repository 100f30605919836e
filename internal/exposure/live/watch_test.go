package live

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
	"thole/internal/condition"
	"thole/internal/exposure"
)

// A fakeList is a kernel with sockets of one cgroup, and a clock that goes on with each look at it.
type fakeList struct {
	sockets []sockets.Socket
	err     error
	looks   int
	clock   time.Time
	tick    time.Duration
}

func (f *fakeList) bound(visit func(sockets.Socket) bool) error {
	f.looks++
	for _, s := range f.sockets {
		if !visit(s) {
			return nil
		}
	}
	return f.err
}

func (f *fakeList) now() time.Time { f.clock = f.clock.Add(f.tick); return f.clock }

// ownerOf knows one workload, in cgroup 7, that a policy selects.
func ownerOf(cgroup uint64) exposure.Owner {
	if cgroup != 7 {
		return exposure.Owner{}
	}
	return exposure.Owner{Workload: "db", Side: 1<<63 | cgroup, Selected: true}
}

func socketOn(port uint16, cgroup uint64) sockets.Socket {
	return sockets.Socket{
		Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Cgroup: cgroup,
		Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port),
	}
}

func codesOf(list []condition.Condition) (codes []condition.Code) {
	for _, c := range list {
		codes = append(codes, c.Code)
	}
	return codes
}

func TestExposedSockets(t *testing.T) {
	many := make([]sockets.Socket, maxSockets)
	for i := range many {
		many[i] = socketOn(uint16(i), 1000)
	}
	last := socketOn(1, 7)
	last.Device = 1
	for _, test := range []struct {
		name     string
		list     fakeList
		examined int // -1: there is no status
		codes    []condition.Code
	}{
		{"none", fakeList{}, 0, nil},
		{"at the bound", fakeList{sockets: many}, maxSockets, nil},
		{"beyond it", fakeList{sockets: append(many[:len(many):len(many)], last)}, maxSockets,
			[]condition.Code{condition.SocketsUnexamined}},
		{"shared", fakeList{sockets: []sockets.Socket{socketOn(53, 7), socketOn(53, 8)}}, 2,
			[]condition.Code{condition.SocketExposed}},
		{
			"out of time", fakeList{sockets: []sockets.Socket{socketOn(53, 7), socketOn(53, 8)}, tick: maxTime}, 0,
			[]condition.Code{condition.SocketsUnexamined},
		},
		{"no cgroups", fakeList{sockets: []sockets.Socket{socketOn(53, 0)}}, -1,
			[]condition.Code{condition.SocketsUnlisted}},
		{"it fails", fakeList{err: errors.New("no such protocol")}, -1, []condition.Code{condition.SocketsUnlisted}},
	} {
		t.Run(test.name, func(t *testing.T) {
			watch := New(test.list.bound, test.list.now)
			status, conditions := watch.Look(ownerOf, exposure.Options{})
			examined := -1
			if status != nil {
				examined = status.Examined
			}
			if diff := cmp.Diff(test.codes, codesOf(conditions)); diff != "" || examined != test.examined {
				t.Errorf("%d examined (-want +got):\n%s", examined, diff)
			}
		})
	}
}

// However often it is asked, looking takes a tenth of the time at most.
func TestExposedSocketsSeldom(t *testing.T) {
	list := fakeList{tick: time.Millisecond}
	watch := New(list.bound, list.now)
	watch.Look(ownerOf, exposure.Options{}) // takes a tick
	for range pauseRatio - 1 {
		watch.Look(ownerOf, exposure.Options{})
	}
	if list.looks != 1 {
		t.Errorf("%d looks in ten times the time of one", list.looks)
	}
	watch.Look(ownerOf, exposure.Options{})
	if list.looks != 2 {
		t.Errorf("%d looks after the pause, want 2", list.looks)
	}
}
