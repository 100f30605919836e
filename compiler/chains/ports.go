package chains

import (
	"fmt"
	"slices"

	nft "thole/ruleset"
)

// Ports are destination ports of TCP, UDP or SCTP, or ICMP types, both ends included.
type Ports struct {
	Protocol uint8
	From, To uint16
}

// A PortVerdict is what a chain of ports decides about some of them.
type PortVerdict struct {
	Ports
	Verdict nft.Verdict
}

// PortChain returns a chain that decides by ports; rest is the verdict on all others. An answer from another host is
// judged by the port that it comes from: that is the one that was called.
func PortChain(name, comment string, ports []PortVerdict, rest nft.Verdict) nft.Chain {
	chain := nft.Chain{Name: name, Comment: comment}
	answer := []nft.Statement{isAnswer, fromAway}
	for _, p := range ports {
		if !p.areTypes() {
			chain.Rules = append(chain.Rules, p.rule(answer, nft.THSport))
		}
	}
	if len(chain.Rules) > 0 {
		chain.Rules = append(chain.Rules, rule(append(slices.Clone(answer), rest)...))
	}
	for _, p := range ports {
		chain.Rules = append(chain.Rules, p.rule(nil, nft.THDport))
	}
	chain.Rules = append(chain.Rules, rule(rest))
	return chain
}

// areTypes reports whether p are ICMP types.
func (p Ports) areTypes() bool { return p.Protocol == nft.ProtoICMP || p.Protocol == nft.ProtoICMPv6 }

// all reports whether p are all ports, or types, of the protocol.
func (p Ports) all() bool {
	last := uint16(65535)
	if p.areTypes() {
		last = 255
	}
	return p.From == 0 && p.To == last
}

func (p PortVerdict) rule(match []nft.Statement, port nft.Field) nft.Rule {
	match = slices.Clone(match)
	switch p.Protocol {
	case nft.ProtoICMP:
		match, port = append(match, v4), nft.ICMPTypeOf
	case nft.ProtoICMPv6:
		match, port = append(match, v6), nft.ICMPv6TypeOf
	}
	match = append(match, is(nft.MetaL4Proto, uint32(p.Protocol)))
	if !p.all() {
		match = append(match, between(port, uint64(p.From), uint64(p.To)))
	}
	return rule(append(match, p.Verdict)...)
}

// String returns the ports as a part of a chain's name.
func (p Ports) String() string {
	s := map[uint8]string{nft.ProtoTCP: "tcp", nft.ProtoUDP: "udp", nft.ProtoSCTP: "sctp", nft.ProtoICMP: "icmp",
		nft.ProtoICMPv6: "icmpv6"}[p.Protocol]
	switch {
	case p.all():
		return s
	case p.From == p.To:
		return fmt.Sprintf("%s%d", s, p.From)
	default:
		return fmt.Sprintf("%s%dto%d", s, p.From, p.To)
	}
}
