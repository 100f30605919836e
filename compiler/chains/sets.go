package chains

import (
	"fmt"

	nft "thole/ruleset"
)

// ClassSets returns the maps by which classes are judged, empty.
func ClassSets() []nft.Set {
	sets := []nft.Set{
		{Name: "group", Key: []nft.Type{nft.Mark}, Data: nft.Mark,
			Comment: "the class of those who have a number of their own"},
		{Name: "group_listener", Key: []nft.Type{nft.ClassID}, Data: nft.ClassID, Comment: "the same"},
		{Name: "address4", Key: []nft.Type{nft.IPv4Addr}, Data: nft.Mark, Interval: true,
			Comment: "classes of addresses outside; 0x8000 is elsewhere"},
		{Name: "address6", Key: []nft.Type{nft.IPv6Addr}, Data: nft.Mark, Interval: true},
		{Name: "leave_class", Key: []nft.Type{nft.ClassID}, Data: nft.VerdictType,
			Comment: "sender, to any other address"},
		{Name: "itself", Key: []nft.Type{nft.Mark, nft.ClassID},
			Comment: "sender . listener: the same workload, where its class may not reach itself"},
		{Name: "pair", Key: []nft.Type{nft.Mark, nft.ClassID}, Data: nft.VerdictType,
			Comment: "sender . listener: both sides allow everything"},
		{Name: "egress_remote", Key: []nft.Type{nft.Mark, nft.Mark}, Data: nft.VerdictType,
			Comment: "sender . another node's workload: where it differs from egress_class"},
	}
	sets = append(sets, destinationSets("leave", nft.ClassID,
		"sender . address . protocol . port: what rules say, where it differs from leave_class")...)
	sets = append(sets, destinationSets("called", nft.Mark,
		"the same, of the address that was called, where NAT led to this node")...)
	sets = append(sets, sideSets("ingress", "listener", nft.ClassID)...)
	return append(sets, sideSets("egress", "sender", nft.Mark)...)
}

// destinationSets returns the maps that say what a sender may have to do with addresses outside.
func destinationSets(name string, sender nft.Type, comment string) (sets []nft.Set) {
	for _, f := range families {
		sets = append(sets,
			nft.Set{Name: name + f.suffix, Key: []nft.Type{sender, f.address, nft.InetProto, nft.InetService},
				Data: nft.VerdictType, Interval: true, Comment: comment},
			nft.Set{Name: name + "_icmp" + f.suffix, Key: []nft.Type{sender, f.address, f.icmpType},
				Data: nft.VerdictType, Interval: true,
				Comment: "by ICMP type, where it differs from " + name + f.suffix})
	}
	return sets
}

// sideSets returns the maps that say what one side of a connection says.
func sideSets(name, self string, of nft.Type) []nft.Set {
	return []nft.Set{
		{Name: name + "_peer", Key: []nft.Type{nft.Mark, nft.ClassID}, Data: nft.VerdictType,
			Comment: "sender . listener: where it differs from " + name + "_class"},
		{Name: name + "_class", Key: []nft.Type{of}, Data: nft.VerdictType, Comment: self},
	}
}

// WorkloadSets returns the sets of cgroups at a depth that belong to workloads, with room for so many cgroups.
func WorkloadSets(depth uint8, cgroups int) []nft.Set {
	room := func(each int) []nft.Element { return make([]nft.Element, 0, each*cgroups) }
	return []nft.Set{
		{Name: SenderMap(depth), Key: []nft.Type{nft.CgroupV2}, Data: nft.Mark, Elements: room(1),
			Comment: fmt.Sprintf("cgroups at depth %d: the number of what they send", depth)},
		{Name: ListenerMap(depth), Key: []nft.Type{nft.CgroupV2}, Data: nft.ClassID, Elements: room(1),
			Comment: "the same number, of a listener"},
		{Name: SameSet(depth), Key: []nft.Type{nft.CgroupV2, nft.Mark}, Elements: room(2),
			Comment: "the same, to ask whether the mark says so already"},
	}
}

// FreeSets returns the set of containers at a depth that are known to be unlabelled.
func FreeSets(depth uint8) []nft.Set {
	return []nft.Set{{Name: FreeSet(depth), Key: []nft.Type{nft.CgroupV2},
		Comment: "containers that are known to be unlabelled"}}
}

// UnknownSets returns the set of the parents of containers at a depth.
func UnknownSets(depth uint8) []nft.Set {
	return []nft.Set{{Name: UnknownSet(depth), Key: []nft.Type{nft.CgroupV2},
		Comment: "parents of containers: what is below them and in no set of a deeper level is not known yet"}}
}

// BridgeSets returns the sets of containers with a network of their own.
func BridgeSets() []nft.Set {
	sets := []nft.Set{{Name: "bridges", Key: []nft.Type{nft.IfName}, Comment: "bridges of containers"}}
	for _, f := range families {
		sets = append(sets,
			nft.Set{Name: "container" + f.suffix, Key: []nft.Type{nft.IfName, f.address}, Data: nft.Mark,
				Comment: "containers with a network of their own: their class"},
			nft.Set{Name: "to_container" + f.suffix, Key: []nft.Type{f.address}, Data: nft.ClassID,
				Comment: "the same, as seen from here"},
			nft.Set{Name: "container_net" + f.suffix, Key: []nft.Type{f.address}, Interval: true,
				Comment: "where containers are"})
	}
	return sets
}

// FleetSets returns the sets of other nodes and of their workloads.
func FleetSets() []nft.Set {
	sets := []nft.Set{
		{Name: "remotes", Key: []nft.Type{nft.Mark}, Comment: "workloads of other nodes that are believed"},
		{Name: "introduced", Key: []nft.Type{nft.ClassID},
			Comment: "who may reach other nodes' workloads by their labels"},
	}
	for _, f := range families {
		sets = append(sets, nft.Set{Name: "fleet" + f.suffix, Key: []nft.Type{f.address}, Interval: true,
			Comment: "where other nodes are"})
	}
	return sets
}
