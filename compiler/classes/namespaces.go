package classes

import (
	"cmp"
	"encoding/binary"
	"slices"

	"thole/compiler/policy"
)

// Containers that share a network namespace share its addresses and ports, so nobody can tell which of them sends or
// receives a packet. The namespace has a class of its own, as if it were one workload: the class allows a connection if
// each class in it does, and others allow it a connection if they allow that to each class in it.

// Namespace returns the class of a network namespace that these share, as peers (Set.Peers). It is the class of one of
// them if all are in that class; nil: nothing in it has labels. After the last call, JudgeNamespaces must be called.
func (cs *Set) Namespace(peers []int) *Class {
	peers = slices.Compact(slices.Sorted(slices.Values(peers)))
	if len(peers) == 1 {
		return cs.Peers[peers[0]].Class
	}
	var key []byte
	for _, id := range peers {
		key = binary.AppendUvarint(key, uint64(id))
	}
	if c := cs.byShared[string(key)]; c != nil {
		return c
	}
	c := &Class{ID: len(cs.Peers), Shared: peers, First: &policy.Workload{}}
	cs.byShared[string(key)] = c
	cs.Peers = append(cs.Peers, Peer{Class: c})
	cs.Namespaces = append(cs.Namespaces, c)
	return c
}

// JudgeNamespaces finds what the classes of namespaces are judged by, and what others say of them.
func (cs *Set) JudgeNamespaces() {
	for _, c := range cs.Workloads {
		for _, d := range [...]Direction{Ingress, Egress} {
			c.Namespaces[d] = cs.namespacesOf(func(id int) *Row { return cs.Judge(c, d, id) }, c.RuleLists[d].Others)
		}
	}
	for _, c := range cs.Namespaces {
		for _, d := range [...]Direction{Ingress, Egress} {
			c.RuleLists[d], c.Namespaces[d] = cs.ruleListOf(c, d)
		}
	}
}

// namespacesOf returns the namespaces of which something else is said than of others.
func (cs *Set) namespacesOf(judge func(id int) *Row, others *Row) (list []Exception) {
	for _, n := range cs.Namespaces {
		rows := make([]*Row, len(n.Shared))
		for i, id := range n.Shared {
			rows[i] = judge(id)
		}
		if r := strictest(rows); r.Signature != others.Signature {
			list = append(list, Exception{n.ID, r})
		}
	}
	return list
}

// ruleListOf returns what a namespace is judged by: what all classes in it are judged by. Something unlabelled in it
// allows everything.
func (cs *Set) ruleListOf(c *Class, d Direction) (*RuleList, []Exception) {
	var in []*Class
	for _, id := range c.Shared {
		if member := cs.Peers[id].Class; member != nil {
			in = append(in, member)
		}
	}
	judge := func(row func(*Class) *Row) *Row {
		rows := make([]*Row, len(in))
		for i, member := range in {
			rows[i] = row(member)
		}
		return strictest(rows)
	}
	rl := &RuleList{of: d, Others: judge(func(member *Class) *Row { return member.RuleLists[d].Others })}
	var ids []int
	for _, member := range in {
		for _, list := range [...][]Exception{member.RuleLists[d].Named, member.SameLabels[d]} {
			for _, e := range list {
				ids = append(ids, e.Peer)
			}
		}
	}
	of := func(id int) *Row { return judge(func(member *Class) *Row { return cs.Judge(member, d, id) }) }
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		rl.Named = append(rl.Named, Exception{id, of(id)})
	}
	return rl, cs.namespacesOf(of, rl.Others)
}

// strictest returns what all rows say together: a connection is allowed if each row allows it.
func strictest(rows []*Row) *Row {
	all := &Row{}
	for _, r := range rows {
		all.ports = append(all.ports, r.ports...)
	}
	slices.Sort(all.ports)
	all.ports = slices.Compact(all.ports)
	all.judgements = make([]Judgement, len(all.ports)+1) // the zero Judgement allows
	for _, r := range rows {
		all.judgements[0] = all.judgements[0].and(r.OtherPorts())
		for i, port := range all.ports {
			all.judgements[i+1] = all.judgements[i+1].and(r.ofPort(port))
		}
	}
	all.Uniform = true
	for _, j := range all.judgements {
		all.Uniform = all.Uniform && j.Same(all.judgements[0])
	}
	all.Signature = all.sign()
	return all
}

// ofPort returns what is said of a class of ports.
func (r *Row) ofPort(port int) Judgement {
	if i, named := slices.BinarySearch(r.ports, port); named {
		return r.judgements[i+1]
	}
	return r.OtherPorts()
}

// and returns the stricter of two judgements: a denial that a called address can lift is less strict than one that it
// cannot lift. Of two audit policies, one that denies by a rule is recorded, and then the first by name.
func (j Judgement) and(o Judgement) Judgement {
	strictness := func(j Judgement) int {
		rank := map[Ruling]int{Allow: 0, WouldDeny: 2, Deny: 4}[j.Ruling]
		if rank > 0 && !j.Unsaid && !j.isolates {
			rank++
		}
		return rank
	}
	switch order := strictness(j) - strictness(o); {
	case order > 0:
		return j
	case order < 0:
		return o
	case j.Ruling == WouldDeny && cmp.Less(o.Policy.Name, j.Policy.Name):
		return o
	default:
		return j
	}
}
