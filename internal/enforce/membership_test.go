package enforce

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch/workload"
)

// Connections are decided again only where something living may have lost an allowance.
func TestContainersThatTakeAllowancesAway(t *testing.T) {
	cgroup := func(path string, id uint64) policy.Cgroup { return policy.Cgroup{Path: path, ID: id} }
	container := func(path string, id uint64, own ...policy.Network) policy.Workload {
		return policy.Workload{Kind: policy.KindContainer, Labels: policy.Labels{"app": "web"},
			Cgroup: cgroup(path, id), Own: own}
	}
	free := func(path string, id uint64) policy.Unlabelled {
		return policy.Unlabelled{Cgroup: cgroup(path, id)}
	}
	network := policy.Network{Bridge: "docker0", Port: "veth0",
		Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}}
	parents := []policy.Cgroup{cgroup("docker", 1)}
	type containers = state.Containers
	type running struct {
		workloads []policy.Workload
		containers
	}
	for _, tt := range []struct {
		name        string
		before, now running
		want        bool
	}{
		{"a container begins where it was closed",
			running{nil, containers{Parents: parents}},
			running{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, false},
		{"a container begins where it was free",
			running{},
			running{workloads: []policy.Workload{container("system.slice/docker-a.scope", 2)}}, true},
		{"a container begins together with its parent",
			running{},
			running{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"an unlabelled container begins",
			running{nil, containers{Parents: parents}},
			running{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}}, false},
		{"an unlabelled container ends",
			running{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 3)}}},
			running{nil, containers{Parents: parents}}, false},
		{"an unlabelled container lives, and is not known any more",
			running{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}},
			running{nil, containers{Parents: parents}}, true},
		{"an unlabelled container is labelled",
			running{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}},
			running{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"a container is connected",
			running{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}},
			running{[]policy.Workload{container("docker/a", 2, network)}, containers{Parents: parents}}, false},
		{"a container is disconnected",
			running{[]policy.Workload{container("docker/a", 2, network)}, containers{Parents: parents}},
			running{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"a container with an address ends",
			running{[]policy.Workload{container("docker/a", 3, network)}, containers{Parents: parents}},
			running{nil, containers{Parents: parents}}, true},
		{"an unlabelled container with an address ends",
			running{nil, containers{Parents: parents,
				Unlabelled: []policy.Unlabelled{{Cgroup: cgroup("docker/a", 3), Own: []policy.Network{network}}}}},
			running{nil, containers{Parents: parents}}, true},
		{"a container joins the network of another",
			running{[]policy.Workload{container("docker/a", 2, network)}, containers{Parents: parents}},
			running{[]policy.Workload{sharing(container("docker/a", 2, network))}, containers{Parents: parents,
				Unlabelled: []policy.Unlabelled{{Cgroup: cgroup("docker/b", 3), Sharing: shared}}}}, true},
		{"an unlabelled container joins the network of an unlabelled one",
			running{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}},
			running{nil, containers{Parents: parents,
				Unlabelled: []policy.Unlabelled{{Cgroup: cgroup("docker/a", 2), Sharing: shared}}}}, true},
		{"a container that joined another's network ends",
			running{[]policy.Workload{sharing(container("docker/b", 3))}, containers{Parents: parents}},
			running{nil, containers{Parents: parents}}, true},
		{"a bridge begins", running{}, running{nil, containers{Bridges: []policy.Bridge{{Name: "docker0"}}}}, true},
		{"a bridge ends", running{nil, containers{Bridges: []policy.Bridge{{Name: "docker0"}}}}, running{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &Enforcer{cgroups: fakeCgroups{living: map[uint64]bool{1: true, 2: true}}, now: time.Now,
				loaded: loaded{inSync: true, containers: tt.before.containers,
					workloads: newRoster(tt.before.workloads, tt.before.Unlabelled)}}
			d, _ := e.deltaTo(policyset.Set{}, workload.Snapshot{Workloads: tt.now.workloads,
				Unlabelled: tt.now.Unlabelled, Parents: tt.now.Parents, Bridges: tt.now.Bridges})
			if d.takes != tt.want {
				t.Errorf("it takes something away: %t, want %t", d.takes, tt.want)
			}
		})
	}
}

var shared = policy.Sharing{Namespace: "docker/a"}

func sharing(w policy.Workload) policy.Workload {
	w.Sharing = shared
	return w
}

// fakeCgroups answers for the kernel.
type fakeCgroups struct {
	living, sockets map[uint64]bool
	unknown         map[uint64]bool // it cannot be found out whether these live
	err             error
}

func (g fakeCgroups) Lives(id uint64) (bool, error) {
	if g.unknown[id] {
		return false, errors.New("it cannot be found out")
	}
	return g.living[id], nil
}

func (g fakeCgroups) Sockets() (map[uint64]bool, error) { return g.sockets, g.err }

func TestOutlived(t *testing.T) {
	in := func(id uint64) policy.Workload {
		return policy.Workload{Cgroup: policy.Cgroup{Path: fmt.Sprint(id), ID: id}}
	}
	enforced := []policy.Workload{in(11), in(12), in(14)}
	running := enforced[:1]
	tests := []struct {
		name  string
		world fakeCgroups
		want  []uint64
	}{
		{"no sockets", fakeCgroups{living: map[uint64]bool{11: true}}, nil},
		{"a socket of one",
			fakeCgroups{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{11: true, 12: true}}, []uint64{12}},
		{"one is only not bound any more", fakeCgroups{living: map[uint64]bool{11: true, 12: true},
			sockets: map[uint64]bool{12: true, 14: true}}, []uint64{14}},
		{"a socket of a child that is gone too",
			fakeCgroups{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{99: true}}, []uint64{12, 14}},
		{"a socket of a child of the older",
			fakeCgroups{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{13: true}}, []uint64{12}},
		{"a socket of a cgroup that was gone before",
			fakeCgroups{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{7: true}}, nil},
		{"a socket of an unlabelled cgroup", fakeCgroups{living: map[uint64]bool{11: true, 99: true},
			sockets: map[uint64]bool{99: true, 0: true}}, nil},
		{"it is not known", fakeCgroups{living: map[uint64]bool{11: true}, err: errors.New("no")}, []uint64{12, 14}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &Enforcer{cgroups: tt.world, now: time.Now, loaded: loaded{workloads: newRoster(enforced, nil)}}
			d, found := e.deltaTo(policyset.Set{}, workload.Snapshot{Workloads: running})
			unknown := slices.Contains(codesOf(found), condition.EndedUnknown)
			if unknown != (tt.world.err != nil) {
				t.Errorf("conditions %v", found)
			}
			slices.Sort(d.outlived)
			if !slices.Equal(d.outlived, tt.want) {
				t.Errorf("got %v; want %v", d.outlived, tt.want)
			}
		})
	}
}

// A problem with workloads that ended is told once, however often single cgroups are looked at, and until the sockets
// were listed.
func TestEndedUnknownIsToldOnce(t *testing.T) {
	w := policy.Workload{Kind: policy.KindRun, Cgroup: policy.Cgroup{Path: "thole.slice/a", ID: 11}}
	other := condition.Condition{Code: condition.ImageLabel, Text: "another"}
	e := &Enforcer{cgroups: fakeCgroups{err: errors.New("no")}, now: time.Now, conditions: []condition.Condition{other},
		loaded: loaded{workloads: newRoster([]policy.Workload{w}, nil)}}
	look := func() []condition.Code {
		d, found := e.deltaTo(policyset.Set{}, workload.Snapshot{Partial: true, Gone: []string{w.Cgroup.Path}})
		e.loaded.workloads.apply(&d)
		e.conditions = found
		return codesOf(found)
	}
	for range 3 {
		if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel, condition.EndedUnknown}) {
			t.Errorf("conditions %v", got)
		}
		e.endedChecked = time.Time{}
	}
	e.cgroups = fakeCgroups{}
	if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel}) {
		t.Errorf("after the sockets were listed: %v", got)
	}
}

// A container of which it is not known whether it ended stays without its address, and makes way for a new one that has
// its path and its address.
func TestUnknownEndMakesWay(t *testing.T) {
	container := policy.Workload{Kind: policy.KindContainer, Labels: policy.Labels{"app": "web"},
		Cgroup: policy.Cgroup{Path: "docker/a", ID: 11},
		Own:    []policy.Network{{Bridge: "docker0", Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}}}}
	again := container
	again.Cgroup.ID = 12
	e := &Enforcer{cgroups: fakeCgroups{unknown: map[uint64]bool{11: true}}, now: time.Now,
		loaded: loaded{workloads: newRoster([]policy.Workload{container}, nil)}}
	d, _ := e.deltaTo(policyset.Set{}, workload.Snapshot{Workloads: []policy.Workload{again}})
	e.loaded.workloads.apply(&d)
	old, ok := e.loaded.workloads.of(11)
	if !ok || old.Own != nil || old.Cgroup.Path != "docker/a#11" || !d.takes {
		t.Errorf("the old one is there: %t, %+v; takes %t", ok, old, d.takes)
	}
	if id, _ := e.loaded.workloads.named("docker/a"); id != 12 {
		t.Errorf("the path names %d", id)
	}
}

func codesOf(list []condition.Condition) (codes []condition.Code) {
	for _, c := range list {
		codes = append(codes, c.Code)
	}
	return codes
}
