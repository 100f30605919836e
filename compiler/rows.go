package compiler

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"thole/compiler/policy"
	nft "thole/ruleset"
)

// rowChain returns the chain that says what a row says of ports. Equal rows have one chain,
// whose name says what is in it.
func (l *lowering) rowChain(s side, r *row) string {
	other := r.judgements[0]
	var said []portsSaid
	for _, proto := range []uint8{uint8(policy.TCP), uint8(policy.UDP), uint8(policy.SCTP), uint8(policy.ICMP),
		protoICMPv6} {
		for _, span := range l.spansOf(proto, r) {
			if !span.judgement.same(other) {
				said = append(said, portsSaid{proto, span})
			}
		}
	}
	name := rowName(s, said, other)
	if _, ok := l.rows[name]; ok {
		return name
	}
	chain := nft.Chain{Name: name, Comment: rowText(said, other)}
	rest := l.verdict(other, s.stage)
	answer := []nft.Statement{isAnswer, fromAway}
	for _, p := range said {
		if p.proto != uint8(policy.ICMP) && p.proto != protoICMPv6 {
			chain.Rules = append(chain.Rules, p.rule(answer, nft.THSport, l.verdict(p.judgement, s.stage)))
		}
	}
	if len(chain.Rules) > 0 {
		chain.Rules = append(chain.Rules, rule(append(slices.Clone(answer), rest)...))
	}
	for _, p := range said {
		chain.Rules = append(chain.Rules, p.rule(nil, nft.THDport, l.verdict(p.judgement, s.stage)))
	}
	chain.Rules = append(chain.Rules, rule(rest))
	l.rows[name] = chain
	return name
}

// portsSaid are ports, or ICMP types, of which a row says something else than of others.
type portsSaid struct {
	proto uint8
	judgedSpan
}

// whole says that all of the protocol is meant.
func (p portsSaid) whole() bool { return p.from == 0 && p.to == lastOf(p.proto) }

// lastOf is the last port, or type, of a protocol.
func lastOf(proto uint8) uint16 {
	if proto == uint8(policy.ICMP) || proto == protoICMPv6 {
		return 255
	}
	return 65535
}

func (p portsSaid) rule(match []nft.Statement, port nft.Field, verdict nft.Verdict) nft.Rule {
	match = slices.Clone(match)
	switch p.proto {
	case uint8(policy.ICMP):
		match, port = append(match, v4), nft.ICMPTypeOf
	case protoICMPv6:
		match, port = append(match, v6), nft.ICMPv6TypeOf
	}
	match = append(match, is(nft.MetaL4Proto, uint32(p.proto)))
	if !p.whole() {
		match = append(match, between(port, uint64(p.from), uint64(p.to)))
	}
	return rule(append(match, verdict)...)
}

// String returns the ports as a part of a chain's name.
func (p portsSaid) String() string {
	s := map[uint8]string{uint8(policy.TCP): "tcp", uint8(policy.UDP): "udp", uint8(policy.SCTP): "sctp",
		uint8(policy.ICMP): "icmp", protoICMPv6: "icmpv6"}[p.proto]
	switch {
	case p.whole():
		return s
	case p.from == p.to:
		return fmt.Sprintf("%s%d", s, p.from)
	default:
		return fmt.Sprintf("%s%dto%d", s, p.from, p.to)
	}
}

// maxRowName bounds the part of a chain's name that lists ports.
const maxRowName = 40

// rowName names the chain of a row. Where it does not say all, a checksum tells it from others.
func rowName(s side, said []portsSaid, other judgement) string {
	var names []string
	plain := other.ruling == deny
	for _, p := range said {
		names = append(names, p.String())
		plain = plain && p.judgement.ruling == allow
	}
	name := "only_"
	if other.unsaid {
		name = "only_calls_"
	}
	name += strings.Join(names, "_")
	if plain && len(name) <= maxRowName {
		return name
	}
	h := fnv.New64a()
	fmt.Fprint(h, s.name, " ", rowText(said, other), other.unsaid)
	for _, p := range said {
		fmt.Fprint(h, " ", p.judgement.unsaid)
		if p.judgement.policy != nil {
			fmt.Fprint(h, " ", p.judgement.policy.Name)
		}
	}
	if other.policy != nil {
		fmt.Fprint(h, " ", other.policy.Name)
	}
	return fmt.Sprintf("ports_%016x", h.Sum64())
}

// rowText says in words what a row says.
func rowText(said []portsSaid, other judgement) string {
	verb := map[ruling]string{allow: "allowed", deny: "denied", would: "would be denied"}
	var parts []string
	for _, p := range said {
		parts = append(parts, p.String()+" "+verb[p.judgement.ruling])
	}
	return strings.Join(append(parts, "others "+verb[other.ruling]), ", ")
}
