package compiler

import (
	"thole/compiler/chains"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// bindNetworks enters the containers with a network of their own. INPUT knows them by
// their address on their bridge, OUTPUT by their address alone: NAT may have led there.
func (l *lowering) bindNetworks(
	bridges []policy.Bridge, unlabelled []policy.Unlabelled, members []member, namespaces []*namespace,
) {
	if len(bridges) == 0 {
		return
	}
	l.declare(chains.BridgeSets())
	for _, b := range bridges {
		l.add("bridges", nft.Element{Key: []nft.Value{nft.Interface(b.Name)}})
		for _, n := range partition.Disjoint(b.Networks) {
			l.add("container_net"+family(n.Addr()),
				nft.Element{Key: []nft.Value{nft.Prefix(n)}, Comment: b.Name})
		}
	}
	var own []policy.Network
	for _, m := range members {
		if len(m.Own) > 0 {
			if m.Sharing.Namespace == "" {
				l.bindNetwork(m.Own, m.class.Number, l.commentOf(m.Workload))
			}
			own = append(own, m.Own...)
		}
	}
	for _, u := range unlabelled {
		if u.Sharing.Namespace == "" {
			b, _ := l.bindingAbove(u.Cgroup.Path)
			l.bindNetwork(u.Own, b.class, "unlabelled")
		}
		own = append(own, u.Own...)
	}
	l.bindNamespaces(namespaces)
	l.bridge = chains.BridgeTable(onPorts(own))
}

// bindNetwork enters one container; class 0 is unlabelled.
func (l *lowering) bindNetwork(networks []policy.Network, class uint32, comment string) {
	for _, n := range networks {
		for _, a := range n.Addresses {
			v, at := family(a), nft.Address(a)
			l.add("container"+v, nft.Element{Key: []nft.Value{nft.Interface(n.Bridge), at}, Number: class,
				Comment: comment})
			l.add("to_container"+v, nft.Element{Key: []nft.Value{at}, Number: class, Comment: comment})
		}
	}
}

// onPorts returns the networks whose port is known.
func onPorts(own []policy.Network) []chains.BridgePort {
	var list []chains.BridgePort
	for _, n := range own {
		if n.Port != "" {
			list = append(list, chains.BridgePort{Name: n.Port, Addresses: n.Addresses})
		}
	}
	return list
}
