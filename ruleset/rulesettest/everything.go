package rulesettest

import (
	"net/netip"
	"time"

	"thole/ruleset"
)

// Cgroup is a cgroup that a table may name.
type Cgroup struct {
	Path string
	ID   uint64
}

func (c Cgroup) value() ruleset.Value { return ruleset.CgroupValue(c.Path, c.ID) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) ruleset.Value { return ruleset.Prefix(netip.MustParsePrefix(s)) }

func addrs(lo, hi string) ruleset.Value { return ruleset.AddressRange(addr(lo), addr(hi)) }

// Everything returns a table of every type, field, operator and statement. Its
// comments and strings are as users may have written them.
func Everything(a, b Cgroup) ruleset.Table {
	return ruleset.Table{
		Name:     "thole",
		Counters: []string{"unlabelled", "denied"},
		Sets:     everySet(a, b),
		Chains:   everyChain(),
		Bridge:   bridge(),
	}
}

// bridge is a table beside it, with what is there alone.
func bridge() *ruleset.Table {
	protocol := func(n uint32) ruleset.Match {
		return ruleset.Match{Left: ruleset.Expr{Field: ruleset.MetaProtocol}, Value: n}
	}
	port := func(f ruleset.Field) []ruleset.Expr {
		return []ruleset.Expr{{Field: ruleset.MetaIifName}, {Field: f}}
	}
	accept, drop := ruleset.Verdict{Kind: ruleset.Accept}, ruleset.Verdict{Kind: ruleset.Drop}
	return &ruleset.Table{
		Name:     "thole",
		Counters: []string{"forged"},
		Sets: []ruleset.Set{
			{Name: "port4", Key: []ruleset.Type{ruleset.IfName, ruleset.IPv4Addr}, Elements: []ruleset.Element{
				key(ruleset.Interface("veth0"), ruleset.Address(addr("172.17.0.2"))),
			}},
			{Name: "port6", Key: []ruleset.Type{ruleset.IfName, ruleset.IPv6Addr}},
		},
		Chains: []ruleset.Chain{
			{Name: "early", Hook: ruleset.Prerouting, Priority: -300},
			{Name: "prerouting", Hook: ruleset.Prerouting, Priority: -200, Rules: []ruleset.Rule{
				{Statements: []ruleset.Statement{protocol(ruleset.EtherIPv4),
					ruleset.InSet{Key: port(ruleset.IPSaddr), Set: "port4"}, accept}},
				{Statements: []ruleset.Statement{protocol(ruleset.EtherIPv6),
					ruleset.InSet{Key: port(ruleset.IP6Saddr), Set: "port6"}, accept}},
				{Statements: []ruleset.Statement{protocol(ruleset.EtherARP),
					ruleset.InSet{Key: port(ruleset.ARPSaddrIP), Set: "port4"}, accept}},
				{Statements: []ruleset.Statement{protocol(0x88cc), ruleset.Count{Counter: "forged"}, drop}},
			}},
		},
	}
}

// num is an element of single numbers.
func num(ns ...uint64) ruleset.Element {
	var e ruleset.Element
	for _, n := range ns {
		e.Key = append(e.Key, ruleset.Number(n))
	}
	return e
}

// key is an element of any values.
func key(vs ...ruleset.Value) ruleset.Element { return ruleset.Element{Key: vs} }

// to makes e an entry of a map to marks or classes.
func to(e ruleset.Element, n uint32) ruleset.Element {
	e.Number = n
	return e
}

// do makes e an entry of a verdict map.
func do(e ruleset.Element, kind ruleset.VerdictKind, chain string) ruleset.Element {
	e.Verdict = ruleset.Verdict{Kind: kind, Chain: chain}
	return e
}

func everySet(a, b Cgroup) []ruleset.Set {
	says := func(e ruleset.Element, comment string) ruleset.Element {
		e.Comment = comment
		return e
	}
	return []ruleset.Set{
		{
			Name: "class", Key: []ruleset.Type{ruleset.CgroupV2}, Data: ruleset.Mark, Comment: "who is who",
			Elements: []ruleset.Element{
				says(to(key(b.value()), 0x11), "web; policies/a.yaml:3\n}}\x1b[31m\\"),
				to(key(a.value()), 0x10),
			},
		},
		{
			Name: "pending4", Key: []ruleset.Type{ruleset.IPv4Addr, ruleset.InetService, ruleset.IPv4Addr,
				ruleset.InetService},
			Timeout: 75 * time.Second, Size: 4096,
		},
		{
			Name: "containers", Key: []ruleset.Type{ruleset.IfName, ruleset.IPv4Addr}, Data: ruleset.Mark,
			Elements: []ruleset.Element{
				to(key(ruleset.Interface("docker0"), ruleset.Address(addr("172.17.0.2"))), 0x10),
				to(key(ruleset.Interface("br-0123456789ab"), ruleset.Address(addr("172.18.0.2"))), 0x11),
			},
		},
		{
			Name: "containers6", Key: []ruleset.Type{ruleset.IfName, ruleset.IPv6Addr}, Data: ruleset.Mark,
			Elements: []ruleset.Element{to(key(ruleset.Interface("docker0"), ruleset.Address(addr("fd00::2"))), 0x10)},
		},
		{
			Name: "bridges", Key: []ruleset.Type{ruleset.IfName},
			Elements: []ruleset.Element{key(ruleset.Interface("docker0")), key(ruleset.Interface("br-0123456789ab"))},
		},
		{
			Name: "same", Key: []ruleset.Type{ruleset.CgroupV2, ruleset.Mark},
			Elements: []ruleset.Element{key(a.value(), ruleset.Number(0x10)), key(b.value(), ruleset.Number(0x11))},
		},
		{
			Name: "ports", Key: []ruleset.Type{ruleset.InetProto, ruleset.InetService}, Data: ruleset.ClassID,
			Interval: true,
			Elements: []ruleset.Element{
				to(num(6, 80), 1), to(key(ruleset.Number(6), ruleset.Span(8000, 8100)), 2),
				to(key(ruleset.Number(132), ruleset.Span(0, 65535)), 3),
				to(key(ruleset.Span(200, 255), ruleset.Span(0, 65535)), 1<<32-1),
			},
		},
		{
			Name: "icmp4", Key: []ruleset.Type{ruleset.ICMPType}, Data: ruleset.ClassID, Interval: true,
			Elements: []ruleset.Element{to(num(8), 0x1fffe), to(key(ruleset.Span(9, 255)), 6)},
		},
		{Name: "icmp6", Key: []ruleset.Type{ruleset.ICMPv6Type}, Elements: []ruleset.Element{num(128), num(129)}},
		{
			Name: "world4", Key: []ruleset.Type{ruleset.IPv4Addr}, Data: ruleset.Mark, Interval: true,
			Elements: []ruleset.Element{
				to(key(prefix("10.0.0.0/8")), 0x20), to(key(addrs("11.0.0.0", "11.0.0.9")), 0x21),
				to(key(addrs("11.0.0.10", "11.0.0.10")), 0x22), to(key(prefix("128.0.0.0/1")), 0),
			},
		},
		{
			Name: "world6", Key: []ruleset.Type{ruleset.IPv6Addr}, Data: ruleset.Mark, Interval: true,
			Elements: []ruleset.Element{to(key(prefix("fd00::/8")), 0x20), to(key(addrs("::2", "::9")), 0x21)},
		},
		{Name: "hosts4", Key: []ruleset.Type{ruleset.IPv4Addr},
			Elements: []ruleset.Element{key(addrs("10.0.0.1", "10.0.0.1"))}},
		{Name: "hosts6", Key: []ruleset.Type{ruleset.IPv6Addr, ruleset.InetService}, Elements: []ruleset.Element{
			key(addrs("fd00::1", "fd00::1"), ruleset.Number(53)),
		}},
		{Name: "all4", Key: []ruleset.Type{ruleset.IPv4Addr}, Interval: true,
			Elements: []ruleset.Element{key(prefix("0.0.0.0/0"))}},
		{Name: "empty", Key: []ruleset.Type{ruleset.Mark}, Data: ruleset.VerdictType},
		{
			Name: "marks", Key: []ruleset.Type{ruleset.Mark}, Interval: true,
			Elements: []ruleset.Element{num(0), key(ruleset.Span(0x10, 0x1ff)), num(0x200), num(1<<32 - 1)},
		},
		{
			Name: "in", Key: []ruleset.Type{ruleset.Mark, ruleset.Mark, ruleset.ClassID}, Data: ruleset.VerdictType,
			Elements: []ruleset.Element{
				do(num(0x10, 0x11, 1), ruleset.Return, ""), do(num(0x10, 0x11, 2), ruleset.Drop, ""),
				do(num(0x10, 0x11, 3), ruleset.Accept, ""), do(num(0x10, 0x12, 3), ruleset.Jump, "dead"),
			},
		},
		{
			Name: "out4", Key: []ruleset.Type{ruleset.Mark, ruleset.IPv4Addr, ruleset.InetProto, ruleset.InetService},
			Data: ruleset.VerdictType, Interval: true,
			Elements: []ruleset.Element{
				do(key(ruleset.Number(0x10), prefix("10.0.0.0/8"), ruleset.Span(0, 255), ruleset.Span(0, 65535)),
					ruleset.Goto, "dead"),
				do(key(ruleset.Number(0x10), addrs("11.0.0.0", "11.0.0.9"), ruleset.Number(6), ruleset.Number(80)),
					ruleset.Goto, "settle"),
			},
		},
		{
			Name: "out6", Key: []ruleset.Type{ruleset.ClassID, ruleset.IPv6Addr}, Interval: true,
			Elements: []ruleset.Element{key(ruleset.Number(0x20003), prefix("fd00::/8"))},
		},
	}
}

// Shorter words for what follows.
type (
	stmts = []ruleset.Statement
	match = ruleset.Match
)

func f(field ruleset.Field) ruleset.Expr { return ruleset.Expr{Field: field} }

func is(field ruleset.Field, n uint32) match { return match{Left: f(field), Value: n} }

func op(field ruleset.Field, o ruleset.Op, n uint32) match {
	return match{Left: f(field), Op: o, Value: n}
}

func bits(field ruleset.Field, o ruleset.Op, mask, n uint32) match {
	return match{Left: f(field), Op: o, Mask: mask, Value: n}
}

func between(field ruleset.Field, v ruleset.Value) match {
	return match{Left: f(field), Op: ruleset.InRange, From: v.From, To: v.To}
}

func masked(field ruleset.Field, mask uint32) ruleset.Expr {
	return ruleset.Expr{Field: field, Mask: mask}
}

func cgroup(level uint8) ruleset.Expr {
	return ruleset.Expr{Field: ruleset.SocketCgroup, Level: level}
}

var (
	accept = ruleset.Verdict{Kind: ruleset.Accept}
	drop   = ruleset.Verdict{Kind: ruleset.Drop}
)

func everyChain() []ruleset.Chain {
	rules := func(ss ...stmts) []ruleset.Rule {
		var out []ruleset.Rule
		for _, s := range ss {
			out = append(out, ruleset.Rule{Statements: s})
		}
		return out
	}
	chains := []ruleset.Chain{
		{Name: "settle", Rules: rules(stmts{ruleset.SetBits{Target: ruleset.CtMark, And: 0x1000ffff, Or: 0x10000},
			accept})},
		{Name: "dead", Comment: "ends a connection", Rules: deadRules()},
		{Name: "compare", Rules: comparisons()},
		{Name: "look", Rules: lookups()},
		{Name: "assign", Rules: assignments()},
		{Name: "void"},
		{Name: "pre", Hook: ruleset.Prerouting, Priority: -301, Rules: rules(stmts{drop})},
		{Name: "inp", Hook: ruleset.Input, Priority: 10,
			Rules: rules(stmts{ruleset.Verdict{Kind: ruleset.Jump, Chain: "compare"}})},
		{Name: "forw", Hook: ruleset.Forward, Rules: rules(stmts{ruleset.Verdict{Kind: ruleset.Goto, Chain: "dead"}})},
		{Name: "outp", Hook: ruleset.Output, Priority: 1<<31 - 1, Rules: rules(
			stmts{ruleset.Verdict{Kind: ruleset.Jump, Chain: "look"}},
			stmts{ruleset.Verdict{Kind: ruleset.Jump, Chain: "assign"}},
			stmts{ruleset.Verdict{Kind: ruleset.Return}},
		)},
		{Name: "post", Hook: ruleset.Postrouting, Priority: -1 << 31},
	}
	chains[0].Rules[0].Comment = "rule comment\rtable inet x {"
	return chains
}

func deadRules() []ruleset.Rule {
	lo := is(ruleset.MetaIif, ruleset.IfindexLo)
	return []ruleset.Rule{
		{Statements: stmts{ruleset.SetBits{Target: ruleset.CtMark, And: 1<<32 - 1, Or: 0x20000000}}},
		{Statements: stmts{ruleset.Log{Prefix: "thole audit \"$x\" \\ \x1b #: ", PerSecond: 10}}},
		{Statements: stmts{ruleset.Log{PerSecond: 1}}},
		{Statements: stmts{ruleset.Log{Prefix: "all"}}},
		{Statements: stmts{lo, is(ruleset.MetaL4Proto, ruleset.ProtoTCP), ruleset.Count{Counter: "denied"},
			ruleset.Reject{With: ruleset.TCPReset}}},
		{Statements: stmts{lo, ruleset.Count{Counter: "denied"}, ruleset.Reject{With: ruleset.AdminProhibited}}},
		{Statements: stmts{ruleset.Count{Counter: "unlabelled"}, drop}},
	}
}

func comparisons() []ruleset.Rule {
	var out []ruleset.Rule
	for _, m := range []match{
		{Left: ruleset.Expr{Field: ruleset.TCPOption, Level: 254}, Value: 1},
		{Left: ruleset.Expr{Field: ruleset.TCPOption, Level: 254}, Value: 0},
		is(ruleset.CtDirection, ruleset.DirOriginal), op(ruleset.CtDirection, ruleset.NotEqual, ruleset.DirReply),
		op(ruleset.CtState, ruleset.Any, ruleset.StateInvalid|ruleset.StateUntracked),
		op(ruleset.CtState, ruleset.Any, 0x80),
		is(ruleset.CtState, ruleset.StateNew), op(ruleset.CtState, ruleset.NotEqual, ruleset.StateNew),
		bits(ruleset.CtState, ruleset.Masked, ruleset.StateNew|ruleset.StateRelated, 0),
		op(ruleset.CtStatus, ruleset.Any, ruleset.StatusDNAT),
		bits(ruleset.CtStatus, ruleset.Masked, ruleset.StatusDNAT, 0),
		is(ruleset.CtMark, 0x10), op(ruleset.CtMark, ruleset.NotEqual, 0x10), op(ruleset.CtMark, ruleset.AtLeast, 0x10),
		bits(ruleset.CtMark, ruleset.Masked, 0xffff, 0x11), bits(ruleset.CtMark, ruleset.MaskedNot, 0x10000000, 0),
		bits(ruleset.CtMark, ruleset.Masked, 1<<32-1, 0x12),
		{Left: masked(ruleset.CtMark, 0xff), Op: ruleset.NotEqual, Value: 0x13},
		between(ruleset.CtMark, ruleset.Span(0x100, 0x2ff)),
		is(ruleset.MetaMark, 0), bits(ruleset.MetaMark, ruleset.MaskedNot, 0xff, 0),
		is(ruleset.MetaPriority, 0), is(ruleset.MetaPriority, 0x10002),
		is(ruleset.MetaL4Proto, ruleset.ProtoICMPv6), op(ruleset.MetaL4Proto, ruleset.NotEqual, 89),
		is(ruleset.MetaNFProto, ruleset.NFProtoIPv6), op(ruleset.MetaNFProto, ruleset.NotEqual, ruleset.NFProtoIPv4),
		is(ruleset.MetaIif, ruleset.IfindexLo), between(ruleset.MetaIif, ruleset.Span(0, 1)),
		op(ruleset.MetaOif, ruleset.NotEqual, 7),
		op(ruleset.SocketMark, ruleset.AtLeast, 0), op(ruleset.SkUID, ruleset.AtLeast, 0), is(ruleset.SkUID, 1000),
		is(ruleset.THSport, 53), is(ruleset.THDport, 53), op(ruleset.THDport, ruleset.NotEqual, 53),
		op(ruleset.THDport, ruleset.AtLeast, 1024),
		between(ruleset.THDport, ruleset.Span(1, 65535)),
		bits(ruleset.TCPFlags, ruleset.Masked, ruleset.TCPSyn|ruleset.TCPAck, ruleset.TCPSyn),
		bits(ruleset.TCPFlags, ruleset.MaskedNot, ruleset.TCPSyn|ruleset.TCPAck, ruleset.TCPSyn),
		bits(ruleset.TCPFlags, ruleset.Masked, ruleset.TCPRst, 0),
		op(ruleset.TCPFlags, ruleset.Any, ruleset.TCPRst|ruleset.TCPFin),
		is(ruleset.TCPFlags, ruleset.TCPSyn), is(ruleset.TCPToken, 1), op(ruleset.TCPToken, ruleset.NotEqual, 2),
		is(ruleset.IPSaddr, 0x0a000001), op(ruleset.IPDaddr, ruleset.NotEqual, 0x7f000001),
		between(ruleset.IPDaddr, prefix("10.0.0.0/8")), between(ruleset.IPSaddr, addrs("10.0.0.1", "10.0.0.1")),
		between(ruleset.IP6Saddr, addrs("fd00::1", "fd00::1")), between(ruleset.IP6Daddr, prefix("ff00::/8")),
		is(ruleset.ICMPTypeOf, 8), between(ruleset.ICMPTypeOf, ruleset.Span(9, 10)),
		op(ruleset.ICMPv6TypeOf, ruleset.AtLeast, 128),
		is(ruleset.FibDaddrType, ruleset.RTNLocal), is(ruleset.FibDaddrType, ruleset.RTNBroadcast),
		op(ruleset.FibDaddrType, ruleset.NotEqual, ruleset.RTNMulticast), is(ruleset.FibDaddrType, 7),
		between(ruleset.SocketTransparent, ruleset.Span(0, 1)),
		is(ruleset.InnerByte, 22), between(ruleset.InnerByte, ruleset.Span(0, 255)),
		is(ruleset.InnerWord, 1<<24), between(ruleset.InnerWord, ruleset.Span(1<<24, 1<<25)),
		ruleset.HasKind(), is(ruleset.RtIPsec, 1), is(ruleset.RtIPsec, 0),
		is(ruleset.CtOriginalIPSaddr, 0x0a000001), between(ruleset.CtOriginalIPDaddr, prefix("10.0.0.0/8")),
		is(ruleset.CtReplyIPSaddr, 0x0a000001), between(ruleset.CtOriginalIP6Saddr, addrs("fd00::1", "fd00::1")),
		between(ruleset.CtOriginalIP6Daddr, prefix("ff00::/8")),
		between(ruleset.CtReplyIP6Saddr, addrs("fd00::1", "fd00::2")),
		is(ruleset.CtOriginalProtoDst, 53), is(ruleset.CtReplyProtoSrc, 53),
		bits(ruleset.FragmentOffset, ruleset.MaskedNot, ruleset.FragmentMask, 0),
		bits(ruleset.FragmentOffset, ruleset.Masked, ruleset.FragmentMask, 1448),
		is(ruleset.FibSaddrType, ruleset.RTNLocal), op(ruleset.FibSaddrType, ruleset.NotEqual, ruleset.RTNLocal),
	} {
		out = append(out, ruleset.Rule{Statements: stmts{m, accept}})
	}
	return append(out, ruleset.Rule{Statements: stmts{
		is(ruleset.MetaNFProto, ruleset.NFProtoIPv4), is(ruleset.IPSaddr, 0x0a000001), is(ruleset.IPDaddr, 0x0a000002),
		drop,
	}})
}

func lookups() []ruleset.Rule {
	class := masked(ruleset.CtMark, 0xffff)
	var out []ruleset.Rule
	for _, s := range []ruleset.Statement{
		ruleset.InSet{Key: []ruleset.Expr{cgroup(2), class}, Set: "same"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.IPSaddr)}, Set: "hosts4"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.IP6Saddr), f(ruleset.THDport)}, Set: "hosts6"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.ICMPv6TypeOf)}, Set: "icmp6"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.IPDaddr)}, Set: "all4"},
		ruleset.InSet{Key: []ruleset.Expr{class}, Set: "marks"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.MetaIifName)}, Set: "bridges"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.MetaOifName)}, Set: "bridges"},
		ruleset.InSet{Key: []ruleset.Expr{f(ruleset.MetaPriority), f(ruleset.IP6Daddr)}, Set: "out6"},
		ruleset.ByMap{Key: []ruleset.Expr{class}, Map: "empty"},
		ruleset.ByMap{Key: []ruleset.Expr{masked(ruleset.MetaMark, 0xffff)}, Map: "empty"},
		ruleset.ByMap{Key: []ruleset.Expr{class, f(ruleset.MetaMark), f(ruleset.MetaPriority)}, Map: "in"},
		ruleset.ByMap{Key: []ruleset.Expr{class, f(ruleset.IPDaddr), f(ruleset.MetaL4Proto), f(ruleset.THDport)},
			Map: "out4"},
		ruleset.ByMap{Key: []ruleset.Expr{class, f(ruleset.CtOriginalIPDaddr), f(ruleset.MetaL4Proto),
			f(ruleset.CtOriginalProtoDst)}, Map: "out4"},
	} {
		out = append(out, ruleset.Rule{Statements: stmts{s}})
	}
	return out
}

func pending() []ruleset.Expr {
	return []ruleset.Expr{f(ruleset.IPSaddr), f(ruleset.THSport), f(ruleset.IPDaddr), f(ruleset.THDport)}
}

func assignments() []ruleset.Rule {
	var out []ruleset.Rule
	for _, s := range []ruleset.Statement{
		ruleset.SetByMap{Target: ruleset.CtMark, Key: []ruleset.Expr{cgroup(3)}, Map: "class"},
		ruleset.SetByMap{Target: ruleset.CtMark, Key: []ruleset.Expr{f(ruleset.MetaIifName), f(ruleset.IPSaddr)},
			Map: "containers"},
		ruleset.SetByMap{Target: ruleset.CtMark, Key: []ruleset.Expr{f(ruleset.MetaIifName), f(ruleset.IP6Saddr)},
			Map: "containers6"},
		ruleset.SetByMap{Target: ruleset.MetaMark, Key: []ruleset.Expr{f(ruleset.IPSaddr)}, Map: "world4"},
		ruleset.SetByMap{Target: ruleset.MetaMark, Key: []ruleset.Expr{f(ruleset.IP6Saddr)}, Map: "world6"},
		ruleset.SetByMap{Target: ruleset.MetaPriority, Key: []ruleset.Expr{f(ruleset.MetaL4Proto), f(ruleset.THDport)},
			Map: "ports"},
		ruleset.SetByMap{Target: ruleset.MetaPriority, Key: []ruleset.Expr{f(ruleset.ICMPTypeOf)}, Map: "icmp4"},
		ruleset.SetBits{Target: ruleset.CtMark},
		ruleset.SetBits{Target: ruleset.CtMark, Or: 0x12345678},
		ruleset.SetBits{Target: ruleset.CtMark, And: 1<<32 - 1},
		ruleset.SetBits{Target: ruleset.CtMark, And: 0xffff},
		ruleset.SetBits{Target: ruleset.CtMark, And: 0xff0f, Or: 0x10000},
		ruleset.SetBits{Target: ruleset.CtMark, And: 0xff, Or: 0x1},
		ruleset.SetBits{Target: ruleset.MetaMark, Or: 1},
		ruleset.SetBits{Target: ruleset.MetaPriority},
		ruleset.SetBits{Target: ruleset.MetaPriority, Or: 0x10002},
		ruleset.Copy{Target: ruleset.CtMark, Source: ruleset.MetaMark},
		ruleset.Copy{Target: ruleset.MetaMark, Source: ruleset.CtMark},
		ruleset.Copy{Target: ruleset.MetaMark, Source: ruleset.CtMark, And: 0xffff},
		ruleset.Copy{Target: ruleset.CtMark, Source: ruleset.MetaMark, And: 0xffff, Or: 0x10010000},
		ruleset.SetBits{Target: ruleset.MetaMark, And: 1<<32 - 1, Or: 1 << 31},
		ruleset.Rewrite{Target: ruleset.IPDaddr, Source: ruleset.CtOriginalIPDaddr},
		ruleset.Rewrite{Target: ruleset.IPDaddr, Source: ruleset.CtOriginalIPSaddr},
		ruleset.Rewrite{Target: ruleset.IPDaddr, Source: ruleset.CtReplyIPSaddr},
		ruleset.Rewrite{Target: ruleset.IP6Daddr, Source: ruleset.CtOriginalIP6Daddr},
		ruleset.Rewrite{Target: ruleset.IP6Daddr, Source: ruleset.CtOriginalIP6Saddr},
		ruleset.Rewrite{Target: ruleset.IP6Daddr, Source: ruleset.CtReplyIP6Saddr},
		ruleset.Flip{Field: ruleset.THSport},
		ruleset.Flip{Field: ruleset.TCPSequence},
		ruleset.Update{Key: pending(), Set: "pending4"},
		ruleset.Update{Key: pending(), Set: "pending4", Limit: ruleset.Limit{PerSecond: 100, Burst: 200}},
		ruleset.Limit{PerSecond: 1000, Burst: 2000},
		ruleset.InSet{Key: pending(), Set: "pending4"},
	} {
		out = append(out, ruleset.Rule{Statements: stmts{s}})
	}
	return out
}
