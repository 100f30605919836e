package reference

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/compiler/reference/policyyaml"
)

// The workloads of the table tests. All but box are on the host network.
var (
	web    = workload("web", policy.Labels{"app": "web", "env": "prod"})
	web2   = workload("web2", policy.Labels{"app": "web", "env": "prod"})
	db     = workload("db", policy.Labels{"app": "db", "env": "prod"})
	devWeb = workload("dev web", policy.Labels{"app": "web", "env": "dev"})
	bare   = workload("bare", policy.Labels{"note": ""})
	box    = &policy.Workload{
		Name: "box", Kind: policy.KindAddress, Address: netip.MustParseAddr("172.17.0.2"),
		Labels: policy.Labels{"app": "box"}, Facts: policy.Labels{"com.docker.compose.service": "box"},
	}
)

func workload(name string, labels policy.Labels) *policy.Workload {
	return &policy.Workload{
		Name: name, Kind: policy.KindRun, Labels: labels, Facts: policy.Labels{"thole/kind": "run"},
		Cgroup: policy.Cgroup{Path: "thole.slice/" + name, ID: 1},
	}
}

func end(w *policy.Workload) Endpoint { return Endpoint{Workload: w} }

func world(address string) Endpoint { return Endpoint{Address: netip.MustParseAddr(address)} }

func tcp(from, to Endpoint, port uint16) Connection {
	return Connection{From: from, To: to, Protocol: protocolTCP, Port: port}
}

func icmp(from, to Endpoint, protocol, kind uint8) Connection {
	return Connection{From: from, To: to, Protocol: protocol, ICMPType: kind, IPv6: protocol == protocolICMPv6}
}

func toGroup(from Endpoint, group string) Connection {
	address := netip.MustParseAddr(group)
	return Connection{From: from, Protocol: protocolUDP, Port: 5353, Group: address, IPv6: address.Is6()}
}

// has selects workloads by pairs of key and value.
func has(pairs ...string) policy.Selector {
	var s policy.Selector
	for i := 0; i < len(pairs); i += 2 {
		s.Requirements = append(s.Requirements, term(pairs[i], policy.In, pairs[i+1]))
	}
	return s
}

func term(key string, operator policy.Operator, values ...string) policy.Requirement {
	return policy.Requirement{Key: key, Operator: operator, Values: values}
}

func workloads(s policy.Selector) policy.Peer { return policy.Peer{Workloads: &s} }

func same(keys ...string) policy.Peer {
	return policy.Peer{SameLabels: &policy.SameLabels{All: keys == nil, Keys: keys}}
}

func cidr(prefix string, except ...string) policy.Peer {
	c := &policy.CIDR{Prefix: netip.MustParsePrefix(prefix)}
	for _, e := range except {
		c.Except = append(c.Except, netip.MustParsePrefix(e))
	}
	return policy.Peer{CIDR: c}
}

// anything and unlabelled are the two peers without parameters.
var (
	anything   = policy.Peer{Any: true}
	unlabelled = policy.Peer{Unlabelled: true}
)

// peersOnly is a rule for all ports, portsOnly one for all peers.
func peersOnly(peers ...policy.Peer) policy.Rule { return policy.Rule{Peers: peers} }
func portsOnly(ports ...policy.Port) policy.Rule { return policy.Rule{Ports: ports} }

func tcpPorts(from, to uint16) policy.Port {
	return policy.Port{Protocol: policy.TCP, From: from, To: to}
}

// allow isolates and allows what rules match, deny only denies.
func allow(rules ...policy.Rule) policy.Side { return policy.Side{Isolates: true, Allow: rules} }
func deny(rules ...policy.Rule) policy.Side  { return policy.Side{Deny: rules} }

func ingress(name string, s policy.Selector, side policy.Side) policy.Policy {
	return policy.Policy{Name: name, Selector: s, Ingress: side}
}

func egress(name string, s policy.Selector, side policy.Side) policy.Policy {
	return policy.Policy{Name: name, Selector: s, Egress: side}
}

func audited(p policy.Policy) policy.Policy {
	p.Audit = true
	return p
}

func set(policies ...policy.Policy) []policy.Policy { return policies }

var (
	allowed = Verdict{Allowed: true}
	denied  = Verdict{}
)

func recorded(by string) Verdict { return Verdict{Allowed: true, WouldDeny: by} }

// A judgement is one row of a table: what policies mean for a connection.
type judgement struct {
	name       string
	policies   []policy.Policy
	connection Connection
	want       Verdict
}

func (j judgement) run(t *testing.T) {
	t.Run(j.name, func(t *testing.T) {
		if diff := cmp.Diff(j.want, Judge(Set{Policies: j.policies}, j.connection)); diff != "" {
			t.Errorf("%s\n%s(-want +got)\n%s", j.connection, policyyaml.YAML(j.policies), diff)
		}
	})
}

// TestFiveQuestions has the questions of docs/POLICY.md with their answers.
func TestFiveQuestions(t *testing.T) {
	p1 := ingress("p1", has("app", "db"), allow(peersOnly(workloads(has("app", "web")))))
	p2 := ingress("p2", has("app", "db"), deny(peersOnly(workloads(has("env", "dev")))))
	tiers := ingress("tiers", has(), allow(peersOnly(same("app", "tier"))))
	everywhere := set(egress("everywhere", has("app", "web"), allow(policy.Rule{
		Peers: []policy.Peer{cidr("0.0.0.0/0")}, Ports: []policy.Port{tcpPorts(80, 80)},
	})))
	local := egress("local", has("app", "web"), allow(peersOnly(unlabelled)))
	all := egress("all", has("app", "web"), allow(peersOnly(anything)))
	a := ingress("a", has("app", "web"), allow(portsOnly(tcpPorts(80, 80))))
	b := audited(ingress("b", has("app", "web"), allow(portsOnly(tcpPorts(443, 443)))))
	bDenies := audited(ingress("b", has("app", "web"), deny(portsOnly(tcpPorts(80, 80)))))
	container := end(box)

	for _, test := range []judgement{
		{"1: web to db", set(p1, p2), tcp(end(web), end(db), 5432), allowed},
		{"1: dev web to db", set(p1, p2), tcp(end(devWeb), end(db), 5432), denied},
		{"1: bare to db", set(p1, p2), tcp(end(bare), end(db), 5432), denied},
		{"1: P2 alone, bare", set(p2), tcp(end(bare), end(db), 5432), allowed},
		{"1: P2 alone, unlabelled", set(p2), tcp(Endpoint{}, end(db), 5432), allowed},
		{"1: P2 alone, the world", set(p2), tcp(world("192.0.2.1"), end(db), 5432), allowed},
		{"1: P2 alone, dev web", set(p2), tcp(end(devWeb), end(db), 5432), denied},

		{"2: both without tier", set(tiers), tcp(end(web), end(web2), 80), denied},

		{"3: the world", everywhere, tcp(end(web), world("192.0.2.1"), 80), allowed},
		{"3: the world, another port", everywhere, tcp(end(web), world("192.0.2.1"), 81), denied},
		{"3: 127.0.0.1", everywhere, tcp(end(web), Endpoint{}, 80), denied},
		{"3: 127.0.0.1 by unlabelled", set(local), tcp(end(web), Endpoint{}, 80), allowed},
		{"3: 127.0.0.1 by any", set(all), tcp(end(web), Endpoint{}, 80), allowed},
		{"3: another workload", everywhere, tcp(end(web), end(db), 80), denied},
		{"3: another workload with an address", everywhere, tcp(end(web), container, 80), denied},

		{"4: 80", set(a, b), tcp(Endpoint{}, end(web), 80), allowed},
		{"4: 443", set(a, b), tcp(Endpoint{}, end(web), 443), denied},
		{"4: 80 with an audited deny", set(a, bDenies), tcp(Endpoint{}, end(web), 80), recorded("b")},

		// An unlabelled container is no workload, wherever it is.
		{"5: from unlabelled", set(ingress("p", has(), allow(peersOnly(unlabelled)))), tcp(Endpoint{}, end(web), 80),
			allowed},
		{"5: from a workload", set(ingress("p", has(), allow(peersOnly(unlabelled)))), tcp(end(db), end(web), 80),
			denied},
		{"5: from the world", set(ingress("p", has(), allow(peersOnly(unlabelled)))),
			tcp(world("192.0.2.1"), end(web), 80), denied},
	} {
		test.run(t)
	}
}

func TestIsolation(t *testing.T) {
	nothing := ingress("nothing", has("app", "db"), allow())
	fromWeb := ingress("web", has("app", "db"), allow(peersOnly(workloads(has("app", "web")))))
	silent := policy.Policy{Name: "silent", Selector: has()}

	for _, test := range []judgement{
		{"no policy", nil, tcp(end(web), end(db), 80), allowed},
		{"an absent key says nothing", set(silent), tcp(end(web), end(db), 80), allowed},
		{"[] allows nothing", set(nothing), tcp(end(web), end(db), 80), denied},
		{"[] isolates only whom it selects", set(nothing), tcp(end(db), end(web), 80), allowed},
		{"ingress says nothing about egress", set(nothing), tcp(end(db), Endpoint{}, 80), allowed},
		{"what some policy admits", set(nothing, fromWeb), tcp(end(web), end(db), 80), allowed},
		{"what no policy admits", set(nothing, fromWeb), tcp(end(bare), end(db), 80), denied},
		{
			"egress allows, ingress does not",
			set(nothing, egress("out", has("app", "web"), allow(policy.Rule{}))),
			tcp(end(web), end(db), 80), denied,
		},
		{
			"ingress allows, egress does not",
			set(fromWeb, egress("out", has("app", "web"), allow())),
			tcp(end(web), end(db), 80), denied,
		},
		{
			"both allow",
			set(fromWeb, egress("out", has("app", "web"), allow(policy.Rule{}))),
			tcp(end(web), end(db), 80), allowed,
		},
		{
			"an allow rule of a policy that does not select",
			set(nothing, ingress("other", has("app", "web"), allow(policy.Rule{}))),
			tcp(end(web), end(db), 80), denied,
		},
		{"deny isolates nothing", set(ingress("d", has(), deny(portsOnly(tcpPorts(22, 22))))),
			tcp(end(web), end(db), 80), allowed},
		{
			"deny beats every allow",
			set(fromWeb, ingress("d", has(), deny(policy.Rule{}))),
			tcp(end(web), end(db), 80), denied,
		},
		{"an egress deny", set(egress("d", has("app", "web"), deny(policy.Rule{}))), tcp(end(web), end(db), 80),
			denied},
		{"an egress deny is not of the destination", set(egress("d", has("app", "db"), deny(policy.Rule{}))),
			tcp(end(web), end(db), 80), allowed},
		{"unlabelled is free", set(egress("e", has(), allow()), ingress("i", has(), allow())),
			tcp(Endpoint{}, Endpoint{}, 80), allowed},
		{"unlabelled to the world", set(egress("e", has(), allow())), tcp(Endpoint{}, world("192.0.2.1"), 80), allowed},
		{"to itself, whatever is denied", set(ingress("i", has(), deny(policy.Rule{})), egress("e", has(), allow())),
			tcp(end(web), end(web), 80), allowed},
		{"to itself is not recorded", set(audited(ingress("i", has(), deny(policy.Rule{})))),
			tcp(end(web), end(web), 80), allowed},
		{"equal labels are not the same workload", set(ingress("i", has(), allow())), tcp(end(web), end(web2), 80),
			denied},
	} {
		test.run(t)
	}
}

func TestSelectors(t *testing.T) {
	match := func(terms ...policy.Requirement) []policy.Policy {
		s := policy.Selector{Requirements: terms}
		return set(ingress("p", has("app", "db"), allow(peersOnly(workloads(s)))))
	}
	fromWeb, fromBare, fromBox := tcp(end(web), end(db), 80), tcp(end(bare), end(db), 80), tcp(end(box), end(db), 80)

	for _, test := range []judgement{
		{"{} selects every workload", match(), fromBare, allowed},
		{"{} selects no stranger", match(), tcp(world("192.0.2.1"), end(db), 80), denied},
		{"{} selects nothing unlabelled", match(), tcp(Endpoint{}, end(db), 80), denied},
		{"{} selects containers with an address", match(), fromBox, allowed},
		{"In, listed", match(term("app", policy.In, "db", "web")), fromWeb, allowed},
		{"In, not listed", match(term("app", policy.In, "db")), fromWeb, denied},
		{"In, absent", match(term("app", policy.In, "db")), fromBare, denied},
		{"In, an absent key is not the empty value", match(term("app", policy.In, "")), fromBare, denied},
		{"In, the empty value", match(term("note", policy.In, "")), fromBare, allowed},
		{"NotIn, listed", match(term("app", policy.NotIn, "web")), fromWeb, denied},
		{"NotIn, not listed", match(term("app", policy.NotIn, "db")), fromWeb, allowed},
		{"NotIn, absent", match(term("app", policy.NotIn, "db")), fromBare, allowed},
		{"Exists", match(term("app", policy.Exists)), fromWeb, allowed},
		{"Exists, absent", match(term("app", policy.Exists)), fromBare, denied},
		{"DoesNotExist", match(term("app", policy.DoesNotExist)), fromWeb, denied},
		{"DoesNotExist, absent", match(term("app", policy.DoesNotExist)), fromBare, allowed},
		{"all terms", match(term("app", policy.In, "web"), term("env", policy.In, "prod")), fromWeb, allowed},
		{"one term of two", match(term("app", policy.In, "web"), term("env", policy.In, "dev")), fromWeb, denied},
		{"tools' labels are selectable", match(term("com.docker.compose.service", policy.In, "box")), fromBox, allowed},
		{"the daemon's labels are selectable", match(term("thole/kind", policy.In, "run")), fromWeb, allowed},
	} {
		test.run(t)
	}
}

func TestSameLabels(t *testing.T) {
	tool := workload("tool", policy.Labels{"app": "web", "env": "prod"})
	tool.Facts = policy.Labels{"com.docker.compose.service": "box"}
	more := workload("more", policy.Labels{"app": "web", "env": "prod", "tier": "1"})
	from := func(peer policy.Peer) []policy.Policy {
		return set(ingress("p", has(), allow(peersOnly(peer))))
	}

	for _, test := range []judgement{
		{"one key", from(same("app")), tcp(end(devWeb), end(web), 80), allowed},
		{"two keys, one differs", from(same("app", "env")), tcp(end(devWeb), end(web), 80), denied},
		{"absent at the peer", from(same("app")), tcp(end(bare), end(web), 80), denied},
		{"absent at the selected one", from(same("app")), tcp(end(web), end(bare), 80), denied},
		{"absent at both", from(same("ghost")), tcp(end(web2), end(web), 80), denied},
		{"absent is not the empty value", from(same("note")), tcp(end(web), end(bare), 80), denied},
		{"a tool's label", from(same("com.docker.compose.service")), tcp(end(tool), end(box), 80), allowed},
		{"unlabelled has no labels", from(same("app")), tcp(Endpoint{}, end(web), 80), denied},
		{"all", from(same()), tcp(end(web2), end(web), 80), allowed},
		{"all skips tools' labels", from(same()), tcp(end(tool), end(web), 80), allowed},
		{"all, a label more", from(same()), tcp(end(more), end(web), 80), denied},
		{"all, a label less", from(same()), tcp(end(web), end(more), 80), denied},
		{"all, another value", from(same()), tcp(end(devWeb), end(web), 80), denied},
		{"all is nothing unlabelled", from(same()), tcp(Endpoint{}, end(web), 80), denied},
		{
			"the selected one of an egress is the source",
			set(egress("p", has("app", "web"), allow(peersOnly(same("env"))))),
			tcp(end(web), end(db), 80), allowed,
		},
		{
			"a deny rule",
			set(ingress("p", has(), deny(peersOnly(same("env"))))),
			tcp(end(web), end(db), 80), denied,
		},
	} {
		test.run(t)
	}
}

func TestAddresses(t *testing.T) {
	from := func(peers ...policy.Peer) []policy.Policy {
		return set(ingress("p", has(), allow(peersOnly(peers...))))
	}
	sent := func(peers ...policy.Peer) []policy.Policy {
		return set(egress("p", has(), allow(peersOnly(peers...))))
	}
	noneIn, noneOut := set(ingress("p", has(), allow())), set(egress("p", has(), allow()))
	caller := func(address string) Connection { return tcp(world(address), end(web), 80) }
	group := func(address string) Connection { return toGroup(end(web), address) }

	for _, test := range []judgement{
		{"inside", from(cidr("192.0.2.0/24")), caller("192.0.2.255"), allowed},
		{"beside", from(cidr("192.0.2.0/24")), caller("192.0.3.0"), denied},
		{"inside, IPv6", from(cidr("2001:db8::/32")), caller("2001:db8:ffff::1"), allowed},
		{"IPv4 is not in ::/0", from(cidr("::/0")), caller("192.0.2.1"), denied},
		{"IPv6 is not in 0.0.0.0/0", from(cidr("0.0.0.0/0")), caller("2001:db8::1"), denied},
		{"except", from(cidr("0.0.0.0/0", "192.0.2.0/24")), caller("192.0.2.1"), denied},
		{"beside the exception", from(cidr("0.0.0.0/0", "192.0.2.0/24")), caller("192.0.3.1"), allowed},
		{"an exception of one peer is none of another", from(cidr("0.0.0.0/0", "192.0.2.0/24"), cidr("192.0.2.1/32")),
			caller("192.0.2.1"), allowed},
		{"a workload on this node, whatever its address", from(cidr("172.17.0.0/16")), tcp(end(box), end(web), 80),
			denied},
		{"unlabelled on this node", from(cidr("0.0.0.0/0")), tcp(Endpoint{}, end(web), 80), denied},
		{"the world is not unlabelled", from(unlabelled), caller("192.0.2.1"), denied},
		{"any: the world", from(anything), caller("192.0.2.1"), allowed},
		{"any: a workload", from(anything), tcp(end(db), end(web), 80), allowed},
		{"any: unlabelled", from(anything), tcp(Endpoint{}, end(web), 80), allowed},
		{"from absent: every peer", set(ingress("p", has(), allow(policy.Rule{}))), caller("192.0.2.1"), allowed},

		{"a group in a group range", sent(cidr("224.0.0.0/24")), group("224.0.0.251"), allowed},
		{"a group in 224.0.0.0/4", sent(cidr("224.0.0.0/4")), group("239.1.1.1"), allowed},
		{"a group excepted", sent(cidr("224.0.0.0/4", "239.0.0.0/8")), group("239.1.1.1"), denied},
		{"a group is not in 0.0.0.0/0", sent(cidr("0.0.0.0/0")), group("224.0.0.251"), denied},
		{"a group is not in 128.0.0.0/1", sent(cidr("128.0.0.0/1")), group("224.0.0.251"), denied},
		{"a group is not in 224.0.0.0/3", sent(cidr("224.0.0.0/3")), group("224.0.0.251"), denied},
		{"a group is not in ::/0", sent(cidr("::/0")), group("ff02::fb"), denied},
		{"a group in ff00::/8", sent(cidr("ff00::/8")), group("ff02::fb"), allowed},
		{"a group is in any", sent(anything), group("ff02::fb"), allowed},
		{"a group is not unlabelled", sent(unlabelled), group("ff02::fb"), denied},
		{"a group and no egress policy", nil, group("224.0.0.251"), allowed},
		{"receivers are not judged", noneIn, group("224.0.0.251"), allowed},
		{"a group from outside", from(), toGroup(world("192.0.2.1"), "224.0.0.251"), allowed},
		{"a group from unlabelled", noneOut, toGroup(Endpoint{}, "224.0.0.251"), allowed},
		{"broadcast, by cidr", sent(cidr("0.0.0.0/0")), group("255.255.255.255"), allowed},
		{"broadcast, denied", noneOut, group("255.255.255.255"), denied},
		{"broadcast from outside", from(cidr("192.0.2.0/24")), toGroup(world("198.51.100.1"), "255.255.255.255"),
			allowed},
	} {
		test.run(t)
	}
}

func TestPorts(t *testing.T) {
	udpRange := policy.Port{Protocol: policy.UDP, From: 8000, To: 8100}
	sctpPort := policy.Port{Protocol: policy.SCTP}
	everyICMP := policy.Port{Protocol: policy.ICMP}
	echo := policy.Port{Protocol: policy.ICMP, ICMPType: "echo-request"}
	tooBig := policy.Port{Protocol: policy.ICMP, ICMPType: "packet-too-big"}
	only := func(ports ...policy.Port) []policy.Policy {
		return set(ingress("p", has(), allow(portsOnly(ports...))))
	}
	none := set(ingress("p", has(), allow()))
	to := func(protocol uint8, port uint16) Connection {
		return Connection{From: world("192.0.2.1"), To: end(box), Protocol: protocol, Port: port}
	}
	ping := func(protocol, kind uint8) Connection { return icmp(world("192.0.2.1"), end(box), protocol, kind) }

	for _, test := range []judgement{
		{"below the range", only(udpRange), to(protocolUDP, 7999), denied},
		{"its first port", only(udpRange), to(protocolUDP, 8000), allowed},
		{"its last port", only(udpRange), to(protocolUDP, 8100), allowed},
		{"above the range", only(udpRange), to(protocolUDP, 8101), denied},
		{"another protocol", only(udpRange), to(protocolTCP, 8000), denied},
		{"any of two", only(tcpPorts(80, 80), udpRange), to(protocolUDP, 8000), allowed},
		{"port 0 is in no range", only(tcpPorts(1, 65535)), to(protocolTCP, 0), denied},
		{"ports absent: every port", set(ingress("p", has(), allow(policy.Rule{}))), to(protocolTCP, 0), allowed},
		{"ports absent: every protocol", set(ingress("p", has(), allow(policy.Rule{}))), to(47, 0), allowed},
		{"no name for other protocols", only(tcpPorts(1, 65535), udpRange, sctpPort, everyICMP), to(47, 0), denied},
		{"UDP-lite is not UDP", only(udpRange), to(136, 8000), denied},
		{"sctp: every port", only(sctpPort), to(protocolSCTP, 1), allowed},
		{"sctp is not tcp", only(sctpPort), to(protocolTCP, 1), denied},
		{"icmp, version 4", only(everyICMP), ping(protocolICMP, 8), allowed},
		{"icmp, version 6", only(everyICMP), ping(protocolICMPv6, 128), allowed},
		{"icmp is not tcp", only(everyICMP), to(protocolTCP, 8), denied},
		{"echo-request, version 4", only(echo), ping(protocolICMP, 8), allowed},
		{"echo-request, version 6", only(echo), ping(protocolICMPv6, 128), allowed},
		{"another type", only(echo), ping(protocolICMP, 13), denied},
		{"a type's number in the other version", only(echo), ping(protocolICMPv6, 8), denied},
		{"a name that version 4 does not have", only(tooBig), ping(protocolICMP, 255), denied},
		{"a name that version 6 has", only(tooBig), ping(protocolICMPv6, 2), allowed},
		{"before neighbour discovery", none, ping(protocolICMPv6, 132), denied},
		{"router solicitation always passes", none, ping(protocolICMPv6, 133), allowed},
		{"redirect always passes", none, ping(protocolICMPv6, 137), allowed},
		{"after neighbour discovery", none, ping(protocolICMPv6, 138), denied},
		{"type 133 of version 4", none, ping(protocolICMP, 133), denied},
	} {
		test.run(t)
	}
}

// TestHostNetwork: only TCP and UDP have a listener that can be found.
func TestHostNetwork(t *testing.T) {
	closed := ingress("closed", has(), allow())
	toWorkloads := egress("workloads", has("app", "web"), allow(peersOnly(workloads(has()))))
	toUnlabelled := egress("unlabelled", has("app", "web"), allow(peersOnly(unlabelled)))
	nothing := egress("nothing", has("app", "web"), allow())
	echo := func(from, to Endpoint) Connection { return icmp(from, to, protocolICMP, 8) }
	sctp := func(from, to Endpoint) Connection { return Connection{From: from, To: to, Protocol: protocolSCTP} }

	for _, test := range []judgement{
		{"an echo is to unlabelled, and denied", set(toWorkloads), echo(end(web), end(db)), denied},
		{"an echo is to unlabelled, and allowed", set(toUnlabelled, closed), echo(end(web), end(db)), allowed},
		{"sctp is to unlabelled, and denied", set(toWorkloads), sctp(end(web), end(db)), denied},
		{"sctp is to unlabelled, and allowed", set(toUnlabelled, closed), sctp(end(web), end(db)), allowed},
		{"an echo to one's own node is not to oneself", set(nothing), echo(end(web), end(web)), denied},
		{"an echo from outside", set(closed), echo(world("192.0.2.1"), end(web)), allowed},
		{"sctp from unlabelled", set(closed), sctp(Endpoint{}, end(web)), allowed},
		{"an echo from a container", set(closed), echo(end(box), end(web)), allowed},
		{"udp is judged", set(closed), Connection{From: world("192.0.2.1"), To: end(web), Protocol: protocolUDP},
			denied},
		{"tcp is judged", set(closed), tcp(world("192.0.2.1"), end(web), 80), denied},
		{"an echo to a container is judged", set(closed), echo(end(web), end(box)), denied},
		{"an echo to a container is to the workload", set(toWorkloads), echo(end(web), end(box)), allowed},
		{"a container's echo to itself", set(closed), echo(end(box), end(box)), allowed},
	} {
		test.run(t)
	}
}

func TestAudit(t *testing.T) {
	out := func(name string, side policy.Side) policy.Policy {
		return audited(egress(name, has("app", "web"), side))
	}
	in := func(name string, side policy.Side) policy.Policy {
		return audited(ingress(name, has("app", "db"), side))
	}
	everything := deny(policy.Rule{})
	other := allow(portsOnly(tcpPorts(22, 22)))
	call := tcp(end(web), end(db), 80)

	for _, test := range []judgement{
		{"a deny rule", set(in("a", everything)), call, recorded("a")},
		{"isolation", set(in("a", other)), call, recorded("a")},
		{"a deny rule that does not match", set(in("a", deny(portsOnly(tcpPorts(22, 22))))), call, allowed},
		{"an allow rule of another audit policy", set(in("a", other), in("b", allow(policy.Rule{}))), call, allowed},
		{
			"an allow rule of an enforced policy",
			set(in("a", other), ingress("b", has(), allow(policy.Rule{}))), call, allowed,
		},
		{"what enforced policies deny is not recorded", set(in("a", everything), ingress("b", has(), allow())), call,
			denied},
		{"the first of two deny rules", set(in("b", everything), in("a", everything)), call, recorded("a")},
		{"the first of two that isolate", set(in("b", other), in("a", allow())), call, recorded("a")},
		{"deny rules before isolation", set(in("a", other), in("b", everything)), call, recorded("b")},
		{"egress before ingress", set(in("a", everything), out("b", other)), call, recorded("b")},
		{"ingress if egress does not deny", set(in("b", everything), out("a", deny(portsOnly(tcpPorts(22, 22))))), call,
			recorded("b")},
		{"enforced policies are not named", set(in("b", other), ingress("a", has(), deny(portsOnly(tcpPorts(22, 22))))),
			call, recorded("b")},
		{"audit policies that do not select are not named", set(audited(ingress("a", has("app", "box"), other)),
			in("b", other)), call, recorded("b")},
		{"egress to a group", set(out("a", allow())), toGroup(end(web), "224.0.0.251"), recorded("a")},
	} {
		test.run(t)
	}
}

// TestSameLabelsDefault has the policy that is active until a set is given.
func TestSameLabelsDefault(t *testing.T) {
	dns := []policy.Port{{Protocol: policy.UDP, From: 53, To: 53}, tcpPorts(53, 53)}
	policies := set(policy.Policy{
		Name:    "same-labels",
		Ingress: allow(peersOnly(same())),
		Egress: allow(
			peersOnly(same()),
			peersOnly(cidr("0.0.0.0/0"), cidr("::/0")),
			policy.Rule{Peers: []policy.Peer{unlabelled}, Ports: dns},
		),
	})

	for _, test := range []judgement{
		{"equals", policies, tcp(end(web), end(web2), 80), allowed},
		{"others", policies, tcp(end(web), end(db), 80), denied},
		{"the world they call", policies, tcp(end(web), world("2001:db8::1"), 443), allowed},
		{"inbound from the world is closed", policies, tcp(world("2001:db8::1"), end(web), 443), denied},
		{"name resolution", policies, tcp(end(web), Endpoint{}, 53), allowed},
		{"the node", policies, tcp(end(web), Endpoint{}, 22), denied},
		{"from the node", policies, tcp(Endpoint{}, end(web), 80), denied},
	} {
		test.run(t)
	}
}

func TestOwner(t *testing.T) {
	bound := func(kind policy.Kind, path string) *policy.Workload {
		return &policy.Workload{Name: kind.String() + " " + path, Kind: kind, Cgroup: policy.Cgroup{Path: path}}
	}
	all := []*policy.Workload{
		bound(policy.KindCgroup, "a.slice"), bound(policy.KindUnit, "a.slice/b"), bound(policy.KindRun, "a.slice/b"),
		bound(policy.KindContainer, "a.slice/b/c/d"), box,
	}
	for cgroup, want := range map[string]string{
		"a.slice":         "cgroup a.slice",
		"a.slice/x":       "cgroup a.slice",
		"a.slice/bb":      "cgroup a.slice",
		"a.slice/b":       "run a.slice/b",
		"a.slice/b/c":     "run a.slice/b",
		"a.slice/b/c/d/e": "container a.slice/b/c/d",
		"a.slicer":        "",
		"system.slice":    "",
	} {
		var got string
		if owner := Owner(all, cgroup); owner != nil {
			got = owner.Name
		}
		if got != want {
			t.Errorf("Owner(%q) = %q, want %q", cgroup, got, want)
		}
	}
}
