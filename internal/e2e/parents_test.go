package e2e

import (
	"net/netip"
	"slices"
	"testing"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/policies"
)

// Below a parent of containers, what is not known yet reaches nobody and nobody
// reaches it, silently; what is known to be unlabelled is free.
func TestUnknownContainersAreClosed(t *testing.T) {
	n := newNode(t)
	parent := func(path string) policy.Cgroup { return policy.Cgroup{Path: path, ID: n.MkCgroup(path)} }
	n.more.Parents = []policy.Cgroup{parent("docker")}
	web := probe.Start(n.label("docker/web", app("web")), "web")
	web2 := probe.Start(n.label("thole.slice/web2", app("web")), "web2")
	n.more.Unlabelled = []policy.Unlabelled{{Cgroup: parent("docker/plain")}}
	plain := probe.Start(n.In("docker/plain/nested"), "plain")
	unknown := probe.Start(n.In("docker/new"), "unknown")
	free := probe.Start(n.In("elsewhere"), "free")
	n.enforce(policies.Default)

	web.Listen("tcp", "127.0.0.1:80")
	plain.Listen("tcp", "127.0.0.1:81")
	unknown.Listen("tcp", "127.0.0.1:82")
	free.Listen("tcp", "127.0.0.1:53")
	silent := func(what string, v probe.Verdict) {
		t.Helper()
		if v.Outcome != probe.Silent {
			t.Errorf("%s: %s, want silence", what, v)
		}
	}
	allowed(t, "a known container", web2.TCP("127.0.0.1:80"))
	denied(t, "a known container, from unlabelled", free.TCP("127.0.0.1:80"))
	denied(t, "a known container, from an unlabelled one", plain.TCP("127.0.0.1:80"))
	allowed(t, "an unlabelled container", free.TCP("127.0.0.1:81"))
	denied(t, "an unlabelled container, from a workload", web.TCP("127.0.0.1:81"))
	allowed(t, "unlabelled, from an unlabelled container", plain.TCP("127.0.0.1:53"))
	silent("to an unknown container, from unlabelled", free.TCP("127.0.0.1:82"))
	silent("to an unknown container, from a workload", web.TCP("127.0.0.1:82"))
	silent("from an unknown container to unlabelled", unknown.TCP("127.0.0.1:53"))
	silent("from an unknown container to a workload", unknown.TCP("127.0.0.1:80"))
	u := unknown.OpenUDP("udp", "127.0.0.1:82")
	silent("udp to an unknown container", free.UDP("127.0.0.1:82", u))
	denied(t, "udp from an unknown container", u.Try("127.0.0.1:83", free.OpenUDP("udp", "127.0.0.1:83")))

	// When its labels are known it is a workload like any other.
	n.label("docker/new", app("web"))
	n.enforce(policies.Default)
	allowed(t, "known now", unknown.TCP("127.0.0.1:80"))
	allowed(t, "known now", web.TCP("127.0.0.1:82"))
	denied(t, "known now, from unlabelled", free.TCP("127.0.0.1:82"))
}

// An unlabelled container in a bound slice is that slice's.
func TestUnlabelledContainerInABoundSlice(t *testing.T) {
	n := newNode(t)
	n.label("docker.slice", app("web"))
	n.more.Parents = []policy.Cgroup{{Path: "docker.slice", ID: n.MkCgroup("docker.slice")}}
	n.more.Unlabelled = []policy.Unlabelled{{Cgroup: policy.Cgroup{Path: "docker.slice/plain",
		ID: n.MkCgroup("docker.slice/plain")}}}
	plain := probe.Start(n.In("docker.slice/plain"), "plain")
	web := probe.Start(n.label("thole.slice/web", app("web")), "web")
	n.enforce(policies.Default)
	plain.Listen("tcp", "127.0.0.1:80")
	allowed(t, "the slice's labels", web.TCP("127.0.0.1:80"))
	denied(t, "unlabelled", probe.Start(n.In("elsewhere"), "free").TCP("127.0.0.1:80"))
}

// A container with a network of its own is known by its address on its bridge.
func TestContainersOnABridge(t *testing.T) {
	n := newNode(t)
	bridge := netip.MustParsePrefix("172.17.0.1/16")
	container := nstest.New(t)
	device, veth := nstest.Link(n.Host, bridge.String(), "fd00:17::1/64", container, "172.17.0.2/16", "fd00:17::2/64")
	container.Shell("ip addr add 172.17.0.3/16 dev " + veth + "; ip addr add 172.17.0.4/16 dev " + veth +
		"; ip addr add fd00:17::4/64 dev " + veth + " nodad")
	web := probe.Start(n.label("thole.slice/web", app("web")), "web")
	n.label("docker/a", app("web"))
	own := func(addresses ...string) []policy.Network {
		network := policy.Network{Bridge: device}
		for _, a := range addresses {
			network.Addresses = append(network.Addresses, netip.MustParseAddr(a))
		}
		return []policy.Network{network}
	}
	n.workloads[1].Own = own("172.17.0.2", "fd00:17::2")
	n.more.Bridges = []policy.Bridge{{Name: device, Networks: []netip.Prefix{bridge.Masked()}}}
	n.more.Unlabelled = []policy.Unlabelled{{Cgroup: policy.Cgroup{Path: "docker/b", ID: n.MkCgroup("docker/b")},
		Own: own("172.17.0.3")}}
	n.enforce(slices.Concat(policies.Default, policyForDNS))

	inside := probe.Start(container.In("app"), "inside")
	from := func(source, to string) probe.Verdict {
		return inside.TCPTo(probe.Target{From: join(source, 0), To: to})
	}
	web.Listen("tcp", "[::]:80")
	allowed(t, "the same labels", from("172.17.0.2", "172.17.0.1:80"))
	allowed(t, "the same labels over IPv6", from("fd00:17::2", "[fd00:17::1]:80"))
	if v := from("172.17.0.3", "172.17.0.1:80"); v.Outcome != probe.Refused {
		t.Errorf("an unlabelled container: %s, want an answer at once: it is on this node", v)
	}
	denied(t, "one that is not known", from("172.17.0.4", "172.17.0.1:80"))
	denied(t, "one that is not known, over IPv6", from("fd00:17::4", "[fd00:17::1]:80"))

	dns := probe.Start(n.label("thole.slice/dns", app("dns")), "dns")
	n.enforce(slices.Concat(policies.Default, policyForDNS))
	dns.Listen("tcp", "[::]:53")
	allowed(t, "unlabelled, where that is allowed", from("172.17.0.3", "172.17.0.1:53"))
	denied(t, "one that is not known, where any is allowed", from("172.17.0.4", "172.17.0.1:53"))
}

var policyForDNS = []byte(`
---
apiVersion: thole/v1
kind: Policy
metadata: {name: dns}
spec:
  selector: {matchLabels: {app: dns}}
  ingress:
  - from: [{any: true}]
`)
