package chains

import (
	"net/netip"

	nft "thole/ruleset"
)

// A BridgePort is the port of a bridge at which a container is.
type BridgePort struct {
	Name      string // of the interface
	Addresses []netip.Addr
}

// BridgeTable returns the table of family bridge: an address of a container is that
// container's alone, by its own port, in IP as in ARP. INPUT, which sees the bridge and
// not its port, can then believe it. It is nil if there are no ports.
func BridgeTable(containers []BridgePort) *nft.Table {
	if len(containers) == 0 {
		return nil
	}
	t := &nft.Table{Name: "thole", Counters: []string{"forged"}}
	chain := nft.Chain{
		Name: "prerouting", Hook: nft.Prerouting, Priority: bridgePriority,
		Comment: "what enters a bridge: an address of a container comes from its own port",
	}
	ports := nft.Set{Name: "ports", Key: []nft.Type{nft.IfName}, Comment: "ports of containers"}
	for _, c := range containers {
		ports.Elements = append(ports.Elements, nft.Element{Key: []nft.Value{nft.Interface(c.Name)}})
	}
	t.Sets = append(t.Sets, ports)
	for _, tags := range []uint32{nft.EtherVLAN, nft.EtherQinQ} {
		chain.Rules = append(chain.Rules, because("what is behind a second tag is seen by those who strip it, and "+
			"not here",
			is(nft.MetaProtocol, tags), nft.InSet{Key: []nft.Expr{iifName}, Set: ports.Name},
			nft.Count{Counter: "forged"}, drop))
	}
	for _, f := range families {
		port := nft.Set{Name: "port" + f.suffix, Key: []nft.Type{nft.IfName, f.address},
			Comment: "port . address of a container"}
		taken := nft.Set{Name: "taken" + f.suffix, Key: []nft.Type{f.address}, Comment: "addresses of containers"}
		for _, c := range containers {
			for _, a := range c.Addresses {
				if a.Is4() == f.is4 {
					port.Elements = append(port.Elements,
						nft.Element{Key: []nft.Value{nft.Interface(c.Name), nft.Address(a)}})
					taken.Elements = append(taken.Elements, nft.Element{Key: []nft.Value{nft.Address(a)}})
				}
			}
		}
		if len(port.Elements) == 0 {
			continue
		}
		t.Sets = append(t.Sets, port, taken)
		chain.Rules = append(chain.Rules, fromPorts(f.etherType, f.saddr, port.Name, taken.Name)...)
		if f.is4 {
			chain.Rules = append(chain.Rules, fromPorts(nft.EtherARP, nft.Expr{Field: nft.ARPSaddrIP}, port.Name,
				taken.Name)...)
		}
	}
	t.Chains = []nft.Chain{chain}
	return t
}

// bridgePriority is where nft's filter is in family bridge.
const bridgePriority = -200

// fromPorts accepts what a container sends from its own address, and drops what another sends from it.
func fromPorts(protocol uint32, source nft.Expr, port, taken string) []nft.Rule {
	return []nft.Rule{
		rule(is(nft.MetaProtocol, protocol), nft.InSet{Key: []nft.Expr{iifName, source}, Set: port}, accept),
		rule(is(nft.MetaProtocol, protocol), nft.InSet{Key: []nft.Expr{source}, Set: taken},
			nft.Count{Counter: "forged"}, drop),
	}
}
