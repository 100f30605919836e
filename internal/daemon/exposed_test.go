package daemon

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/datapath/sockets"
	"thole/internal/api"
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

// noNames is a cgroup tree in which everything ended.
type noNames struct{}

func (noNames) Named(uint64) (string, error) { return "", errors.New("it is gone") }

// exposedView knows one workload, in cgroup 7, that a policy with these ingress rules selects.
func exposedView(t *testing.T, ingress string) *view {
	t.Helper()
	w := policy.Workload{Name: "db", Kind: policy.KindCgroup, Labels: policy.Labels{"app": "db"},
		Cgroup: policy.Cgroup{Path: "db", ID: 7}}
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(`apiVersion: thole/v1
kind: Policy
metadata: {name: p}
spec: {selector: {matchLabels: {app: db}}, ingress: ` + ingress + `}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: []policy.Workload{w},
		Options: compiler.Options{Epoch: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return &view{
		status: api.Status{Enforcing: true}, result: &result,
		roster: newRoster([]policy.Workload{w}, nil),
	}
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
			"out of time", fakeList{sockets: []sockets.Socket{socketOn(53, 7), socketOn(53, 8)}, tick: socketsTime}, 0,
			[]condition.Code{condition.SocketsUnexamined},
		},
		{"no cgroups", fakeList{sockets: []sockets.Socket{socketOn(53, 0)}}, -1,
			[]condition.Code{condition.SocketsUnlisted}},
		{"it fails", fakeList{err: errors.New("no such protocol")}, -1, []condition.Code{condition.SocketsUnlisted}},
	} {
		t.Run(test.name, func(t *testing.T) {
			watch := socketWatch{bound: test.list.bound, root: noNames{}, now: test.list.now}
			status, conditions := watch.look(exposedView(t, "[]"), exposure.Options{})
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

// However often it is asked, looking takes a tenth of the time at most. Where nothing is enforced it is not looked.
func TestExposedSocketsSeldom(t *testing.T) {
	list := fakeList{tick: time.Millisecond}
	watch := socketWatch{bound: list.bound, root: noNames{}, now: list.now}
	v := exposedView(t, "[]")
	watch.look(v, exposure.Options{}) // takes a tick
	for range socketsPause - 1 {
		watch.look(v, exposure.Options{})
	}
	if list.looks != 1 {
		t.Errorf("%d looks in ten times the time of one", list.looks)
	}
	watch.look(v, exposure.Options{})
	if list.looks != 2 {
		t.Errorf("%d looks after the pause, want 2", list.looks)
	}
	v.status.Enforcing = false
	list.clock = list.clock.Add(time.Hour)
	if status, _ := watch.look(v, exposure.Options{}); status != nil || list.looks != 2 {
		t.Errorf("nothing is enforced: %d looks, %+v", list.looks, status)
	}
}

// Members of a class that may not reach each other are owners of their own.
func TestOwner(t *testing.T) {
	v := exposedView(t, "[]")
	got := v.owner(noNames{}, 7)
	if got.Workload != "db" || !got.Selected || got.Users || got.Side < 1<<63 {
		t.Errorf("a workload of a divided class: %+v", got)
	}
	v = exposedView(t, "[{}]")
	if got := v.owner(noNames{}, 7); got.Side == 0 || got.Side >= 1<<63 {
		t.Errorf("a workload of a class that is not divided: %+v", got)
	}
	if got := v.owner(noNames{}, 8); got.Side != 0 || got.Workload != "" {
		t.Errorf("a cgroup that is gone: %+v", got)
	}
}
