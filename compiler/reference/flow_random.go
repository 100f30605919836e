package reference

import "math/rand/v2"

// MoreOf returns c with that many random connections and flows between its ends that have the situation.
func MoreOf(s Situation, r *rand.Rand, c Case, many int) Case {
	g := generator{r}
	c.Connections, c.Flows = nil, nil
	if s == SharedNetwork && len(c.Namespaces) == 0 {
		return c
	}
	for range 100 * many {
		for _, connection := range g.connections(c) {
			if connection.Has(s) && len(c.Connections) < many {
				c.Connections = append(c.Connections, connection)
			}
		}
		for _, f := range g.flows(c) {
			if f.Has(s) && len(c.Flows) < many {
				c.Flows = append(c.Flows, f)
			}
		}
		if len(c.Connections)+len(c.Flows) >= many {
			break
		}
	}
	return c
}

// flows makes flows for c, in which sockets share addresses and ports.
func (g generator) flows(c Case) []Flow {
	n := connector{generator: g, ports: mentionedPorts(c)}
	n.outside, _ = mentionedAddresses(c)
	for _, w := range c.Workloads {
		if (Endpoint{Workload: w}).onHostNetwork() {
			n.workloads = append(n.workloads, Endpoint{Workload: w})
		}
	}
	var all []Flow
	for range 10 {
		all = append(all, n.flow())
	}
	return all
}

// flow makes a flow between sockets of this node, or with one address outside.
func (n connector) flow() Flow {
	f := Flow{Protocol: protocolUDP, IPv6: n.chance(40), Port: pick(n.generator, n.ports)}
	unlabelledOnly := n.chance(10)
	pool := func() []Endpoint {
		if unlabelledOnly {
			return []Endpoint{{}}
		}
		return []Endpoint{n.here(), n.here()}
	}
	clients, servers := pool(), pool()
	world := []Endpoint{{Address: n.address(n.outside, f.IPv6)}}
	switch share := n.r.IntN(100); {
	case share < 20:
		clients = world
	case share < 40:
		servers = world
	}
	if n.chance(45) {
		f.Protocol = protocolTCP
		f.Packets = n.stream(clients, servers)
	} else {
		f.Packets = n.datagrams(clients, servers)
	}
	if n.chance(50) {
		n.mark(f.Packets)
	}
	if unlabelledOnly && n.chance(60) {
		f.OtherMark = pick(n.generator, conntrackMarks(f.Protocol))
		f = f.Without(BoundListener)
	}
	return f
}

// here is a workload on the host network or, sometimes, an unlabelled process.
func (n connector) here() Endpoint {
	if len(n.workloads) == 0 || n.chance(25) {
		return Endpoint{}
	}
	return pick(n.generator, n.workloads)
}

// datagrams sends from any client to any server and back.
func (n connector) datagrams(clients, servers []Endpoint) []Packet {
	var all []Packet
	for i := range 1 + n.r.IntN(6) {
		p := Packet{Kind: Datagram, From: pick(n.generator, clients), To: pick(n.generator, servers)}
		receivers := servers
		if p.Back = n.chance(50) && (i > 0 || n.chance(10)); p.Back {
			p.From, p.To, receivers = p.To, p.From, clients
		}
		if !p.To.outside() {
			n.finds(&p, receivers)
		}
		all = append(all, p)
	}
	return all
}

// finds chooses what nftables finds for a packet. From outside it comes in by the device to which the receiver is
// bound.
func (n connector) finds(p *Packet, receivers []Endpoint) {
	p.Finds = FindsReceiver
	switch share := n.r.IntN(100); {
	case share < 35:
		if other := pick(n.generator, receivers); other != p.To {
			p.Finds, p.Other = FindsOther, other
		}
	case share < 50 && !p.From.outside():
		p.Finds = FindsNothing
	}
}

// stream opens a connection of TCP to one of the servers, and uses it.
func (n connector) stream(clients, servers []Endpoint) []Packet {
	client, server := pick(n.generator, clients), pick(n.generator, servers)
	open := Packet{Kind: Open, From: client, To: server}
	early := Packet{Kind: Data, From: client, To: server}
	late := early
	if !server.outside() {
		late.Finds = FindsReceiver
		n.finds(&open, servers)
		if n.chance(30) {
			open.Finds, open.Other = FindsTimeWait, Endpoint{}
		}
		early.Finds = pick(n.generator, []Lookup{FindsReceiver, FindsRequest})
		switch {
		case open.Finds == FindsNothing:
			late.Finds = FindsNothing
			early.Finds = pick(n.generator, []Lookup{FindsNothing, FindsRequest})
		case open.Finds == FindsOther && !client.outside() && n.chance(50):
			early.Finds, early.Other = FindsOther, open.Other
		}
	}
	all := []Packet{open}
	if n.chance(50) {
		all = append(all, early)
	}
	for range n.r.IntN(3) {
		answer := Packet{Kind: Answer, Back: true, From: server, To: client}
		if !client.outside() {
			answer.Finds = FindsReceiver
		}
		all = append(all, answer)
		if n.chance(70) {
			p := late
			if n.chance(40) {
				p.From = pick(n.generator, clients)
			}
			all = append(all, p)
		}
	}
	return all
}

// mark gives some packets a mark or a priority that is not Thole's.
func (n connector) mark(packets []Packet) {
	for i := range packets {
		if packets[i].From.outside() {
			continue
		}
		if n.chance(60) {
			packets[i].Mark = pick(n.generator, otherMarks())
			if mayForge(packets[i]) && n.chance(50) {
				packets[i].Mark = pick(n.generator, forgedMarks())
			}
		}
		if n.chance(60) {
			packets[i].Priority = pick(n.generator, packetPriorities())
		}
	}
}

// otherMarks are packet marks of other programs.
func otherMarks() []uint32 { return []uint32{1, 2, 0xca6c, 0xdead, 0x20000000, 0x40000000, 0x80000000} }

// mayForge leaves out the packets of a connection of TCP that may be decided: OUTPUT does not look for a mark there,
// and INPUT judges the packet by it. Its sender can lose its own packet so, and gains nothing.
func mayForge(p Packet) bool {
	return p.Kind == Datagram || p.Kind == Open || p.Kind == Data && p.From.unlabelled()
}

// forgedMarks are packet marks that look like Thole's own (docs/ARCHITECTURE.md, "Marks").
func forgedMarks() []uint32 { return []uint32{0x0fff0000, 0x0fff0001, 0x0fff0002, 0x0fffffff} }

func packetPriorities() []uint32 { return []uint32{1, 2, 6, 0x10001, 0xffff} }

// conntrackMarks are marks of other programs. Over UDP they may look like any of Thole's. Over TCP they have neither
// the bit of what was denied nor the epoch in which the table is (docs/ARCHITECTURE.md, "Marks").
func conntrackMarks(protocol uint8) []uint32 {
	marks := []uint32{1, 2, 3, 0xca6c, 0x10001, 0x12345, 0x20003, 0x80010002}
	if protocol == protocolUDP {
		marks = append(marks, 0x70001, 0x70002, 0x1007ca6c, 0x20000001, 0x80070001, 0xffffffff)
	}
	return marks
}
