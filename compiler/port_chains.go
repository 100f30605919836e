package compiler

import (
	"fmt"
	"hash/fnv"
	"strings"

	"thole/compiler/chains"
	"thole/compiler/classes"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// rowChain returns the chain that says what a row says of ports. Equal rows have one chain,
// whose name says what is in it.
func (l *lowering) rowChain(s side, r *classes.Row) string {
	other := r.OtherPorts()
	var said []portsSaid
	for _, proto := range []uint8{uint8(policy.TCP), uint8(policy.UDP), uint8(policy.SCTP), uint8(policy.ICMP),
		nft.ProtoICMPv6} {
		for _, span := range l.classes.Spans(proto, r) {
			if !span.Judgement.Same(other) {
				ports := chains.Ports{Protocol: proto, From: span.From, To: span.To}
				said = append(said, portsSaid{ports, span.Judgement})
			}
		}
	}
	name := rowName(s, said, other)
	if _, ok := l.rows[name]; ok {
		return name
	}
	var ports []chains.PortVerdict
	for _, p := range said {
		ports = append(ports, chains.PortVerdict{Ports: p.Ports, Verdict: l.verdict(p.judgement, s.stage)})
	}
	l.rows[name] = chains.PortChain(name, rowText(said, other), ports, l.verdict(other, s.stage))
	return name
}

// portsSaid are ports, or ICMP types, of which a row says something else than of others.
type portsSaid struct {
	chains.Ports
	judgement classes.Judgement
}

// maxRowName bounds the part of a chain's name that lists ports.
const maxRowName = 40

// rowName names the chain of a row. Where it does not say all, a checksum tells it from others.
func rowName(s side, said []portsSaid, other classes.Judgement) string {
	var names []string
	plain := other.Ruling == classes.Deny
	for _, p := range said {
		names = append(names, p.String())
		plain = plain && p.judgement.Ruling == classes.Allow
	}
	name := "only_"
	if other.Unsaid {
		name = "only_calls_"
	}
	name += strings.Join(names, "_")
	if plain && len(name) <= maxRowName {
		return name
	}
	h := fnv.New64a()
	fmt.Fprint(h, s.name, " ", rowText(said, other), other.Unsaid)
	for _, p := range said {
		fmt.Fprint(h, " ", p.judgement.Unsaid)
		if p.judgement.Policy != nil {
			fmt.Fprint(h, " ", p.judgement.Policy.Name)
		}
	}
	if other.Policy != nil {
		fmt.Fprint(h, " ", other.Policy.Name)
	}
	return fmt.Sprintf("ports_%016x", h.Sum64())
}

// rowText says in words what a row says.
func rowText(said []portsSaid, other classes.Judgement) string {
	var parts []string
	for _, p := range said {
		parts = append(parts, p.String()+" "+p.judgement.Ruling.String())
	}
	return strings.Join(append(parts, "others "+other.Ruling.String()), ", ")
}
