package docker

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// The engine says which containers share a network namespace.
func TestSharing(t *testing.T) {
	joins := func(letter, network string, labels map[string]string) container {
		return container{id: idOf(letter), name: "name-" + letter, network: network, labels: labels}
	}
	web, none := map[string]string{"app": "web"}, map[string]string(nil)
	pod := map[string]string{"app": "pod", "io.kubernetes.docker.type": "podsandbox"}
	of := func(letter string) policy.Sharing { return policy.Sharing{Namespace: "docker/" + idOf(letter)} }
	infra := func(letter string) policy.Sharing {
		s := of(letter)
		s.Infra = true
		return s
	}
	for _, tt := range []struct {
		name       string
		containers []container
		want       map[string]policy.Sharing // by name; none: it shares nothing
	}{
		{"nobody", []container{joins("a", "bridge", web), joins("b", "bridge", none)}, nil},
		{"labelled with unlabelled",
			[]container{joins("a", "bridge", web), joins("b", "container:"+idOf("a"), none)},
			map[string]policy.Sharing{"name-a": of("a"), "name-b": of("a")}},
		{"unlabelled with labelled, by its name",
			[]container{joins("a", "shop", none), joins("b", "container:name-a", web)},
			map[string]policy.Sharing{"name-a": of("a"), "name-b": of("a")}},
		{"one after the other", []container{joins("a", "container:"+idOf("b"), web),
			joins("b", "container:"+idOf("c"), web), joins("c", "bridge", web), joins("d", "bridge", web)},
			map[string]policy.Sharing{"name-a": of("c"), "name-b": of("c"), "name-c": of("c")}},
		{"the host network", []container{joins("a", "host", web), joins("b", "container:"+idOf("a"), web)}, nil},
		{"one that the engine does not have", []container{joins("b", "container:"+idOf("a"), web)}, nil},
		{"each other", []container{joins("a", "container:"+idOf("b"), web), joins("b", "container:"+idOf("a"), web)},
			nil},
		{"a pod", []container{joins("a", "bridge", pod), joins("b", "container:"+idOf("a"), web)},
			map[string]policy.Sharing{"name-a": infra("a"), "name-b": of("a")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, docker := newDockerTree(t)
			for _, c := range tt.containers {
				docker.put(c)
				tr.in("docker/" + c.id)
			}
			s := tr.until("the containers", nil, func(s workload.Snapshot) bool {
				return len(s.Workloads)+len(s.Unlabelled) == len(tt.containers)
			})
			got := map[string]policy.Sharing{}
			for _, w := range s.Workloads {
				got[w.Name] = w.Sharing
			}
			for _, u := range s.Unlabelled {
				got[u.Name] = u.Sharing
			}
			for name, sharing := range got {
				if sharing == (policy.Sharing{}) {
					delete(got, name)
				}
			}
			if tt.want == nil {
				tt.want = map[string]policy.Sharing{}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// While a container of unknown labels is in a network namespace, its addresses belong to nobody who is known.
func TestSharingWithARefusedContainer(t *testing.T) {
	tr, docker := newDockerTree(t)
	address := []netip.Addr{netip.MustParseAddr("172.17.0.2")}
	docker.set(func() { docker.networks = []bridgeNetwork{{id: "n0", bridge: "docker0"}} })
	owner := containerWith("a", "app", "web")
	owner.network = "bridge"
	p := tr.in("docker/"+owner.id).Start("sleep", "infinity")
	owner.details = &details{pid: p.Pid, addresses: map[string][]netip.Addr{"n0": address}}
	docker.put(owner)
	before := tr.until("the network", nil, attached)

	refused := containerWith("b", "app", "db")
	refused.network, refused.image = "container:"+owner.id, removedImage
	docker.put(refused)
	tr.in("docker/" + refused.id)
	tr.until("the network to be closed", nil, func(s workload.Snapshot) bool {
		return len(s.Workloads) == 1 && s.Workloads[0].Own == nil && len(s.Conditions) == 1
	})

	tr.remove("docker/" + refused.id)
	after := tr.until("the network", nil, attached)
	if diff := cmp.Diff(before.Workloads, after.Workloads, byValue); diff != "" {
		t.Errorf("when the other has ended (-before +after)\n%s", diff)
	}
}

// Until the engine answers, containers share what an earlier daemon found.
func TestSharingIsRecalled(t *testing.T) {
	tr := newTree(t)
	tr.docker = newFakeEngine(tr, &fakeEngine{away: errAway})
	sharing := policy.Sharing{Namespace: "docker/" + idOf("a")}
	tr.docker.Recall(workload.Snapshot{
		Workloads: []policy.Workload{{Name: "name-a", Kind: policy.KindContainer, Labels: policy.Labels{"app": "web"},
			Cgroup: policy.Cgroup{Path: "docker/" + idOf("a"), ID: 1}, Sharing: sharing}},
		Unlabelled: []policy.Unlabelled{{Name: "name-b", Sharing: sharing,
			Cgroup: policy.Cgroup{Path: "docker/" + idOf("b"), ID: 2}}},
	})
	tr.start()
	tr.in("docker/" + idOf("a"))
	tr.in("docker/" + idOf("b"))
	s := tr.until("both", nil, func(s workload.Snapshot) bool { return len(s.Workloads)+len(s.Unlabelled) == 2 })
	if s.Workloads[0].Sharing != s.Unlabelled[0].Sharing || s.Workloads[0].Sharing.Namespace == "" {
		t.Errorf("%+v and %+v, want them to share a network", s.Workloads[0].Sharing, s.Unlabelled[0].Sharing)
	}
}
