package daemon

import (
	"net/netip"
	"testing"
	"time"

	"thole/compiler/policy"
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
	type state struct {
		workloads []policy.Workload
		containers
	}
	for _, tt := range []struct {
		name        string
		before, now state
		want        bool
	}{
		{"a container begins where it was closed",
			state{nil, containers{Parents: parents}},
			state{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, false},
		{"a container begins where it was free",
			state{},
			state{workloads: []policy.Workload{container("system.slice/docker-a.scope", 2)}}, true},
		{"a container begins together with its parent",
			state{},
			state{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"an unlabelled container begins",
			state{nil, containers{Parents: parents}},
			state{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}}, false},
		{"an unlabelled container ends",
			state{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 3)}}},
			state{nil, containers{Parents: parents}}, false},
		{"an unlabelled container lives, and is not known any more",
			state{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}},
			state{nil, containers{Parents: parents}}, true},
		{"an unlabelled container is labelled",
			state{nil, containers{Parents: parents, Unlabelled: []policy.Unlabelled{free("docker/a", 2)}}},
			state{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"a container is connected",
			state{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}},
			state{[]policy.Workload{container("docker/a", 2, network)}, containers{Parents: parents}}, false},
		{"a container is disconnected",
			state{[]policy.Workload{container("docker/a", 2, network)}, containers{Parents: parents}},
			state{[]policy.Workload{container("docker/a", 2)}, containers{Parents: parents}}, true},
		{"a container with an address ends",
			state{[]policy.Workload{container("docker/a", 3, network)}, containers{Parents: parents}},
			state{nil, containers{Parents: parents}}, true},
		{"an unlabelled container with an address ends",
			state{nil, containers{Parents: parents,
				Unlabelled: []policy.Unlabelled{{Cgroup: cgroup("docker/a", 3), Own: []policy.Network{network}}}}},
			state{nil, containers{Parents: parents}}, true},
		{"a bridge begins", state{}, state{nil, containers{Bridges: []policy.Bridge{{Name: "docker0"}}}}, true},
		{"a bridge ends", state{nil, containers{Bridges: []policy.Bridge{{Name: "docker0"}}}}, state{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &enforcer{cgroups: graves{living: map[uint64]bool{1: true, 2: true}}, now: time.Now,
				loaded: loaded{inSync: true, containers: tt.before.containers,
					workloads: newRoster(tt.before.workloads, tt.before.Unlabelled)}}
			d, _ := e.deltaTo(policySet{}, workload.Snapshot{Workloads: tt.now.workloads, Unlabelled: tt.now.Unlabelled,
				Parents: tt.now.Parents, Bridges: tt.now.Bridges})
			if d.takes != tt.want {
				t.Errorf("it takes something away: %t, want %t", d.takes, tt.want)
			}
		})
	}
}

// When numbers come round, one that became free in this epoch is not given again: the table may remember what was
// allowed to its last owner. (Where none is left, the epoch changes: compiler, TestNumbersFreed.)
func TestNumberGivenAgain(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	stays := b.run("stays", map[string]string{"app": "web"})
	first := b.run("first", map[string]string{"app": "first"})
	epoch := b.status().Epoch
	number := func() (n uint32) {
		b.ordered(func(e *enforcer) { n = e.loaded.numbers.Next - 1 })
		return n
	}
	was := number()
	first.end()
	b.until("the end of its class", func() bool { return b.status().Classes == 1 })
	if s := b.status(); s.Epoch != epoch {
		t.Fatalf("the end of a class began epoch %d", s.Epoch)
	}
	second := b.run("second", map[string]string{"app": "second"})
	if s := b.status(); s.Epoch != epoch || number() == was {
		t.Fatalf("a new class has number %d in epoch %d, which another had before", number(), s.Epoch)
	}
	second.end()
	b.until("the end of the second class", func() bool { return b.status().Classes == 1 })
	b.ordered(func(e *enforcer) { e.loaded.result.Numbers.Next = was })
	third := b.run("third", map[string]string{"app": "third"})
	if s := b.status(); s.Epoch != epoch || number() <= was+1 {
		t.Errorf("number %d was given in epoch %d, in which others had it", number(), s.Epoch)
	}
	for _, p := range []*process{stays, third} {
		p.end()
	}
}
