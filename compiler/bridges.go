package compiler

import (
	"net/netip"

	"thole/compiler/policy"
	nft "thole/ruleset"
)

// bindNetworks enters the containers with a network of their own. INPUT knows them by
// their address on their bridge, OUTPUT by their address alone: NAT may have led there.
func (l *lowering) bindNetworks(bridges []policy.Bridge, unlabelled []policy.Unlabelled, members []member) {
	if len(bridges) == 0 {
		return
	}
	l.declareSet(nft.Set{Name: "bridges", Key: []nft.Type{nft.IfName}, Comment: "bridges of containers"})
	for i, address := range []nft.Type{nft.IPv4Addr, nft.IPv6Addr} {
		v := families[i]
		l.declareSet(nft.Set{Name: "container" + v, Key: []nft.Type{nft.IfName, address}, Data: nft.Mark,
			Comment: "containers with a network of their own: their class"})
		l.declareSet(nft.Set{Name: "to_container" + v, Key: []nft.Type{address}, Data: nft.ClassID,
			Comment: "the same, as seen from here"})
		l.declareSet(nft.Set{Name: "container_net" + v, Key: []nft.Type{address}, Interval: true,
			Comment: "where containers are"})
	}
	for _, b := range bridges {
		l.add("bridges", nft.Element{Key: []nft.Value{nft.Interface(b.Name)}})
		for _, n := range disjoint(b.Networks) {
			l.add("container_net"+families[version(n.Addr())],
				nft.Element{Key: []nft.Value{nft.Prefix(n)}, Comment: b.Name})
		}
	}
	var own []policy.Network
	for _, m := range members {
		if len(m.Own) > 0 {
			l.bindNetwork(m.Own, m.class.number, l.commentOf(m.Workload))
			own = append(own, m.Own...)
		}
	}
	for _, u := range unlabelled {
		b, _ := l.bindingAbove(u.Cgroup.Path)
		l.bindNetwork(u.Own, b.class, "unlabelled")
		own = append(own, u.Own...)
	}
	l.bridge = onPorts(own)
}

// bindNetwork enters one container; class 0 is unlabelled.
func (l *lowering) bindNetwork(networks []policy.Network, class uint32, comment string) {
	for _, n := range networks {
		for _, a := range n.Addresses {
			v, at := families[version(a)], nft.Address(a)
			l.add("container"+v, nft.Element{Key: []nft.Value{nft.Interface(n.Bridge), at}, Number: class,
				Comment: comment})
			l.add("to_container"+v, nft.Element{Key: []nft.Value{at}, Number: class, Comment: comment})
		}
	}
}

// families are the ends of names of sets, by version.
var families = [2]string{"4", "6"}

func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// disjoint leaves out what lies inside another.
func disjoint(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range list {
		inside := false
		for j, q := range list {
			inside = inside || q.Contains(p.Addr()) && (q.Bits() < p.Bits() || q.Bits() == p.Bits() && j < i)
		}
		if !inside {
			out = append(out, p.Masked())
		}
	}
	return out
}

// onPorts returns the table of family bridge: an address of a container is that
// container's alone, by its own port, in IP as in ARP. INPUT, which sees the bridge and
// not its port, can then believe it.
func onPorts(own []policy.Network) *nft.Table {
	t := &nft.Table{Name: "thole", Counters: []string{"forged"}}
	chain := nft.Chain{
		Name: "prerouting", Hook: nft.Prerouting, Priority: bridgePriority,
		Comment: "what enters a bridge: an address of a container comes from its own port",
	}
	ports := nft.Set{Name: "ports", Key: []nft.Type{nft.IfName}, Comment: "ports of containers"}
	for _, n := range own {
		if n.Port != "" {
			ports.Elements = append(ports.Elements, nft.Element{Key: []nft.Value{nft.Interface(n.Port)}})
		}
	}
	if len(ports.Elements) == 0 {
		return nil
	}
	t.Sets = append(t.Sets, ports)
	for _, tags := range []uint32{nft.EtherVLAN, nft.EtherQinQ} {
		chain.Rules = append(chain.Rules, because("what is behind a second tag is seen by those who strip it, and "+
			"not here",
			is(nft.MetaProtocol, tags), nft.InSet{Key: []nft.Expr{iifName}, Set: ports.Name},
			nft.Count{Counter: "forged"}, drop))
	}
	for v, as := range []struct {
		address  nft.Type
		protocol uint32
		source   nft.Field
	}{
		{nft.IPv4Addr, nft.EtherIPv4, nft.IPSaddr},
		{nft.IPv6Addr, nft.EtherIPv6, nft.IP6Saddr},
	} {
		port := nft.Set{Name: "port" + families[v], Key: []nft.Type{nft.IfName, as.address},
			Comment: "port . address of a container"}
		taken := nft.Set{Name: "taken" + families[v], Key: []nft.Type{as.address}, Comment: "addresses of containers"}
		for _, n := range own {
			for _, a := range n.Addresses {
				if n.Port != "" && version(a) == v {
					port.Elements = append(port.Elements,
						nft.Element{Key: []nft.Value{nft.Interface(n.Port), nft.Address(a)}})
					taken.Elements = append(taken.Elements, nft.Element{Key: []nft.Value{nft.Address(a)}})
				}
			}
		}
		if len(port.Elements) == 0 {
			continue
		}
		t.Sets = append(t.Sets, port, taken)
		chain.Rules = append(chain.Rules, fromPorts(as.protocol, as.source, port.Name, taken.Name)...)
		if v == 0 {
			chain.Rules = append(chain.Rules, fromPorts(nft.EtherARP, nft.ARPSaddrIP, port.Name, taken.Name)...)
		}
	}
	t.Chains = []nft.Chain{chain}
	return t
}

// bridgePriority is where nft's filter is in family bridge.
const bridgePriority = -200

func fromPorts(protocol uint32, source nft.Field, port, taken string) []nft.Rule {
	from := nft.Expr{Field: source}
	return []nft.Rule{
		rule(is(nft.MetaProtocol, protocol), nft.InSet{Key: []nft.Expr{iifName, from}, Set: port}, accept),
		rule(is(nft.MetaProtocol, protocol), nft.InSet{Key: []nft.Expr{from}, Set: taken}, nft.Count{Counter: "forged"},
			drop),
	}
}
