package reference

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
)

// TestSituationsAreCommon: each situation is in at least one of a hundred cases, that is connections and flows.
func TestSituationsAreCommon(t *testing.T) {
	cases, seen := 0, map[Situation]int{}
	seeded(t, 1000, func(_ *testing.T, _ *rand.Rand, c Case) {
		cases += len(c.Connections) + len(c.Flows)
		for _, f := range c.Flows {
			for _, s := range FlowSituations {
				if f.Has(s) {
					seen[s]++
				}
			}
		}
		for _, connection := range c.Connections {
			for _, s := range ConnectionSituations {
				if connection.Has(s) {
					seen[s]++
				}
			}
		}
	})
	for _, s := range slices.Concat(FlowSituations, ConnectionSituations) {
		percent := 100 * float64(seen[s]) / float64(cases)
		t.Logf("%.1f%% of all cases have %s", percent, s)
		if percent < 1 {
			t.Errorf("%.1f%% of all cases have %s, want at least 1%%", percent, s)
		}
	}
}

// TestRandomFlowsArePossible checks what Flow and its parts promise.
func TestRandomFlowsArePossible(t *testing.T) {
	seeded(t, 500, func(t *testing.T, _ *rand.Rand, c Case) {
		for _, f := range c.Flows {
			for i, p := range f.Packets {
				checkPacket(t, f, p)
				if f.Protocol == protocolTCP && (p.Kind == Open) != (i == 0) {
					t.Errorf("packet %d is not a SYN, or another one is:\n%s", i, f)
				}
			}
			labelled := func(e *Endpoint) bool { return e.Workload != nil }
			if f.OtherMark != 0 && slices.ContainsFunc(f.endpoints(), labelled) {
				t.Errorf("another program's mark on a workload's connection:\n%s", f)
			}
			for _, s := range FlowSituations {
				if f.Without(s).Has(s) && s != PortChanged {
					t.Errorf("without %s it has it still:\n%s\n%s", s, f, f.Without(s))
				}
			}
		}
	})
}

func checkPacket(t *testing.T, f Flow, p Packet) {
	if p.From.outside() && p.To.outside() || (p.Finds == "") != p.To.outside() {
		t.Errorf("no end is on this node, or a look-up elsewhere:\n%s", f)
	}
	for _, e := range []Endpoint{p.From, p.To} {
		if e.outside() && e.Address.Is6() != f.IPv6 || e.Workload != nil && !e.onHostNetwork() {
			t.Errorf("%s cannot be an end of\n%s", e, f)
		}
	}
	if p.Finds == FindsNothing && p.From.outside() {
		t.Errorf("what comes from outside finds a socket that is bound to its device:\n%s", f)
	}
}

// TestNothingIsExchangedAgainstThePolicies: whatever sockets share a tuple, a packet that reaches the socket which
// nftables found goes between ends of which one may call the other; and a server answers over TCP only where a client
// of the flow may call it.
func TestNothingIsExchangedAgainstThePolicies(t *testing.T) {
	seeded(t, 2000, func(t *testing.T, _ *rand.Rand, c Case) {
		for _, f := range c.Flows {
			for i, passes := range JudgeFlow(c.Set, f) {
				if passes && !mayPass(c.Set, f, f.Packets[i]) {
					t.Errorf("packet %d passes:\n%s", i, f)
				}
			}
		}
	})
}

func mayPass(s Set, f Flow, p Packet) bool {
	may := func(from, to Endpoint, back bool) bool { return Judge(s, f.connection(from, to, back)).Allowed }
	switch {
	case p.Kind == Answer:
		return slices.ContainsFunc(f.Packets, func(q Packet) bool { return !q.Back && may(q.From, p.From, false) })
	case p.Kind != Datagram || p.Finds != FindsReceiver || p.From.outside():
		return true
	default:
		return may(p.From, p.To, p.Back) || may(p.To, p.From, !p.Back)
	}
}

// A story is a flow in words, with what must become of its packets.
type story struct {
	name    string
	flow    Flow
	want    []bool
	because string
}

var (
	udpTo = func(w *policy.Workload) Packet {
		return Packet{Kind: Datagram, From: end(web2), To: end(w), Finds: FindsReceiver}
	}
	answerFrom = func(w *policy.Workload) Packet {
		return Packet{Kind: Datagram, Back: true, From: end(w), To: end(web2), Finds: FindsReceiver}
	}
	openTo   = func(p Packet) Packet { p.Kind = Open; return p }
	dataTo   = func(p Packet) Packet { p.Kind = Data; return p }
	answered = func(p Packet) Packet { p.Kind = Answer; return p }
)

func finds(p Packet, lookup Lookup, other ...Endpoint) Packet {
	p.Finds = lookup
	if other != nil {
		p.Other = other[0]
	}
	return p
}

// TestStories: web and web2 may call each other, db and unlabelled processes call nobody that has labels and are not
// called.
func TestStories(t *testing.T) {
	policies := set(
		ingress("web-ingress", has("app", "web"), allow(peersOnly(same()))),
		egress("web-egress", has("app", "web"), allow(peersOnly(same()))),
		policy.Policy{Name: "db", Selector: has("app", "db"), Ingress: allow(), Egress: allow()})
	by := func(p Packet, e Endpoint) Packet { p.From = e; return p }
	to := func(p Packet, e Endpoint) Packet { p.To = e; return p }
	for _, s := range []story{
		{
			"UDP: an answer",
			udp(udpTo(web), answerFrom(web)),
			[]bool{true, true}, "it belongs to the request",
		},
		{
			"UDP: a request through a decoy",
			udp(finds(udpTo(db), FindsOther, end(web)), answerFrom(db)),
			[]bool{true, false}, "nftables finds web, the kernel delivers to db, and db may not answer",
		},
		{
			"UDP: a receiver bound to a device",
			udp(finds(udpTo(db), FindsNothing), answerFrom(db)),
			[]bool{false, false}, "web2 may not call what is unlabelled, and so the socket looks",
		},
		{
			"UDP: a forged request",
			udp(udpTo(web), by(udpTo(web), end(db)), answerFrom(web)),
			[]bool{true, false, true}, "each datagram is its sender's, and web2 keeps its flow",
		},
		{
			"UDP: a forged answer",
			udp(udpTo(web), answerFrom(db), answerFrom(web)),
			[]bool{true, false, true}, "web2 may not call db",
		},
		{
			"UDP: the port's next owner",
			udp(udpTo(web), to(answerFrom(web), end(db)), to(answerFrom(web), Endpoint{})),
			[]bool{true, false, false}, "web2 asked",
		},
		{
			"TCP: a connection",
			tcpFlow(openTo(udpTo(web)), dataTo(udpTo(web)), answered(answerFrom(web))),
			[]bool{true, true, true}, "",
		},
		{
			"TCP: a decoy",
			tcpFlow(
				openTo(finds(udpTo(db), FindsOther, end(web))),
				answered(answerFrom(db)),
				dataTo(udpTo(db)),
			),
			[]bool{true, false}, "the socket that answers is db's",
		},
		{
			"TCP: a mistaken refusal",
			tcpFlow(openTo(finds(udpTo(web), FindsOther, end(db)))),
			[]bool{false}, "the listener that is found decides first",
		},
		{
			"TCP: a listener bound to a device",
			tcpFlow(
				openTo(finds(udpTo(web), FindsNothing)),
				dataTo(finds(udpTo(web), FindsNothing)),
				answered(answerFrom(web)),
				dataTo(finds(udpTo(web), FindsNothing)),
			),
			[]bool{true, false, true, true}, "data waits for the first answer",
		},
		{
			"TCP: the same, and it may not be called",
			tcpFlow(openTo(finds(udpTo(db), FindsNothing)), answered(answerFrom(db))),
			[]bool{true, false}, "the socket that answers is db's",
		},
		{
			"TCP: data in the last packet of a handshake",
			tcpFlow(openTo(udpTo(web)), dataTo(finds(udpTo(web), FindsRequest))),
			[]bool{true, true}, "the listener was judged",
		},
		{
			"TCP: a second sender",
			tcpFlow(
				openTo(udpTo(web)),
				dataTo(udpTo(web)),
				answered(answerFrom(web)),
				dataTo(by(udpTo(web), end(db))),
				dataTo(udpTo(web)),
			),
			[]bool{true, true, true, false, true}, "db cannot speak for web2, nor end its connection",
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			if diff := cmp.Diff(s.want, JudgeFlow(Set{Policies: policies}, s.flow)); diff != "" {
				t.Errorf("%s (-want +got): %s\n%s", s.because, diff, s.flow)
			}
		})
	}
}

func udp(packets ...Packet) Flow { return Flow{Protocol: protocolUDP, Port: 5353, Packets: packets} }

func tcpFlow(packets ...Packet) Flow { return Flow{Protocol: protocolTCP, Port: 80, Packets: packets} }

func TestFlowString(t *testing.T) {
	f := udp(finds(udpTo(db), FindsOther, end(web)), answerFrom(db))
	f.Packets[0].Mark = 0x10
	want := "web2 -> db, 5353/udp over IPv4: datagram, nftables finds web's socket, mark 0x10\n" +
		"db -> web2, 40000/udp over IPv4: datagram, back"
	if diff := cmp.Diff(want, f.String()); diff != "" {
		t.Error(diff)
	}
	text := Case{Flows: []Flow{f}}.String()
	if !strings.Contains(text, "a flow of UDP") || !strings.Contains(text, want[:20]) {
		t.Error(text)
	}
}
