package compiler

import (
	"net/netip"
	"strings"

	"thole/compiler/chains"
	"thole/compiler/classes"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A Fleet is where other nodes are, and how the datapath is reached.
type Fleet struct {
	Networks []netip.Prefix
	Queue    uint16 // NFQUEUE
}

// Allows reports whether the egress of a workload of this node, by the number of its
// class, allows a connection to what a workload of another node proved to be. Audit
// policies do not count.
func (r *Result) Allows(from, to uint32, p policy.Protocol, port uint16) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, other := numbered(r.classes.Workloads, from), numbered(r.classes.Remotes, to)
	if other == nil {
		other = numbered(r.classes.Workloads, to)
	}
	return c != nil && other != nil && r.classes.Allows(c, other, p, port)
}

// AllowsAddress is Allows for an address outside this node at which nothing was proven.
// What it does not know it allows: the table judges such a connection as well.
func (r *Result) AllowsAddress(from uint32, to netip.AddrPort, p policy.Protocol) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := numbered(r.classes.Workloads, from)
	return c == nil || r.classes.AllowsAddress(c, to, p)
}

// numbered returns the class with a number, nil if there is none.
func numbered(list []*classes.Class, n uint32) *classes.Class {
	for _, c := range list {
		if c.Number == n {
			return c
		}
	}
	return nil
}

// bindFleet enters the networks of other nodes.
func (l *lowering) bindFleet() {
	if l.fleet == nil {
		return
	}
	l.declare(chains.FleetSets())
	for _, n := range partition.Disjoint(l.fleet.Networks) {
		l.add("fleet"+family(n.Addr()), nft.Element{Key: []nft.Value{nft.Prefix(n)}})
	}
}

// believe enters a workload of another node whose certificate is believed.
func (l *lowering) believe(c *classes.Class) {
	if !c.Remote.Ended {
		l.add("remotes", nft.Element{Key: []nft.Value{class(c.Number)},
			Comment: strings.TrimSpace(l.commentOf(c.First))})
	}
}

// introduce enters a class that may reach other nodes' workloads by their labels.
func (l *lowering) introduce(c *classes.Class) {
	if l.fleet != nil && c.RuleLists[classes.Egress].AllowsByLabel() {
		l.add("introduced", nft.Element{Key: []nft.Value{class(c.Number)},
			Comment: strings.TrimSpace(l.commentOf(c.First))})
	}
}
