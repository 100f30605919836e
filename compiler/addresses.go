package compiler

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// groups are the multicast addresses: a CIDR matches them only if it lies inside
// one of these.
var groups = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

func isGroup(a netip.Addr) bool { return groups[0].Contains(a) || groups[1].Contains(a) }

func insideGroups(p netip.Prefix) bool {
	return slices.ContainsFunc(groups, func(g netip.Prefix) bool { return g.Contains(p.Addr()) && p.Bits() >= g.Bits() })
}

func (c *CIDR) matches(a netip.Addr) bool {
	if !c.Prefix.Contains(a) || isGroup(a) && !insideGroups(c.Prefix) {
		return false
	}
	return !slices.ContainsFunc(c.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

func (c *CIDR) String() string { return fmt.Sprint(c.Prefix, c.Except) }

// An addressRange is a run of addresses of one family, both ends included.
type addressRange struct{ from, to netip.Addr }

func (r addressRange) String() string { return r.from.String() + "-" + r.to.String() }

// An addressClass are the addresses outside this node that no rule of the set can
// tell apart.
type addressClass struct {
	number  uint32
	index   int            // in addressClasses.classes
	matches []bool         // which of addressClasses.lists match it
	ranges  []addressRange // ascending
}

// addressClasses divide all addresses. The first class is what no CIDR matches.
type addressClasses struct {
	lists   [][]*CIDR // the distinct lists of cidr: peers of all rules
	index   map[*Rule]int
	classes []addressClass
	matched [][]int // for each list, the indexes of the classes that it matches
}

// classifyAddresses finds the classes of all addresses that rules can tell apart.
func classifyAddresses(policies []Policy) *addressClasses {
	ac := &addressClasses{index: map[*Rule]int{}}
	ac.collect(policies)
	ac.classes = []addressClass{{matches: make([]bool, len(ac.lists))}}
	ac.matched = make([][]int, len(ac.lists))
	all := atoms(slices.Concat(ac.lists...))
	index := map[string]int{"": 0} // by the lists that match
	for i, lists := range ac.listsOf(all) {
		var key []byte
		for _, list := range lists {
			key = binary.AppendUvarint(key, uint64(list))
		}
		at, ok := index[string(key)]
		if !ok {
			at = len(ac.classes)
			index[string(key)] = at
			class := addressClass{index: at, matches: make([]bool, len(ac.lists))}
			for _, list := range lists {
				class.matches[list] = true
				ac.matched[list] = append(ac.matched[list], at)
			}
			ac.classes = append(ac.classes, class)
		}
		ac.classes[at].ranges = appendRange(ac.classes[at].ranges, all[i])
	}
	return ac
}

// of returns the class of an address.
func (ac *addressClasses) of(a netip.Addr) *addressClass {
	for i := range ac.classes {
		class := &ac.classes[i]
		if slices.ContainsFunc(class.ranges, func(r addressRange) bool { return r.from.Compare(a) <= 0 && a.Compare(r.to) <= 0 }) {
			return class
		}
	}
	return &ac.classes[0]
}

// listsOf returns for each of the atoms, which are ascending, the lists that match it.
func (ac *addressClasses) listsOf(atoms []addressRange) [][]int {
	of := make([][]int, len(atoms))
	for list, cidrs := range ac.lists {
		for _, c := range cidrs {
			first, _ := slices.BinarySearchFunc(atoms, c.Prefix.Addr(), func(r addressRange, a netip.Addr) int { return r.from.Compare(a) })
			for i := first; i < len(atoms) && c.Prefix.Contains(atoms[i].from); i++ {
				known := len(of[i]) > 0 && of[i][len(of[i])-1] == list
				if !known && c.matches(atoms[i].from) {
					of[i] = append(of[i], list)
				}
			}
		}
	}
	return of
}

// collect finds the distinct lists of CIDRs, and which rule has which.
func (ac *addressClasses) collect(policies []Policy) {
	at := map[string]int{}
	for r := range allRules(policies) {
		var list []*CIDR
		for _, p := range r.Peers {
			if p.CIDR != nil {
				list = append(list, p.CIDR)
			}
		}
		if list == nil {
			continue
		}
		key := fmt.Sprint(list)
		if !has(at, key) {
			at[key] = len(ac.lists)
			ac.lists = append(ac.lists, list)
		}
		ac.index[r] = at[key]
	}
}

// listOf returns which of the lists is the rule's; -1: it has no CIDR.
func (ac *addressClasses) listOf(r *Rule) int {
	if i, ok := ac.index[r]; ok {
		return i
	}
	return -1
}

// atoms cuts both families where a CIDR, an exception or the multicast addresses begin or end.
func atoms(cidrs []*CIDR) []addressRange {
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
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
