package reference

import (
	"maps"
	"net/netip"
	"slices"

	"thole/compiler/policy"
)

// Shrink returns a case from which nothing more can be taken without fails
// becoming false. It takes away, greedily and from the large to the small:
// connections, flows, packets, workloads, policies, directions, rules, peers, ports, selector
// terms, values, labels. What it hands to fails is always a valid case, and a
// copy: c stays as it is. fails(c) must be true.
func Shrink(c Case, fails func(Case) bool) Case {
	c = halve(halve(c.clone(), fails, connectionsOf), fails, flowsOf)
	for {
		smaller := false
		for _, cut := range cuts() {
			for i := 0; ; {
				d := c.clone()
				if !cut(&d, i) {
					break
				}
				d.Policies = slices.DeleteFunc(d.Policies, silent) // they change no verdict
				if fails(d) {
					c, smaller = d, true
				} else {
					i++
				}
			}
		}
		if !smaller {
			return c
		}
	}
}

// halve is for speed: usually one element of a long list fails, or none of it has to.
func halve[T any](c Case, fails func(Case) bool, list func(*Case) *[]T) Case {
	for len(*list(&c)) > 0 {
		left, right := c.clone(), c.clone()
		middle := len(*list(&c)) / 2
		*list(&left), *list(&right) = (*list(&left))[:middle], (*list(&right))[middle:]
		switch {
		case fails(left):
			c = left
		case middle > 0 && fails(right):
			c = right
		default:
			return c
		}
	}
	return c
}

func connectionsOf(c *Case) *[]Connection { return &c.Connections }

func flowsOf(c *Case) *[]Flow { return &c.Flows }

// A cut takes the i-th thing of its sort away from a case, in place. It returns
// false where there are not so many.
type cut func(c *Case, i int) bool

// cuts are all that Shrink tries, the large before the small.
func cuts() []cut {
	return []cut{
		cutConnection, cutFlow, cutPacket, cutWorkload, cutSharer, cutPolicy, cutDirection, cutRule, cutPeer, cutPort,
		cutExcept, cutSameKey, cutRequirement, cutValue, cutLabel, cutFact, cutDoubt, cutMark,
		cutPattern,
	}
}

// cutPattern takes a pattern of the Settings.
func cutPattern(c *Case, i int) bool {
	s := &c.Settings
	return cutFrom(i, 0, &s.Include, &s.Exclude, &s.TrustImages)
}

func cutConnection(c *Case, i int) bool { return cutFrom(i, 0, &c.Connections) }

func cutFlow(c *Case, i int) bool { return cutFrom(i, 0, &c.Flows) }

// cutPacket takes a packet of a flow of several; a connection of TCP keeps its first one.
func cutPacket(c *Case, i int) bool {
	for j := range c.Flows {
		f := &c.Flows[j]
		first := 0
		if f.Protocol == protocolTCP || len(f.Packets) == 1 {
			first = 1
		}
		if i < len(f.Packets)-first {
			f.Packets = slices.Delete(f.Packets, first+i, first+i+1)
			return true
		}
		i -= len(f.Packets) - first
	}
	return false
}

// cutMark takes a mark or a priority of another program.
func cutMark(c *Case, i int) bool {
	for j := range c.Flows {
		marks := []*uint32{&c.Flows[j].OtherMark}
		for k := range c.Flows[j].Packets {
			p := &c.Flows[j].Packets[k]
			marks = append(marks, &p.Mark, &p.Priority)
		}
		for _, mark := range marks {
			if *mark == 0 {
				continue
			}
			if i == 0 {
				*mark = 0
				return true
			}
			i--
		}
	}
	return false
}

func cutPolicy(c *Case, i int) bool { return cutFrom(i, 0, &c.Policies) }

// cutWorkload takes a workload with its connections and flows.
func cutWorkload(c *Case, i int) bool {
	if i >= len(c.Workloads) {
		return false
	}
	gone := c.Workloads[i]
	c.Workloads = slices.Delete(c.Workloads, i, i+1)
	c.Connections = slices.DeleteFunc(c.Connections, func(c Connection) bool {
		return c.From.Workload == gone || c.To.Workload == gone
	})
	c.Flows = slices.DeleteFunc(c.Flows, func(f Flow) bool { return f.mentions(gone) })
	return true
}

// cutSharer takes a container out of a network namespace; the connections of one without containers go, too.
func cutSharer(c *Case, i int) bool {
	var lists []*[]*policy.Workload
	for _, n := range c.Namespaces {
		lists = append(lists, &n.Containers)
	}
	if !cutFrom(i, 0, lists...) {
		return false
	}
	empty := func(n *Namespace) bool { return n != nil && len(n.Containers) == 0 }
	c.Namespaces = slices.DeleteFunc(c.Namespaces, empty)
	c.Connections = slices.DeleteFunc(c.Connections, func(c Connection) bool {
		return empty(c.From.Namespace) || empty(c.To.Namespace)
	})
	return true
}

// cutDirection takes a direction's key and, with it, its allow rules.
func cutDirection(c *Case, i int) bool {
	for _, side := range sides(c) {
		if !side.Isolates {
			continue
		}
		if i == 0 {
			side.Isolates, side.Allow = false, nil
			return true
		}
		i--
	}
	return false
}

func cutRule(c *Case, i int) bool {
	var lists []*[]policy.Rule
	for _, side := range sides(c) {
		lists = append(lists, &side.Allow, &side.Deny)
	}
	return cutFrom(i, 0, lists...)
}

// cutPeer takes a peer; a rule that loses its last one matches every peer.
func cutPeer(c *Case, i int) bool {
	var lists []*[]policy.Peer
	for _, rule := range rules(c) {
		lists = append(lists, &rule.Peers)
	}
	return cutFrom(i, 0, lists...)
}

// cutPort takes a port; a rule that loses its last one matches every port.
func cutPort(c *Case, i int) bool {
	var lists []*[]policy.Port
	for _, rule := range rules(c) {
		lists = append(lists, &rule.Ports)
	}
	return cutFrom(i, 0, lists...)
}

func cutExcept(c *Case, i int) bool {
	var lists []*[]netip.Prefix
	for _, peer := range peers(c) {
		if peer.CIDR != nil {
			lists = append(lists, &peer.CIDR.Except)
		}
	}
	return cutFrom(i, 0, lists...)
}

func cutSameKey(c *Case, i int) bool {
	var lists []*[]string
	for _, peer := range peers(c) {
		if peer.SameLabels != nil {
			lists = append(lists, &peer.SameLabels.Keys)
		}
	}
	return cutFrom(i, 1, lists...)
}

func cutRequirement(c *Case, i int) bool {
	var lists []*[]policy.Requirement
	for _, selector := range selectors(c) {
		lists = append(lists, &selector.Requirements)
	}
	return cutFrom(i, 0, lists...)
}

// cutValue takes one of several values of a selector's term.
func cutValue(c *Case, i int) bool {
	var lists []*[]string
	for _, selector := range selectors(c) {
		for j := range selector.Requirements {
			lists = append(lists, &selector.Requirements[j].Values)
		}
	}
	found := cutFrom(i, 1, lists...)
	for _, selector := range selectors(c) {
		selector.Requirements = sortedRequirements(selector.Requirements)
	}
	return found
}

// cutLabel takes a user label; a workload keeps at least one.
func cutLabel(c *Case, i int) bool {
	for _, w := range c.all() {
		if len(w.Labels) > 1 && cutKey(w.Labels, &i) {
			return true
		}
	}
	return false
}

func cutFact(c *Case, i int) bool {
	for _, w := range c.all() {
		if cutKey(w.Facts, &i) {
			return true
		}
	}
	return false
}

// cutDoubt makes a doubtful label one that somebody gave.
func cutDoubt(c *Case, i int) bool {
	for _, w := range c.all() {
		for _, key := range slices.Sorted(maps.Keys(w.Doubtful)) {
			if i--; i >= 0 {
				continue
			}
			given := w.Facts
			if policy.IsUserLabel(key) {
				given = w.Labels
			}
			given[key] = w.Doubtful[key]
			delete(w.Doubtful, key)
			return true
		}
	}
	return false
}

// cutKey deletes the i-th key of labels, or counts the keys off i.
func cutKey(labels policy.Labels, i *int) bool {
	if *i >= len(labels) {
		*i -= len(labels)
		return false
	}
	delete(labels, slices.Sorted(maps.Keys(labels))[*i])
	return true
}

// cutFrom deletes the i-th of the elements of lists, counting only lists that
// are longer than keep. A list that becomes empty becomes nil.
func cutFrom[T any](i, keep int, lists ...*[]T) bool {
	for _, list := range lists {
		if len(*list) <= keep {
			continue
		}
		if i >= len(*list) {
			i -= len(*list)
			continue
		}
		*list = slices.Delete(*list, i, i+1)
		if len(*list) == 0 {
			*list = nil
		}
		return true
	}
	return false
}

// sides are the two directions of every policy of c.
func sides(c *Case) []*policy.Side {
	var all []*policy.Side
	for i := range c.Policies {
		all = append(all, &c.Policies[i].Ingress, &c.Policies[i].Egress)
	}
	return all
}

func rules(c *Case) []*policy.Rule {
	var all []*policy.Rule
	for _, side := range sides(c) {
		for i := range side.Allow {
			all = append(all, &side.Allow[i])
		}
		for i := range side.Deny {
			all = append(all, &side.Deny[i])
		}
	}
	return all
}

func peers(c *Case) []*policy.Peer {
	var all []*policy.Peer
	for _, rule := range rules(c) {
		for i := range rule.Peers {
			all = append(all, &rule.Peers[i])
		}
	}
	return all
}

// selectors are those of the policies and of their peers.
func selectors(c *Case) []*policy.Selector {
	var all []*policy.Selector
	for i := range c.Policies {
		all = append(all, &c.Policies[i].Selector)
	}
	for _, peer := range peers(c) {
		if peer.Workloads != nil {
			all = append(all, peer.Workloads)
		}
	}
	return all
}
