package reference

import (
	"net/netip"

	"thole/compiler/policy"
)

// connections makes connections for c, biased to where its policies change their
// mind: mentioned ports, edges of prefixes, and what lies beside them.
func (g generator) connections(c Case) []Connection {
	n := connector{generator: g, ports: mentionedPorts(c)}
	for _, w := range c.Workloads {
		n.workloads = append(n.workloads, Endpoint{Workload: w})
	}
	for _, namespace := range c.Namespaces {
		n.workloads = append(n.workloads, Endpoint{Namespace: namespace})
	}
	n.outside, n.groups = mentionedAddresses(c)
	var all []Connection
	for range 30 {
		all = append(all, n.connection())
	}
	return all
}

// A connector makes connections of one case.
type connector struct {
	generator
	workloads       []Endpoint   // workloads, and the namespaces that containers share
	ports           []uint16     // worth trying
	outside, groups []netip.Addr // worth trying; both families in each
}

func (n connector) connection() Connection {
	c := n.ends()
	n.transport(&c)
	switch {
	case c.From.outside() || c.Group.IsValid() || c.From.OwnAddress().IsValid():
	case n.chance(15):
		n.call(&c)
	case c.To.outside() && !alwaysPasses(c) && n.chance(20):
		c.Tunnel = n.address(n.outside, c.IPv6)
	}
	return c
}

// call has NAT on this node lead c to where it goes.
func (n connector) call(c *Connection) {
	called := n.address(n.outside, c.IPv6)
	if c.CalledHere = n.chance(20); c.CalledHere {
		called = n.address(nodeAddresses(), c.IPv6)
	}
	port := uint16(0)
	switch c.Protocol {
	case protocolTCP, protocolUDP, protocolSCTP:
		port = pick(n.generator, n.ports)
	}
	c.Called = netip.AddrPortFrom(called, port)
}

// nodeAddresses are of this node and its containers: see Random.
func nodeAddresses() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00:10::1"),
		netip.MustParseAddr("172.17.255.9"), netip.MustParseAddr("fd00:17::ff:9"),
	}
}

// ends makes a connection without its transport.
func (n connector) ends() Connection {
	v6 := n.chance(50)
	one := pick(n.generator, n.workloads)
	if own := one.OwnAddress(); own.IsValid() {
		v6 = own.Is6()
	}
	c := Connection{IPv6: v6}
	world := Endpoint{Address: n.address(n.outside, v6)}
	switch share := n.r.IntN(100); {
	case share < 35:
		c.From, c.To = one, n.neighbour(one, v6)
	case share < 40:
		c.From, c.To = one, one
	case share < 60:
		c.From, c.To = one, world
	case share < 75:
		c.From, c.To = world, one
	case share < 80:
		c.From = one
	case share < 86:
		c.To = one
	case share < 95:
		c.From, c.Group = one, n.group(v6)
	case share < 97:
		c.From, c.Group = pick(n.generator, []Endpoint{{}, world}), n.group(v6)
	case share < 98:
		c.From = world
	case share < 99:
		c.To = world
	}
	return c
}

// neighbour is a workload other than self that can speak the family, or else the
// unlabelled rest of this node.
func (n connector) neighbour(self Endpoint, v6 bool) Endpoint {
	var reachable []Endpoint
	for _, e := range n.workloads {
		if own := e.OwnAddress(); e != self && (!own.IsValid() || own.Is6() == v6) {
			reachable = append(reachable, e)
		}
	}
	if reachable == nil {
		return Endpoint{}
	}
	return pick(n.generator, reachable)
}

// address picks one of the family. There is always one of each.
func (n connector) address(from []netip.Addr, v6 bool) netip.Addr {
	for {
		if a := pick(n.generator, from); a.Is6() == v6 {
			return a
		}
	}
}

func (n connector) group(v6 bool) netip.Addr {
	if !v6 && n.chance(10) {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return n.address(n.groups, v6)
}

// transport gives c a protocol, with its port or type. ICMP is of c's family.
func (n connector) transport(c *Connection) {
	switch share := n.r.IntN(100); {
	case share < 40:
		c.Protocol, c.Port = protocolTCP, pick(n.generator, n.ports)
	case share < 65:
		c.Protocol, c.Port = protocolUDP, pick(n.generator, n.ports)
	case share < 73:
		c.Protocol, c.Port = protocolSCTP, pick(n.generator, n.ports)
	case share < 93:
		c.Protocol, c.ICMPType = protocolICMP, n.icmpType(c.IPv6)
		if c.IPv6 {
			c.Protocol = protocolICMPv6
		}
	default:
		const gre, dccp, udpLite = 47, 33, 136
		c.Protocol = pick(n.generator, []uint8{gre, dccp, udpLite})
	}
}

// icmpType is mostly a type that policies can name, or the one beside it.
func (n connector) icmpType(v6 bool) uint8 {
	if v6 && n.chance(20) {
		return uint8(132 + n.r.IntN(7)) // neighbour discovery and what is beside it
	}
	t := pick(n.generator, policy.ICMPTypes)
	number := t.V4
	if v6 {
		number = t.V6
	}
	if number < 0 || n.chance(10) {
		number++
	}
	return uint8(number)
}

// mentionedPorts are the limits of the ranges in c's policies, the ports beside
// them, and some that are always there. Port 0 is in no range.
func mentionedPorts(c Case) []uint16 {
	ports := []uint16{0, 22, 80, 65535}
	for _, rule := range rules(&c) {
		for _, p := range rule.Ports {
			if p.Protocol == policy.TCP || p.Protocol == policy.UDP {
				ports = append(ports, p.From-1, p.From, p.To, p.To+1) // the port after 65535 is 0
			}
		}
	}
	return ports
}

// mentionedAddresses are the edges of the prefixes in c's policies, the
// addresses beside them, and some of each family that are always there.
func mentionedAddresses(c Case) (outside, groups []netip.Addr) {
	addresses := []netip.Addr{
		netip.MustParseAddr("192.0.2.129"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.9"),
		netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::2"),
		netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb"),
	}
	for _, peer := range peers(&c) {
		if peer.CIDR == nil {
			continue
		}
		for _, p := range append([]netip.Prefix{peer.CIDR.Prefix}, peer.CIDR.Except...) {
			start, end := p.Addr(), lastAddress(p)
			addresses = append(addresses, start.Prev(), start, end, end.Next())
		}
	}
	for _, a := range addresses {
		switch {
		case isGroup(a):
			groups = append(groups, a)
		case isOutside(a):
			outside = append(outside, a)
		}
	}
	return outside, groups
}

// lastAddress returns the highest address in p.
func lastAddress(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// isGroup reports whether something can be sent to a: a group of IPv6 whose scope is
// neither reserved nor the interface alone, or any group of IPv4.
func isGroup(a netip.Addr) bool {
	if !a.IsMulticast() {
		return false
	}
	scope := a.AsSlice()[1] & 0x0f
	return a.Is4() || 2 <= scope && scope <= 14
}

// isOutside reports whether a can be the address of a machine other than this
// node. The invalid address before the first or after the last one is not.
func isOutside(a netip.Addr) bool {
	for _, text := range []string{
		"10.0.0.0/8", "172.17.0.0/16", "fd00:10::/32", "fd00:17::/64", // this node's: see Random
		"0.0.0.0/8", "240.0.0.0/4", "::/16", // reserved; among them ::1 and ::ffff:0:0/96
	} {
		if netip.MustParsePrefix(text).Contains(a) {
			return false
		}
	}
	return a.IsGlobalUnicast()
}
