package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"thole/compiler/mark"
	"thole/compiler/reference"
	"thole/internal/nstest/probe"
)

// A tuple is the addresses and ports of a flow on the bench.
type tuple struct {
	*stage
	reference.Flow
	client, server netip.AddrPort
	veth           string // the device of this node's address
}

// The node's addresses: those of flows, and others from which sockets send in the name of those.
var (
	nodeAddress  = map[bool]netip.Addr{false: netip.MustParseAddr("10.0.0.1"), true: netip.MustParseAddr("fd00:10::1")}
	otherAddress = map[bool]netip.Addr{false: netip.MustParseAddr("127.0.0.9"), true: netip.IPv6Loopback()}
)

// possibleFlow says whether sockets without special abilities make the flow.
func (s *stage) possibleFlow(f reference.Flow) bool {
	for i, p := range f.Packets {
		if f.Protocol == 6 && p.Mark&^mark.ClassMask == mark.Sender {
			return false // it is on all packets of a connection, and so costs those of a decided one
		}
		for _, e := range []reference.Endpoint{p.From, p.To} {
			if e.Address.IsValid() && !usable(e.Address) {
				return false
			}
		}
		switch p.Finds {
		case reference.FindsOther, reference.FindsNothing:
			// IPv6 looks for a socket of this node by lo, as nftables does; and early demultiplexing makes both find
			// the same for what comes from outside.
			if f.IPv6 || p.From.Address.IsValid() {
				return false
			}
		case reference.FindsRequest:
			return false
		}
		if p.Kind == reference.Data && !ordinary(f.Packets[0], p, i) {
			return false
		}
	}
	return f.Port != 0
}

// ordinary says whether data is its client's, and not a raw socket's, and finds a socket as in the kernel: behind the
// handshake the one that has the connection, or none if that one is bound to a device.
func ordinary(open, data reference.Packet, i int) bool {
	switch {
	case data.From != open.From || data.Finds == reference.FindsOther:
		return false
	default:
		return i == 1 || data.Finds == open.Finds || open.Finds == reference.FindsOther
	}
}

// flowDiffers has sockets send the packets of a flow. It returns what happened if that is not what was wanted.
func (s *stage) flowDiffers(f reference.Flow, want []bool) string {
	s.flows++
	t := &tuple{stage: s, Flow: f, veth: s.veth}
	// The policies make no difference between these ports and ClientPort.
	t.client = netip.AddrPortFrom(nodeAddress[f.IPv6], uint16(20_000+s.flows%40_000))
	t.server = netip.AddrPortFrom(nodeAddress[f.IPv6], f.Port)
	for _, p := range f.Packets {
		from, to := &t.client, &t.server
		if p.Back {
			from, to = to, from
		}
		for e, at := range map[*netip.AddrPort]reference.Endpoint{from: p.From, to: p.To} {
			if at.Address.IsValid() {
				*e = netip.AddrPortFrom(at.Address, e.Port())
			}
		}
	}
	if f.OtherMark != 0 {
		must(s.t, s.node.Nft(fmt.Sprintf(`table inet other {
			chain o { type filter hook output priority 20; ct mark set %d; }
		}`, f.OtherMark)))
		defer func() { must(s.t, s.node.Nft("delete table inet other")) }()
	}
	if f.Protocol == 17 {
		return t.datagrams(want)
	}
	return t.stream(want)
}

// options are those of p's sender.
func options(p reference.Packet) []probe.Option {
	all := []probe.Option{probe.ReusePort}
	if p.Mark != 0 {
		all = append(all, probe.Mark(p.Mark))
	}
	if p.Priority != 0 {
		all = append(all, probe.Priority(p.Priority))
	}
	return all
}

// bound are the options of p's receiver.
func (t *tuple) bound(p reference.Packet) []probe.Option {
	if p.Finds == reference.FindsNothing {
		return []probe.Option{probe.ReusePort, probe.Device(t.veth)}
	}
	return []probe.Option{probe.ReusePort}
}

var decoy = []probe.Option{probe.ReusePort, probe.Device("lo")}

func (t *tuple) datagrams(want []bool) string {
	for i, p := range t.Packets {
		if got := t.arrives(i, p); got != want[i] {
			return fmt.Sprintf("datagram %d arrives: %v; the evaluator says %v", i, got, want[i])
		}
	}
	return ""
}

// arrives sends a datagram from a socket that has another address, in the name of the tuple's.
func (t *tuple) arrives(i int, p reference.Packet) bool {
	from, to := t.client, t.server
	if p.Back {
		from, to = to, from
	}
	receiver := t.probe(p.To).OpenUDP("udp", to.String(), t.bound(p)...)
	defer receiver.Close()
	if p.Finds == reference.FindsOther {
		d := t.probe(p.Other).OpenUDP("udp", to.String(), decoy...)
		defer d.Close()
	}
	data := fmt.Sprint("datagram ", i)
	if p.From.Address.IsValid() {
		sender := t.probe(p.From).OpenUDP("udp", from.String())
		defer sender.Close()
		sender.Send(to.String(), data)
		return receiver.Got(data)
	}
	at := netip.AddrPortFrom(otherAddress[t.IPv6], from.Port())
	sender := t.probe(p.From).OpenUDP("udp", at.String(), options(p)...)
	defer sender.Close()
	sender.SendFrom(from.Addr().String(), to.String(), data)
	return receiver.Got(data)
}

// stream opens a connection and uses it.
func (t *tuple) stream(want []bool) string {
	open := t.Packets[0]
	listener := t.probe(open.To).Listen("tcp", t.server.String(), append(t.bound(open), probe.Manual)...)
	defer listener.Close()
	if open.Finds == reference.FindsTimeWait {
		t.leaveTimeWait(listener)
	}
	if open.Finds == reference.FindsOther {
		d := t.probe(open.Other).Listen("tcp", t.server.String(), append(slices.Clone(decoy), probe.Manual)...)
		defer d.Close()
	}
	target := probe.Target{To: t.server.String(), From: t.client.String(), Options: options(open)[1:]}
	client, v := t.probe(open.From).DialTo(target)
	if v.Allowed() != want[0] {
		return fmt.Sprintf("the connection is %s; the evaluator says %v", v, want[0])
	}
	if client == nil {
		if !open.From.Address.IsValid() && !open.To.Address.IsValid() && v.Outcome != probe.Refused {
			return v.String() + " where a reset should come at once"
		}
		return ""
	}
	defer client.Close()
	server := listener.Accept(answerSoon)
	if server == nil {
		return "no connection comes to the listener"
	}
	defer server.Close()
	return t.talk(client, server, want)
}

// leaveTimeWait has an earlier connection of the same addresses and ports end, first at the server's side, so that a
// socket in TIME_WAIT hides the listener. Meanwhile no table judges.
func (t *tuple) leaveTimeWait(listener *probe.Listener) {
	must(t.t, t.node.Nft("add table inet thole { flags dormant; }"))
	client, v := t.probe(t.Packets[0].From).DialTo(probe.Target{To: t.server.String(), From: t.client.String()})
	if client == nil {
		t.t.Fatal("without a table, a connection is ", v)
	}
	server := listener.Accept(answerSoon)
	server.Close()
	client.Receive(answerSoon) // its end
	client.Close()
	must(t.t, t.node.Nft("add table inet thole"))
}

// answerSoon is how long what is allowed may take, also where it has to be sent again.
const answerSoon = 5 * time.Second

// talk sends what comes behind the handshake.
func (t *tuple) talk(client, server *probe.Conn, want []bool) string {
	for i, p := range t.Packets[1:len(want)] {
		from, to := client, server
		if p.Kind == reference.Answer {
			from, to = server, client
		}
		data := fmt.Sprintf("[%d]", i+1)
		from.Send(data)
		got := received(to, data, want[i+1])
		// What waits for the first answer comes with it; but it never comes if that is denied.
		waits := p.Finds == reference.FindsNothing && !want[i+1] && !slices.Contains(want[i+2:], false)
		if got != want[i+1] && !waits {
			return fmt.Sprintf("packet %d arrives: %v; the evaluator says %v", i+1, got, want[i+1])
		}
	}
	return ""
}

// received says whether data comes. If it should, it may come late.
func received(c *probe.Conn, data string, should bool) bool {
	all := ""
	for end := time.Now().Add(answerSoon); ; {
		patience := time.Duration(0)
		if should {
			patience = time.Until(end)
		}
		got, outcome := c.Receive(patience)
		if all += got; strings.Contains(all, data) {
			return true
		}
		if !should || outcome != probe.Connected || patience <= 0 {
			return false
		}
	}
}
