package partition

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"thole/compiler/policy"
)

// multicast are the multicast addresses: a CIDR matches them only if it lies inside
// one of these.
var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// IsMulticast reports whether a is a multicast address: nobody sends from there.
func IsMulticast(a netip.Addr) bool { return multicast[0].Contains(a) || multicast[1].Contains(a) }

func insideMulticast(p netip.Prefix) bool {
	return slices.ContainsFunc(multicast, func(g netip.Prefix) bool {
		return g.Contains(p.Addr()) && p.Bits() >= g.Bits()
	})
}

// An AddressRange is a run of addresses of one family, both ends included.
type AddressRange struct{ From, To netip.Addr }

func (r AddressRange) String() string {
	var few [80]byte // on the stack
	b := append(r.From.AppendTo(few[:0]), '-')
	return string(r.To.AppendTo(b))
}

// An AddressClass is a set of addresses outside this node that no rule of the set can
// tell apart.
type AddressClass struct {
	Number uint32         // by which the table knows the class; the compiler gives it
	Index  int            // in AddressClasses.Classes
	Lists  []int          // of AddressClasses.Lists: those that match it, ascending
	Ranges []AddressRange // ascending
}

// AddressClasses divide all addresses. The first class is what no CIDR matches.
type AddressClasses struct {
	Lists   [][]*policy.CIDR // the distinct lists of cidr: peers of all rules
	Classes []AddressClass
	Matched [][]int // for each list, the indexes of the classes that it matches

	index   map[*policy.Rule]int // in Lists
	atoms   []AddressRange       // of all addresses, ascending
	ofAtoms []int                // the indexes of their classes
}

// Addresses finds the classes of all addresses that rules can tell apart.
func Addresses(policies []policy.Policy) *AddressClasses {
	ac := &AddressClasses{index: map[*policy.Rule]int{}}
	ac.collect(policies)
	ac.Classes = []AddressClass{{}}
	ac.Matched = make([][]int, len(ac.Lists))
	var of Matches
	ac.atoms, of = Cut(ac.Lists)
	ac.ofAtoms = make([]int, len(ac.atoms))
	index := map[string]int{"": 0} // by the lists that match
	var key []byte
	for i, atom := range ac.atoms {
		lists := of.Lists(i)
		key = key[:0]
		for _, list := range lists {
			key = binary.AppendUvarint(key, uint64(list))
		}
		at, ok := index[string(key)]
		if !ok {
			at = len(ac.Classes)
			index[string(key)] = at
			for _, list := range lists {
				ac.Matched[list] = append(ac.Matched[list], at)
			}
			ac.Classes = append(ac.Classes, AddressClass{Index: at, Lists: slices.Clone(lists)})
		}
		ac.Classes[at].Ranges = appendRange(ac.Classes[at].Ranges, atom)
		ac.ofAtoms[i] = at
	}
	return ac
}

// Of returns the class of an address.
func (ac *AddressClasses) Of(a netip.Addr) *AddressClass {
	i := firstAt(ac.atoms, a)
	if i == len(ac.atoms) || ac.atoms[i].From != a {
		i-- // the last atom that begins before a
	}
	if i < 0 || ac.atoms[i].To.Less(a) {
		return &ac.Classes[0]
	}
	return &ac.Classes[ac.ofAtoms[i]]
}

// firstAt returns the index of the first of the atoms that begins at a or behind it.
func firstAt(atoms []AddressRange, a netip.Addr) int {
	at, _ := slices.BinarySearchFunc(atoms, a, func(r AddressRange, a netip.Addr) int { return r.From.Compare(a) })
	return at
}

// Cut divides all addresses where something begins or ends that the lists of CIDRs name. It returns the parts,
// ascending, and says which lists match each of them.
func Cut(lists [][]*policy.CIDR) ([]AddressRange, Matches) {
	parts := atoms(slices.Concat(lists...))
	return parts, matching(parts, lists)
}

// Matches says which lists of CIDRs match each of some atoms.
type Matches struct {
	flat  []int // the lists of the first atom, ascending, those of the second, …
	start []int // where those of each atom begin in flat, and where the last ones end
}

// Lists returns the indexes of the lists that match an atom, ascending.
func (m *Matches) Lists(atom int) []int { return m.flat[m.start[atom]:m.start[atom+1]] }

// matching finds the lists that match each of the atoms, which are ascending. It takes time for what it finds, and for
// the CIDRs and their exceptions.
func matching(atoms []AddressRange, lists [][]*policy.CIDR) Matches {
	type match struct{ atom, list int }
	var found []match
	last := make([]int, len(atoms)) // the last list that was found for an atom, from 1 on
	m := Matches{start: make([]int, len(atoms)+1)}
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
func matchedAtoms(c *policy.CIDR, atoms []AddressRange) iter.Seq[int] {
	type part struct{ from, to int } // of the atoms; to is the first one behind it
	partOf := func(p netip.Prefix) part {
		last := lastAddr(p)
		part := part{firstAt(atoms, p.Addr()), firstAt(atoms, last)}
		if part.to < len(atoms) && atoms[part.to].From == last {
			part.to++
		}
		return part
	}
	var out []part
	for _, e := range c.Except {
		out = append(out, partOf(e))
	}
	if !insideMulticast(c.Prefix) {
		for _, g := range multicast {
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
func (ac *AddressClasses) collect(policies []policy.Policy) {
	at := map[string]int{}
	var key []byte
	for r := range policy.Rules(policies) {
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
			at[string(key)] = len(ac.Lists)
			ac.Lists = append(ac.Lists, list)
		}
		ac.index[r] = at[string(key)]
	}
}

// appendCIDR appends c as a key.
func appendCIDR(c *policy.CIDR, b []byte) []byte {
	put := func(p netip.Prefix) {
		b = append(b, byte(p.Addr().BitLen()), byte(p.Bits()))
		b = append(b, p.Addr().AsSlice()...)
	}
	put(c.Prefix)
	b = binary.AppendUvarint(b, uint64(len(c.Except)))
	for _, e := range c.Except {
		put(e)
	}
	return b
}

// ListOf returns which of the lists is the rule's; -1: it has no CIDR.
func (ac *AddressClasses) ListOf(r *policy.Rule) int {
	if i, ok := ac.index[r]; ok {
		return i
	}
	return -1
}

// atoms cuts both families where a CIDR, an exception or the multicast addresses begin or end.
func atoms(cidrs []*policy.CIDR) []AddressRange {
	starts := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	cut := func(p netip.Prefix) {
		starts = append(starts, p.Addr())
		if next := lastAddr(p).Next(); next.IsValid() {
			starts = append(starts, next)
		}
	}
	for _, g := range multicast {
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
	ranges := make([]AddressRange, len(starts))
	for i, from := range starts {
		to := lastAddr(netip.PrefixFrom(from, 0))
		if i+1 < len(starts) && starts[i+1].Is4() == from.Is4() {
			to = starts[i+1].Prev()
		}
		ranges[i] = AddressRange{from, to}
	}
	return ranges
}

// appendRange adds r, joined to the last range where it continues that. Ranges on
// either side of where the multicast addresses begin or end stay apart: the two
// have different defaults.
func appendRange(ranges []AddressRange, r AddressRange) []AddressRange {
	if n := len(ranges); n > 0 && ranges[n-1].ContinuedBy(r) {
		ranges[n-1].To = r.To
		return ranges
	}
	return append(ranges, r)
}

// ContinuedBy reports whether the next range begins where r ends, and has the same defaults.
func (r AddressRange) ContinuedBy(next AddressRange) bool {
	return r.To.Next() == next.From && IsMulticast(r.To) == IsMulticast(next.From)
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

// Disjoint leaves out the prefixes that lie inside another one.
func Disjoint(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range list {
		inside := false
		for j, q := range list {
			inside = inside || q.Contains(p.Addr()) && (q.Bits() < p.Bits() || q.Bits() == p.Bits() && j < i)
		}
		if !inside {
			out = append(out, p.Masked())
		}
	}
	return out
}
