package compiler

import (
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/chains"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A Fleet is where other nodes are, and how the datapath is reached.
type Fleet struct {
	Networks []netip.Prefix
	Queue    uint16 // NFQUEUE
}

// addRemote makes a class of what another node proved, also where no policy tells two of them apart: the connections of
// today keep its number when the policies of tomorrow do.
func (cs *classes) addRemote(r *policy.Remote) *workloadClass {
	c := &workloadClass{remote: r, first: r.Workload(cs.settings), size: 1}
	cs.remotes = append(cs.remotes, c)
	return c
}

// Allows reports whether the egress of a workload of this node, by the number of its
// class, allows a connection to what a workload of another node proved to be. Audit
// policies do not count.
func (r *Result) Allows(from, to uint32, p policy.Protocol, port uint16) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, other := numbered(r.classes.workloads, from), numbered(r.classes.remotes, to)
	if other == nil {
		other = numbered(r.classes.workloads, to)
	}
	return c != nil && other != nil && r.classes.allows(r.classes.judge(c, egress, other.id), p, port)
}

// AllowsAddress is Allows for an address outside this node at which nothing was proven.
// What it does not know it allows: the table judges such a connection as well.
func (r *Result) AllowsAddress(from uint32, to netip.AddrPort, p policy.Protocol) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := numbered(r.classes.workloads, from)
	return c == nil || r.classes.allows(r.classes.judgeAddresses(c, r.classes.addresses.Of(to.Addr())), p, to.Port())
}

// allows reports whether a row allows connections to a port.
func (cs *classes) allows(row *row, p policy.Protocol, port uint16) bool {
	for i, at := range row.ports {
		if slices.ContainsFunc(cs.ports.Classes[at].Spans, func(s partition.Span) bool {
			return s.Proto == uint8(p) && s.From <= port && port <= s.To
		}) {
			return row.judgements[i+1].ruling != deny
		}
	}
	return row.judgements[0].ruling != deny
}

// numbered returns the class with a number, nil if there is none.
func numbered(list []*workloadClass, n uint32) *workloadClass {
	for _, c := range list {
		if c.number == n {
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
func (l *lowering) believe(c *workloadClass) {
	if !c.remote.Ended {
		l.add("remotes", nft.Element{Key: []nft.Value{class(c.number)},
			Comment: strings.TrimSpace(l.commentOf(c.first))})
	}
}

// introduce enters a class that may reach other nodes' workloads by their labels.
func (l *lowering) introduce(c *workloadClass) {
	if l.fleet != nil && slices.ContainsFunc(c.ruleLists[egress].entries, entry.allowsByLabel) {
		l.add("introduced", nft.Element{Key: []nft.Value{class(c.number)},
			Comment: strings.TrimSpace(l.commentOf(c.first))})
	}
}

// allowsByLabel reports whether the rule may allow something because of its labels.
func (e entry) allowsByLabel() bool {
	return (e.kind == allows || e.kind == auditAllows) && (e.same != nil || e.byLabel || e.remotes > 0)
}
