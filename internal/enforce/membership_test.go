package enforce

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch/cgroupfs"
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
	held            map[string]bool // cgroups below which something is left of removed ones
	young           map[string]bool // cgroups that were made after all that ended
	err             error
}

func (g fakeCgroups) Lives(id uint64) (bool, error) {
	if g.unknown[id] {
		return false, errors.New("it cannot be found out")
	}
	return g.living[id], nil
}

func (g fakeCgroups) Sockets() (map[uint64]bool, error) { return g.sockets, g.err }

func (g fakeCgroups) Dying(cgroup string) (id uint64, some bool, err error) {
	if g.young[cgroup] {
		return 1000, false, g.err
	}
	return 1, g.held[cgroup], g.err
}

// A workload that ended stays in the table until a later look proves that nothing holds its cgroup.
func TestEndedStayUntilProven(t *testing.T) {
	in := func(path string, id uint64) policy.Workload {
		return policy.Workload{Kind: policy.KindCgroup, Cgroup: policy.Cgroup{Path: path, ID: id}}
	}
	enforced := []policy.Workload{in("a/one", 11), in("a/two", 12), in("b/three", 13), in("four", 14)}
	living := map[uint64]bool{11: true}
	set := func(cgroups ...string) map[string]bool {
		all := map[string]bool{}
		for _, c := range cgroups {
			all[c] = true
		}
		return all
	}
	tests := []struct {
		name  string
		world fakeCgroups
		left  []uint64 // that ended
	}{
		{"nothing is left", fakeCgroups{}, nil},
		{"something is left", fakeCgroups{held: set("", "a", "b")}, []uint64{12, 13, 14}},
		{"something is left, but not below one", fakeCgroups{held: set("", "a")}, []uint64{12, 14}},
		{"something was left, but not now", fakeCgroups{held: set("a", "b")}, nil},
		{"a new cgroup has the name of one above", fakeCgroups{held: set(""), young: set("a", "b")},
			[]uint64{12, 13, 14}},
		{"it cannot be found out", fakeCgroups{err: errors.New("no")}, []uint64{12, 13, 14}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.world.living = living
			e := &Enforcer{cgroups: tt.world, now: time.Now, loaded: loaded{workloads: newRoster(enforced, nil)}}
			look := func() (left []uint64, found []condition.Condition) {
				d, found := e.deltaTo(policyset.Set{}, workload.Snapshot{Workloads: enforced[:1]})
				e.loaded.workloads.apply(&d)
				e.ending.checked = time.Time{} // some time goes by
				return slices.Sorted(maps.Keys(e.loaded.workloads.ended)), found
			}
			for range 2 {
				if left, _ := look(); !slices.Equal(left, []uint64{12, 13, 14}) {
					t.Errorf("at first %v ended", left)
				}
			}
			left, found := look()
			if !slices.Equal(left, tt.left) {
				t.Errorf("at a later look %v stay, want %v", left, tt.left)
			}
			if unknown := slices.Contains(codesOf(found), condition.EndedUnknown); unknown != (tt.world.err != nil) {
				t.Errorf("conditions %v", found)
			}
			if _, runs := e.loaded.workloads.of(11); !runs {
				t.Error("what runs is gone")
			}
		})
	}
}

// A problem with workloads that ended is told once, however often single cgroups are looked at, and until the kernel
// answered.
func TestEndedUnknownIsToldOnce(t *testing.T) {
	w := policy.Workload{Kind: policy.KindRun, Cgroup: policy.Cgroup{Path: "thole.slice/a", ID: 11}}
	other := condition.Condition{Code: condition.ImageLabel, Text: "another"}
	e := &Enforcer{cgroups: fakeCgroups{err: errors.New("no")}, now: time.Now, conditions: []condition.Condition{other},
		loaded: loaded{workloads: newRoster([]policy.Workload{w}, nil)}}
	look := func() []condition.Code {
		d, found := e.deltaTo(policyset.Set{}, workload.Snapshot{Partial: true, Gone: []string{w.Cgroup.Path}})
		e.loaded.workloads.apply(&d)
		e.conditions = found
		e.ending.checked = time.Time{}
		return codesOf(found)
	}
	look() // it ends
	look() // and is one for the next look
	for range 3 {
		if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel, condition.EndedUnknown}) {
			t.Errorf("conditions %v", got)
		}
	}
	e.cgroups = fakeCgroups{}
	if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel}) {
		t.Errorf("after the kernel answered: %v", got)
	}
}

// Of too many workloads that ended, the oldest become unknown, first those of which no socket is listed. Of too many
// that are unknown, the oldest leave the table, and that is a problem, until nothing is left.
func TestTooManyEnded(t *testing.T) {
	const slice = 5
	var next uint64 = 100
	e := &Enforcer{cgroups: fakeCgroups{held: map[string]bool{"": true, "job": true, cgroupfs.TholeSlice: true},
		sockets: map[uint64]bool{100: true}}, now: time.Now,
		log: slog.New(slog.DiscardHandler), loaded: loaded{workloads: newRoster(nil, nil),
			containers: state.Containers{Parents: []policy.Cgroup{{Path: cgroupfs.TholeSlice, ID: slice}}}}}
	running := workload.Snapshot{Parents: e.loaded.containers.Parents}
	look := func() (d delta) {
		d, _ = e.deltaTo(policyset.Set{}, running)
		p := plan{delta: d, unknown: e.unknownAfter(&d)}
		e.adoptEnding(&p)
		e.loaded.workloads.apply(&d)
		e.ending.checked = time.Time{} // some time goes by
		return d
	}
	end := func(n int, under string) {
		var list []policy.Workload
		for range n {
			list = append(list, policy.Workload{Cgroup: policy.Cgroup{Path: fmt.Sprint(under, "/", next), ID: next}})
			next++
		}
		e.loaded.workloads.apply(&delta{began: list})
		look()
	}
	end(maxEnded, "job")
	if d := look(); !d.empty() || e.loaded.workloads.endedCount() != maxEnded {
		t.Fatalf("at the limit %d ended, %d are unknown", e.loaded.workloads.endedCount(), len(e.ending.unknown))
	}
	end(1, "job")
	look()
	left := maxEnded - lostAtOnce
	if n := e.loaded.workloads.endedCount(); n != left || len(e.ending.unknown) != lostAtOnce+1 {
		t.Fatalf("beyond the limit %d keep their labels, %d are unknown", n, len(e.ending.unknown))
	}
	if first := e.ending.unknown[0].ID; first != 101 {
		t.Errorf("%d is the first to become unknown", first)
	}
	if _, kept := e.loaded.workloads.of(100); !kept {
		t.Error("one of which a socket is listed became unknown before others")
	}

	unknown := len(e.ending.unknown)
	end(2*maxEnded, cgroupfs.TholeSlice)
	end(maxEnded, cgroupfs.TholeSlice)
	look()
	if more := len(e.ending.unknown) - unknown; more != left {
		t.Errorf("%d more are unknown; want the %d others: thole run's are below a slice that is closed", more, left)
	}
	running.Parents = nil
	look()
	if last := e.ending.unknown[len(e.ending.unknown)-1]; last.ID != slice {
		t.Errorf("the slice is gone, and was closed; the last that is unknown is %+v", last)
	}

	for len(e.ending.conditions()) == 0 {
		end(16*maxEnded, "job")
		look()
	}
	if n := len(e.ending.unknown); n != maxUnknown || e.ending.dropped == 0 {
		t.Errorf("%d are unknown, %d were dropped", n, e.ending.dropped)
	}
	e.cgroups = fakeCgroups{}
	for len(e.ending.unknown)+e.loaded.workloads.endedCount()+len(e.ending.conditions()) > 0 {
		if d := look(); d.empty() {
			t.Fatalf("nothing is left of what ended, and these stay: %d, %d; %v", e.loaded.workloads.endedCount(),
				len(e.ending.unknown), e.ending.conditions())
		}
	}
}

// Of one user's runs that ended, fewer keep their labels: they count towards what the user may run.
func TestTooManyEndedOfAUser(t *testing.T) {
	e := &Enforcer{cgroups: fakeCgroups{held: map[string]bool{"": true, cgroupfs.TholeSlice: true},
		sockets: map[uint64]bool{100: true}}, now: time.Now, log: slog.New(slog.DiscardHandler),
		loaded: loaded{workloads: newRoster(nil, nil),
			containers: state.Containers{Parents: []policy.Cgroup{{Path: cgroupfs.TholeSlice, ID: 5}}}}}
	next := uint64(100)
	end := func(uid string, n int) {
		var list []policy.Workload
		for range n {
			list = append(list, policy.Workload{Kind: policy.KindRun, Facts: policy.Labels{workload.FactUID: uid},
				Cgroup: policy.Cgroup{Path: fmt.Sprint(cgroupfs.TholeSlice, "/", next), ID: next}})
			next++
		}
		e.loaded.workloads.apply(&delta{began: list})
		for range 2 { // they end, and are counted
			d, _ := e.deltaTo(policyset.Set{}, workload.Snapshot{Parents: e.loaded.containers.Parents})
			e.loaded.workloads.apply(&d)
		}
	}
	end("1000", maxEndedOfUser)
	end("1001", maxEndedOfUser)
	end("0", 2*maxEndedOfUser)
	if n := e.loaded.workloads.endedCount(); n != 4*maxEndedOfUser {
		t.Fatalf("at the limit %d ended keep their labels", n)
	}
	end("1000", 1)
	if n := e.loaded.workloads.endedCount(); n != 3*maxEndedOfUser+maxEndedOfUser/2 {
		t.Errorf("beyond the limit %d ended keep their labels", n)
	}
	for id, kept := range map[uint64]bool{100: true, 101: false, next - 1: true, 100 + maxEndedOfUser: true} {
		if _, is := e.loaded.workloads.of(id); is != kept {
			t.Errorf("%d keeps its labels: %t", id, is)
		}
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
