package compiler

import (
	"fmt"
	"hash/fnv"
	"strings"

	"thole/compiler/chains"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// rowChain returns the chain that says what a row says of ports. Equal rows have one chain,
// whose name says what is in it.
func (l *lowering) rowChain(s side, r *row) string {
	other := r.judgements[0]
	var said []portsSaid
	for _, proto := range []uint8{uint8(policy.TCP), uint8(policy.UDP), uint8(policy.SCTP), uint8(policy.ICMP),
		nft.ProtoICMPv6} {
		for _, span := range l.spansOf(proto, r) {
			if !span.judgement.same(other) {
				ports := chains.Ports{Protocol: proto, From: span.from, To: span.to}
				said = append(said, portsSaid{ports, span.judgement})
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
	judgement judgement
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
	verb := map[ruling]string{allow: "allowed", deny: "denied", wouldDeny: "would be denied"}
	var parts []string
	for _, p := range said {
		parts = append(parts, p.String()+" "+verb[p.judgement.ruling])
	}
	return strings.Join(append(parts, "others "+verb[other.ruling]), ", ")
}
