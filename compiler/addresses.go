package compiler

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"thole/compiler/policy"
)

// groups are the multicast addresses: a CIDR matches them only if it lies inside
// one of these.
var groups = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

func isGroup(a netip.Addr) bool { return groups[0].Contains(a) || groups[1].Contains(a) }

func insideGroups(p netip.Prefix) bool {
	return slices.ContainsFunc(groups, func(g netip.Prefix) bool {
		return g.Contains(p.Addr()) && p.Bits() >= g.Bits()
	})
}

// An addressRange is a run of addresses of one family, both ends included.
type addressRange struct{ from, to netip.Addr }

func (r addressRange) String() string {
	var few [80]byte // on the stack
	b := append(r.from.AppendTo(few[:0]), '-')
	return string(r.to.AppendTo(b))
}

// An addressClass is a set of addresses outside this node that no rule of the set can
// tell apart.
type addressClass struct {
	number uint32
	index  int            // in addressClasses.classes
	lists  []int          // of addressClasses.lists: those that match it, ascending
	ranges []addressRange // ascending
}

// addressClasses divide all addresses. The first class is what no CIDR matches.
type addressClasses struct {
	lists   [][]*policy.CIDR // the distinct lists of cidr: peers of all rules
	index   map[*policy.Rule]int
	classes []addressClass
	matched [][]int // for each list, the indexes of the classes that it matches

	atoms   []addressRange // of all addresses, ascending
	ofAtoms []int          // the indexes of their classes
}

// classifyAddresses finds the classes of all addresses that rules can tell apart.
func classifyAddresses(policies []policy.Policy) *addressClasses {
	ac := &addressClasses{index: map[*policy.Rule]int{}}
	ac.collect(policies)
	ac.classes = []addressClass{{}}
	ac.matched = make([][]int, len(ac.lists))
	ac.atoms = atoms(slices.Concat(ac.lists...))
	ac.ofAtoms = make([]int, len(ac.atoms))
	index := map[string]int{"": 0} // by the lists that match
	of := matching(ac.atoms, ac.lists)
	var key []byte
	for i, atom := range ac.atoms {
		lists := of.lists(i)
		key = key[:0]
		for _, list := range lists {
			key = binary.AppendUvarint(key, uint64(list))
		}
		at, ok := index[string(key)]
		if !ok {
			at = len(ac.classes)
			index[string(key)] = at
			for _, list := range lists {
				ac.matched[list] = append(ac.matched[list], at)
			}
			ac.classes = append(ac.classes, addressClass{index: at, lists: slices.Clone(lists)})
		}
		ac.classes[at].ranges = appendRange(ac.classes[at].ranges, atom)
		ac.ofAtoms[i] = at
	}
	return ac
}

// of returns the class of an address.
func (ac *addressClasses) of(a netip.Addr) *addressClass {
	i := firstAt(ac.atoms, a)
	if i == len(ac.atoms) || ac.atoms[i].from != a {
		i-- // the last atom that begins before a
	}
	if i < 0 || ac.atoms[i].to.Less(a) {
		return &ac.classes[0]
	}
	return &ac.classes[ac.ofAtoms[i]]
}

// firstAt returns the index of the first of the atoms that begins at a or behind it.
func firstAt(atoms []addressRange, a netip.Addr) int {
	at, _ := slices.BinarySearchFunc(atoms, a, func(r addressRange, a netip.Addr) int { return r.from.Compare(a) })
	return at
}

// matchings says which lists of CIDRs match each of some atoms.
type matchings struct {
	flat  []int // the lists of the first atom, ascending, those of the second, …
	start []int // where those of each atom begin in flat, and where the last ones end
}

func (m *matchings) lists(atom int) []int { return m.flat[m.start[atom]:m.start[atom+1]] }

// matching finds the lists that match each of the atoms, which are ascending. It takes time for what it finds, and for
// the CIDRs and their exceptions.
func matching(atoms []addressRange, lists [][]*policy.CIDR) matchings {
	type match struct{ atom, list int }
	var found []match
	last := make([]int, len(atoms)) // the last list that was found for an atom, from 1 on
	m := matchings{start: make([]int, len(atoms)+1)}
	for list, cidrs := range lists {
		for _, c := range cidrs {
			for i := range matchedAtoms(c, atoms) {
				if last[i] != list+1 {
					last[i] = list + 1
					found = append(found, match{i, list})
					m.start[i+1]++
				}
			}
		}
	}
	for i := range atoms {
		m.start[i+1] += m.start[i]
	}
	m.flat = make([]int, len(found))
	next := slices.Clone(m.start)
	for _, f := range found {
		m.flat[next[f.atom]] = f.list
		next[f.atom]++
	}
	return m
}

// matchedAtoms visits which of the atoms c matches: those in its prefix, but not in an exception, nor in the multicast
// addresses if it does not lie inside these.
func matchedAtoms(c *policy.CIDR, atoms []addressRange) iter.Seq[int] {
	type part struct{ from, to int } // of the atoms; to is the first one behind it
	partOf := func(p netip.Prefix) part {
		last := lastAddr(p)
		part := part{firstAt(atoms, p.Addr()), firstAt(atoms, last)}
		if part.to < len(atoms) && atoms[part.to].from == last {
			part.to++
		}
		return part
	}
	var out []part
	for _, e := range c.Except {
		out = append(out, partOf(e))
	}
	if !insideGroups(c.Prefix) {
		for _, g := range groups {
			if g.Addr().Is4() == c.Prefix.Addr().Is4() {
				out = append(out, partOf(g))
			}
		}
	}
	slices.SortFunc(out, func(a, b part) int { return a.from - b.from })
	in := partOf(c.Prefix)
	return func(yield func(int) bool) {
		out := out
		for i := in.from; i < in.to; i++ {
			for len(out) > 0 && out[0].from <= i {
				i, out = max(i, out[0].to), out[1:]
			}
			if i < in.to && !yield(i) {
				return
			}
		}
	}
}

// collect finds the distinct lists of CIDRs, and which rule has which.
func (ac *addressClasses) collect(policies []policy.Policy) {
	at := map[string]int{}
	var key []byte
	for r := range allRules(policies) {
		var list []*policy.CIDR
		key = key[:0]
		for _, p := range r.Peers {
			if p.CIDR != nil {
				list, key = append(list, p.CIDR), appendCIDR(p.CIDR, key)
			}
		}
		if list == nil {
			continue
		}
		if !has(at, string(key)) {
			at[string(key)] = len(ac.lists)
			ac.lists = append(ac.lists, list)
		}
		ac.index[r] = at[string(key)]
	}
}

// appendCIDR appends c as a key.
func appendCIDR(c *policy.CIDR, b []byte) []byte {
	put := func(p netip.Prefix) {
		b = appendString(b, string(p.Addr().AsSlice()))
		b = append(b, byte(p.Bits()))
	}
	put(c.Prefix)
	b = binary.AppendUvarint(b, uint64(len(c.Except)))
	for _, e := range c.Except {
		put(e)
	}
	return b
}

// listOf returns which of the lists is the rule's; -1: it has no CIDR.
func (ac *addressClasses) listOf(r *policy.Rule) int {
	if i, ok := ac.index[r]; ok {
		return i
	}
	return -1
}

// atoms cuts both families where a CIDR, an exception or the multicast addresses begin or end.
func atoms(cidrs []*policy.CIDR) []addressRange {
	starts := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	cut := func(p netip.Prefix) {
		starts = append(starts, p.Addr())
		if next := lastAddr(p).Next(); next.IsValid() {
			starts = append(starts, next)
		}
	}
	for _, g := range groups {
		cut(g)
	}
	for _, c := range cidrs {
		cut(c.Prefix)
		for _, e := range c.Except {
			cut(e)
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare) // IPv4 sorts before IPv6
	starts = slices.Compact(starts)
	ranges := make([]addressRange, len(starts))
	for i, from := range starts {
		to := lastAddr(netip.PrefixFrom(from, 0))
		if i+1 < len(starts) && starts[i+1].Is4() == from.Is4() {
			to = starts[i+1].Prev()
		}
		ranges[i] = addressRange{from, to}
	}
	return ranges
}

// appendRange adds r, joined to the last range where it continues that. Ranges on
// either side of where the multicast addresses begin or end stay apart: the two
// have different defaults.
func appendRange(ranges []addressRange, r addressRange) []addressRange {
	if n := len(ranges); n > 0 && continues(ranges[n-1], r) {
		ranges[n-1].to = r.to
		return ranges
	}
	return append(ranges, r)
}

func continues(a, b addressRange) bool {
	return a.to.Next() == b.from && isGroup(a.to) == isGroup(b.from)
}

// lastAddr returns the last address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	if bits%8 != 0 {
		b[bits/8] |= 0xff >> (bits % 8)
	}
	for i := (bits + 7) / 8; i < len(b); i++ {
		b[i] = 0xff
	}
	if p.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}
