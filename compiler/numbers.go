package compiler

import (
	"fmt"
	"iter"
	"slices"
	"strconv"

	"thole/compiler/classes"
	"thole/compiler/mark"
	"thole/compiler/partition"
	"thole/compiler/policy"
)

// Numbers remember the number of what is in each class, so that a change of the
// input renumbers, and so changes, as little as possible. Keys are cgroups (by path
// and by id) and ranges of addresses.
type Numbers struct {
	Workloads, Addresses map[string]uint32
	Remotes              map[string]uint32 `json:",omitempty"`

	// Next is the number of the next new class of workloads. A freed one is not used
	// again before all others were: connections of its class may be remembered yet.
	Next       uint32
	NextRemote uint32 `json:",omitempty"`

	// Freed are the numbers, ascending, that were in use in Epoch and are free: the table may remember what was allowed
	// to them.
	Freed []uint32 `json:",omitempty"`
	Epoch uint16   `json:",omitempty"`
}

// free enters into n which numbers became free since had. It reports whether n gives one that was free, in the same
// epoch, to somebody else.
func (n *Numbers) free(had Numbers, epoch uint16) (again bool) {
	n.Epoch, n.Freed = epoch, nil
	if had.Epoch != epoch {
		return false
	}
	used := map[uint32]bool{}
	for number := range n.all() {
		used[number] = true
	}
	for _, number := range had.Freed {
		again = again || used[number]
	}
	for number := range had.all() {
		if !used[number] {
			n.Freed = append(n.Freed, number)
		}
	}
	n.Freed = append(n.Freed, had.Freed...)
	slices.Sort(n.Freed)
	n.Freed = slices.Compact(n.Freed)
	return again
}

// all are the numbers of workloads, of this node and of others.
func (n *Numbers) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, of := range []map[string]uint32{n.Workloads, n.Remotes} {
			for _, number := range of {
				if !yield(number) {
					return
				}
			}
		}
	}
}

// The bounds of numbers. A class number has 16 bits in the conntrack mark, 0 is
// what is unlabelled on this node.
const (
	firstWorkloadClass = 1
	lastWorkloadClass  = 0x3fff
	firstRemoteClass   = 0x4000 // workloads of other nodes
	lastRemoteClass    = 0x7fff
	elsewhere          = mark.AddressClass // addresses that no CIDR matches
	firstAddressClass  = 0x8001
	lastAddressClass   = 0xffff
)

// number gives each group a number from first to last: that of its first member
// that had one which no earlier group took, else the next free one from next on,
// and then from first on again. It returns them with what to remember, and what is
// next.
func number(what string, groups [][]string, had map[string]uint32, first, last uint32, next *uint32) ([]uint32,
	map[string]uint32, error) {
	if len(groups) > int(last-first+1) {
		return nil, nil, fmt.Errorf("%d classes of %s: the limit is %d", len(groups), what, last-first+1)
	}
	numbers := make([]uint32, len(groups))
	taken := make(map[uint32]bool, len(groups))
	for i, members := range groups {
		for _, m := range members {
			if n, ok := had[m]; ok && !taken[n] {
				numbers[i], taken[n] = n, true
				break
			}
		}
	}
	size := 0
	for _, members := range groups {
		size += len(members)
	}
	has := make(map[string]uint32, size)
	for i, members := range groups {
		for numbers[i] == 0 {
			if *next < first || *next > last {
				*next = first
			}
			if !taken[*next] {
				numbers[i], taken[*next] = *next, true
			}
			*next++
		}
		for _, m := range members {
			has[m] = numbers[i]
		}
	}
	return numbers, has, nil
}

// numberClasses numbers all classes, keeping what had says where it can. The members are those of the classes of this
// node, in the order of the classes' first ones.
func numberClasses(
	cs *classes.Set, members []member, namespaces []*namespace, had Numbers,
) (has Numbers, err error) {
	var numbers []uint32
	var lowest uint32
	has.Next = had.Next
	at := make(map[*classes.Class]int, len(cs.Workloads))
	groups := make([][]string, len(cs.Workloads)+len(cs.Namespaces))
	for i, c := range slices.Concat(cs.Workloads, cs.Namespaces) {
		at[c] = i
	}
	for _, n := range namespaces {
		if n.isShared() {
			groups[at[n.class]] = append(groups[at[n.class]], n.keys()...)
		}
	}
	for i := range members {
		groups[at[members[i].class]] = append(groups[at[members[i].class]], keysOf(members[i].Workload)...)
	}
	for i := range members {
		if members[i].class.Divided {
			groups = append(groups, memberKeys(members[i].Workload))
		}
	}
	numbers, has.Workloads, err = number("workloads", groups, had.Workloads, firstWorkloadClass, lastWorkloadClass,
		&has.Next)
	if err != nil {
		return has, err
	}
	for c, i := range at {
		c.Number = numbers[i]
	}
	rest := numbers[len(at):]
	for i := range members {
		if members[i].class.Divided {
			members[i].memberNumber, rest = rest[0], rest[1:]
		}
	}
	groups = make([][]string, len(cs.Remotes))
	for i, c := range cs.Remotes {
		groups[i] = keysOf(c.First)
	}
	has.NextRemote = had.NextRemote
	numbers, has.Remotes, err = number("other nodes' workloads", groups, had.Remotes, firstRemoteClass,
		lastRemoteClass, &has.NextRemote)
	if err != nil {
		return has, err
	}
	for i, c := range cs.Remotes {
		c.Number = numbers[i]
	}
	addresses := cs.Addresses.Classes[1:]
	numbers, has.Addresses, err = number("addresses", stringsOf(addresses, rangesOf), had.Addresses, firstAddressClass,
		lastAddressClass, &lowest)
	if err != nil {
		return has, err
	}
	cs.Addresses.Classes[0].Number = elsewhere
	for i := range addresses {
		addresses[i].Number = numbers[i]
	}
	return has, nil
}

// keysOf are what Numbers knows a workload by.
func keysOf(w *policy.Workload) []string {
	if w.Cgroup.ID == 0 {
		return []string{identity(w)}
	}
	return []string{identity(w), cgroupKey(w.Cgroup.ID)}
}

// memberKeys are the keys of a member's own number, in a class that is divided.
func memberKeys(w *policy.Workload) []string {
	keys := keysOf(w)
	for i := range keys {
		keys[i] = memberPrefix + keys[i]
	}
	return keys
}

const memberPrefix = "itself "

// cgroupKey is a workload's identity as the kernel knows it: without a path.
func cgroupKey(id uint64) string { return "#" + strconv.FormatUint(id, 10) }

// stringsOf returns the strings of each item's parts.
func stringsOf[T any, P fmt.Stringer](items []T, parts func(T) []P) [][]string {
	all := make([][]string, len(items))
	for i, item := range items {
		for _, p := range parts(item) {
			all[i] = append(all[i], p.String())
		}
	}
	return all
}

func rangesOf(c partition.AddressClass) []partition.AddressRange { return c.Ranges }
