package compiler

import (
	"cmp"
	"slices"

	"thole/compiler/classes"
)

// A grouping divides the peers of a rule list by what is said to them. Here peers are counted by their rank: what is
// unlabelled, the classes of this node by their number, those of other nodes, those of addresses. The order decides
// where as many peers differ as do not, and must not change with which workload is the first of a class.
type grouping struct {
	total  int // peers
	groups []group
	at     map[string]int // in groups, by the signature of their rows

	named  []rankedRow // the peers that the ruleList names, ascending
	in     []int       // the groups of these
	others rankedRow   // the first of all others, who are in one group; its rank is total if there are none
	rest   int         // that group
}

// A group is the peers to which the same is said.
type group struct {
	count int
	named []int     // which of grouping.named are in it, ascending
	first rankedRow // the first peer of all
}

type rankedRow struct {
	rank int
	row  *classes.Row
}

// A line is a row, and all peers, by their rank, to which it is said.
type line struct {
	*classes.Row
	ranks []int
}

// newGrouping divides so many peers. The named ones are ascending; the row of others is that of all others.
func newGrouping(total int, named []rankedRow, others *classes.Row) *grouping {
	g := &grouping{total: total, named: named, in: make([]int, len(named)), at: map[string]int{}}
	for i, n := range named {
		at := g.group(n.row.Signature)
		g.in[i] = at
		g.groups[at].named = append(g.groups[at].named, i)
		g.groups[at].join(n)
	}
	g.rest = g.group(others.Signature)
	g.others = rankedRow{g.nextOther(0, nil), others}
	if many := total - len(named); many > 0 {
		g.groups[g.rest].join(g.others)
		g.groups[g.rest].count += many - 1
	}
	return g
}

// group returns the index of the group of a signature.
func (g *grouping) group(signature string) int {
	at, ok := g.at[signature]
	if !ok {
		at = len(g.groups)
		g.at[signature] = at
		g.groups = append(g.groups, group{})
	}
	return at
}

// join adds a peer.
func (g *group) join(r rankedRow) {
	if g.count == 0 || r.rank < g.first.rank {
		g.first = r
	}
	g.count++
}

func find(list []rankedRow, rank int) (at int, ok bool) {
	return slices.BinarySearchFunc(list, rank, func(r rankedRow, rank int) int { return r.rank - rank })
}

// nextOther returns the first rank from one on that is neither named nor in the list, which is ascending.
func (g *grouping) nextOther(rank int, but []rankedRow) int {
	i, _ := find(g.named, rank)
	j, _ := find(but, rank)
	for ; rank < g.total; rank++ {
		isNamed := i < len(g.named) && g.named[i].rank == rank
		isBut := j < len(but) && but[j].rank == rank
		if !isNamed && !isBut {
			break
		}
		if isNamed {
			i++
		}
		if isBut {
			j++
		}
	}
	return rank
}

// lines returns what is said to most peers, and then who else is told what. Some peers, ascending, are told something
// else than the rule list says. As long as lead is greater than zero, what is said to those that nobody names is said
// to most: by so many peers more than all else.
func (g *grouping) lines(exceptions []rankedRow) (usual *classes.Row, others []line, lead int) {
	changed := *g
	added := map[int][]int{}
	if len(exceptions) > 0 {
		changed = g.without(exceptions)
		for _, e := range exceptions {
			at := changed.group(e.row.Signature)
			changed.groups[at].join(e)
			added[at] = append(added[at], e.rank)
		}
	}
	most, next := 0, 0 // next is how many are in the largest group beside rest
	for i := range changed.groups {
		a, b := &changed.groups[i], &changed.groups[most]
		if cmp.Or(b.count-a.count, a.first.rank-b.first.rank) < 0 {
			most = i
		}
		if i != changed.rest {
			next = max(next, a.count)
		}
	}
	for i := range changed.groups {
		if a := &changed.groups[i]; i != most && a.count > 0 {
			others = append(others, line{a.first.row, append(changed.ranks(i, exceptions), added[i]...)})
		}
	}
	return changed.groups[most].first.row, others, changed.groups[changed.rest].count - next
}

// without returns g as if some of its peers, ascending, were not there.
func (g *grouping) without(some []rankedRow) grouping {
	without := *g
	without.groups, without.at = slices.Clone(g.groups), map[string]int{}
	for signature, at := range g.at {
		without.at[signature] = at
	}
	for _, s := range some {
		at := g.rest
		if i, ok := find(g.named, s.rank); ok {
			at = g.in[i]
		}
		without.groups[at].count--
		if without.groups[at].first.rank == s.rank && without.groups[at].count > 0 {
			without.groups[at].first = g.firstOf(at, s.rank+1, some)
		}
	}
	return without
}

// firstOf returns the first peer of a group from a rank on that is not one of some.
func (g *grouping) firstOf(at, rank int, some []rankedRow) rankedRow {
	first := rankedRow{g.total, nil}
	named := g.groups[at].named
	i, _ := slices.BinarySearchFunc(named, rank, func(n, rank int) int { return g.named[n].rank - rank })
	for ; i < len(named); i++ {
		if n := g.named[named[i]]; !contains(some, n.rank) {
			first = n
			break
		}
	}
	if at == g.rest {
		if next := g.nextOther(rank, some); next < first.rank {
			first = rankedRow{next, g.others.row}
		}
	}
	return first
}

func contains(list []rankedRow, rank int) bool {
	_, ok := find(list, rank)
	return ok
}

// ranks returns the peers of a group, but for some, ascending.
func (g *grouping) ranks(at int, but []rankedRow) []int {
	var list []int
	for _, n := range g.groups[at].named {
		if rank := g.named[n].rank; !contains(but, rank) {
			list = append(list, rank)
		}
	}
	if at == g.rest {
		for rank := g.nextOther(0, but); rank < g.total; rank = g.nextOther(rank+1, but) {
			list = append(list, rank)
		}
	}
	return list
}
