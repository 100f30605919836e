package chains

import (
	"slices"

	nft "thole/ruleset"
)

// lookupCgroup looks up the socket's cgroup at each level, the deepest level first: the first match counts. The rules
// that hit returns look it up among the cgroups of workloads; nobody is the chain for unlabelled sockets. A socket
// below a parent of containers that is in no set of a deeper level belongs to a container whose labels are not known
// yet: its packet is discarded.
func (b *builder) lookupCgroup(hit func(depth uint8) []nft.Rule, nobody string) []nft.Rule {
	var rules []nft.Rule
	for _, at := range b.Levels {
		key := []nft.Expr{cgroup(at.Depth)}
		if at.Bound {
			rules = append(rules, hit(at.Depth)...)
		}
		if at.Free {
			rules = append(rules, rule(nft.InSet{Key: key, Set: FreeSet(at.Depth)}, goTo(nobody)))
		}
		if at.Unknown {
			rules = append(rules, because("its labels are not known yet",
				nft.InSet{Key: key, Set: UnknownSet(at.Depth)}, goTo("discard")))
		}
	}
	return append(rules, rule(goTo(nobody)))
}

// numberToPriority writes the number of the socket's workload into the packet's priority.
func (b *builder) numberToPriority(then nft.Verdict) func(depth uint8) []nft.Rule {
	return func(depth uint8) []nft.Rule {
		return []nft.Rule{rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{cgroup(depth)},
			Map: ListenerMap(depth)}, then)}
	}
}

// numberToMark writes the number of the socket's workload, as that of the sender, into the packet's mark, or into
// conntrack's.
func (b *builder) numberToMark(target nft.Field, then nft.Verdict) func(depth uint8) []nft.Rule {
	return func(depth uint8) []nft.Rule {
		return []nft.Rule{rule(nft.SetByMap{Target: target, Key: []nft.Expr{cgroup(depth)}, Map: SenderMap(depth)},
			then)}
	}
}

// sameWorkload compares the socket's workload with that in conntrack's mark, and goes to other if they differ. A
// workload whose cgroup lies in another workload's is not that one: the deepest bound cgroup alone is compared.
func (b *builder) sameWorkload(then nft.Verdict, other string) []nft.Rule {
	return b.lookupCgroup(func(depth uint8) []nft.Rule {
		rules := []nft.Rule{b.sameWorkloadAt(depth, then)}
		if b.boundAbove(depth) {
			rules = append(rules, because("another workload's",
				nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{cgroup(depth)}, Map: ListenerMap(depth)},
				goTo(other)))
		}
		return rules
	}, other)
}

// sameWorkloadAt holds where the socket's cgroup at a depth is bound to the workload that conntrack's mark has.
func (b *builder) sameWorkloadAt(depth uint8, then nft.Verdict) nft.Rule {
	return rule(nft.InSet{Key: []nft.Expr{cgroup(depth), ctClass}, Set: SameSet(depth)}, then)
}

// boundAbove reports whether workloads are bound nearer to the root.
func (b *builder) boundAbove(depth uint8) bool {
	return slices.ContainsFunc(b.Levels, func(at Level) bool { return at.Bound && at.Depth < depth })
}

// unlabelledOnly is a chain that discards what a workload's socket has, and accepts all else.
func (b *builder) unlabelledOnly(name, comment string) nft.Chain {
	return nft.Chain{Name: name, Comment: comment,
		Rules: b.lookupCgroup(b.numberToPriority(goTo("discard")), "accepted")}
}
