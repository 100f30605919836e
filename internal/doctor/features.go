package doctor

import (
	"slices"

	nft "thole/ruleset"
)

// tableName is that of the tables which the probe loads.
const tableName = "thole_doctor"

// A feature is something of the kernel that compiled tables are made of, with the
// least that needs it.
type feature struct {
	name     string
	found    string // OK
	follows  string // missing
	needs    string // of the kernel
	rules    []nft.Rule
	sets     []nft.Set
	counters []string
	bridge   *nft.Table // beside the table
}

// table has the rules in both hooks that compiled tables use.
func (f feature) table() nft.Table {
	return nft.Table{
		Name:     tableName,
		Counters: f.counters,
		Sets:     f.sets,
		Bridge:   f.bridge,
		Chains: []nft.Chain{
			{Name: "input", Hook: nft.Input, Priority: 10, Rules: f.rules},
			{Name: "output", Hook: nft.Output, Priority: 10, Rules: f.rules},
		},
	}
}

// features lists all. The cgroup is the one that the probe runs in, level levels
// below the root.
func features(cgroup nft.Value, level uint8) []feature {
	return slices.Concat(
		basicFeatures(),
		cgroupFeatures(cgroup, nft.Expr{Field: nft.SocketCgroup, Level: level}),
		mapFeatures(),
		answerFeatures(),
		bridgeFeatures(),
	)
}

const nothingEnforced = "no table can be loaded: nothing is enforced"

func basicFeatures() []feature {
	return []feature{{
		name:    "nftables",
		found:   "tables of family inet, hooks input and output",
		follows: nothingEnforced,
		needs:   "CONFIG_NF_TABLES_INET",
		rules:   rules(accept),
	}, {
		name:     "counters",
		found:    "named",
		follows:  nothingEnforced,
		needs:    "CONFIG_NF_TABLES",
		rules:    rules(nft.Count{Counter: "seen"}),
		counters: []string{"seen"},
	}, {
		name:    "conntrack",
		found:   "direction, state, status and mark",
		follows: nothingEnforced,
		needs:   "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.CtDirection}, Value: nft.DirReply},
			nft.Match{Left: nft.Expr{Field: nft.CtState}, Op: nft.Any, Value: nft.StateNew},
			nft.Match{Left: nft.Expr{Field: nft.CtStatus}, Op: nft.Any, Value: nft.StatusDNAT},
			nft.SetBits{Target: nft.CtMark, And: 0xffff, Or: 1 << 16},
		),
	}, {
		name:    "fib",
		found:   "kinds of addresses",
		follows: nothingEnforced,
		needs:   "CONFIG_NFT_FIB_INET",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.FibDaddrType}, Value: nft.RTNMulticast},
			nft.Match{Left: nft.Expr{Field: nft.FibSaddrType}, Value: nft.RTNLocal},
		),
	}, {
		name:    "payload",
		found:   "data after TCP's header, and changes of headers",
		follows: nothingEnforced,
		needs:   "CONFIG_NF_TABLES (5.16 or newer)",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.MetaL4Proto}, Value: nft.ProtoTCP},
			nft.Match{Left: nft.Expr{Field: nft.InnerByte}, Op: nft.InRange, To: nft.Number(255).From},
			nft.Flip{Field: nft.THSport},
			nft.Flip{Field: nft.TCPSequence},
		),
	}, {
		name:    "called addresses",
		found:   "the called address behind NAT, and tunnels",
		follows: nothingEnforced,
		needs:   "CONFIG_NFT_CT and CONFIG_NF_TABLES (5.1 or newer)",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.CtOriginalIPDaddr}, Value: 0},
			nft.Match{Left: nft.Expr{Field: nft.CtOriginalProtoDst}, Value: 0},
			nft.Rewrite{Target: nft.IPDaddr, Source: nft.CtReplyIPSaddr},
			nft.Rewrite{Target: nft.IP6Daddr, Source: nft.CtReplyIP6Saddr},
			nft.HasKind(),
			nft.Match{Left: nft.Expr{Field: nft.RtIPsec}, Value: 1},
		),
	}}
}

func cgroupFeatures(cgroup nft.Value, socket nft.Expr) []feature {
	own := func(data nft.Type) []nft.Set {
		element := nft.Element{Key: []nft.Value{cgroup}}
		if data != nft.None {
			element.Number = 1
		}
		return []nft.Set{{Name: "own", Key: []nft.Type{nft.CgroupV2}, Data: data, Elements: []nft.Element{element}}}
	}
	return []feature{{
		name:    "socket cgroupv2",
		found:   "sockets by their cgroup",
		follows: "processes cannot be distinguished: nothing is enforced",
		needs:   "CONFIG_NFT_SOCKET and CONFIG_SOCK_CGROUP_DATA (5.13 or newer)",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.SocketMark}, Op: nft.AtLeast},
			nft.Match{Left: nft.Expr{Field: nft.SkUID}, Op: nft.AtLeast},
			nft.Match{Left: nft.Expr{Field: nft.SocketTransparent}, Op: nft.InRange, To: nft.Number(1).From},
			nft.InSet{Key: []nft.Expr{socket}, Set: "own"},
		),
		sets: own(nft.None),
	}, {
		name:    "marks from maps",
		found:   "conntrack mark and packet mark",
		follows: "connections cannot carry labels: nothing is enforced",
		needs:   "CONFIG_NF_TABLES and CONFIG_NFT_CT",
		rules: rules(
			nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{socket}, Map: "own"},
			nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{socket}, Map: "own"},
			nft.Copy{Target: nft.CtMark, Source: nft.MetaMark, And: 0xffff, Or: 1 << 16},
		),
		sets: own(nft.Mark),
	}}
}

func mapFeatures() []feature {
	class := nft.Expr{Field: nft.CtMark, Mask: 0xffff}
	proto, port := nft.Expr{Field: nft.MetaL4Proto}, nft.Expr{Field: nft.THDport}
	return []feature{{
		name:    "verdict maps",
		found:   "of concatenations",
		follows: "no rule that names peers or ports can be enforced",
		needs:   "CONFIG_NF_TABLES",
		rules: rules(nft.ByMap{
			Key: []nft.Expr{class, {Field: nft.MetaMark}, {Field: nft.MetaPriority}},
			Map: "decide",
		}),
		sets: []nft.Set{{
			Name:     "decide",
			Key:      []nft.Type{nft.Mark, nft.Mark, nft.ClassID},
			Data:     nft.VerdictType,
			Elements: []nft.Element{{Key: []nft.Value{nft.Number(1), nft.Number(2), nft.Number(3)}, Verdict: accept}},
		}},
	}, {
		name:    "interval concatenations",
		found:   "networks and port ranges in one map",
		follows: "no rule with a network or a port range can be enforced",
		needs:   "CONFIG_NF_TABLES (5.6 or newer)",
		rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.MetaNFProto}, Value: nft.NFProtoIPv4},
			nft.ByMap{Key: []nft.Expr{class, {Field: nft.IPDaddr}, proto, port}, Map: "leave"},
		),
		sets: []nft.Set{{
			Name:     "leave",
			Key:      []nft.Type{nft.Mark, nft.IPv4Addr, nft.InetProto, nft.InetService},
			Data:     nft.VerdictType,
			Interval: true,
			Elements: []nft.Element{{
				Key: []nft.Value{nft.Number(1), nft.Span(0x0a000000, 0x0affffff), nft.Number(nft.ProtoTCP),
					nft.Span(8000, 8100)},
				Verdict: accept,
			}},
		}},
	}}
}

func answerFeatures() []feature {
	return []feature{{
		name:    "reject",
		found:   "TCP reset and ICMP errors",
		follows: "no table can be loaded, except with --deny drop, where denied connections time out",
		needs:   "CONFIG_NFT_REJECT_INET",
		rules: slices.Concat(
			rules(nft.Match{Left: nft.Expr{Field: nft.MetaL4Proto}, Value: nft.ProtoTCP},
				nft.Reject{With: nft.TCPReset}),
			rules(nft.Reject{With: nft.AdminProhibited}),
		),
	}, {
		name:    "log and limit",
		found:   "for what audit policies would deny",
		follows: "audit policies cannot be loaded",
		needs:   "CONFIG_NFT_LOG and CONFIG_NFT_LIMIT",
		rules:   rules(nft.Log{Prefix: "thole: ", PerSecond: 10}),
	}}
}

func bridgeFeatures() []feature {
	port := nft.Set{Name: "port4", Key: []nft.Type{nft.IfName, nft.IPv4Addr}}
	frames := rules(
		nft.Match{Left: nft.Expr{Field: nft.MetaProtocol}, Value: nft.EtherARP},
		nft.InSet{Key: []nft.Expr{{Field: nft.MetaIifName}, {Field: nft.ARPSaddrIP}}, Set: port.Name},
		accept,
	)
	return []feature{{
		name:    "family bridge",
		found:   "a container's address is bound to its port",
		follows: "no table can be loaded while containers with a network of their own run",
		needs:   "CONFIG_NF_TABLES_BRIDGE",
		rules:   rules(accept),
		bridge: &nft.Table{
			Name:   tableName,
			Sets:   []nft.Set{port},
			Chains: []nft.Chain{{Name: "prerouting", Hook: nft.Prerouting, Priority: -200, Rules: frames}},
		},
	}}
}

var accept = nft.Verdict{Kind: nft.Accept}

// rules returns one rule.
func rules(s ...nft.Statement) []nft.Rule { return []nft.Rule{{Statements: s}} }
