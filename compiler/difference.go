package compiler

import (
	"maps"
	"slices"
	"strings"

	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A Difference is what a few workloads that begin and end change of a Result where no
// class comes or goes. It costs what these workloads cost, however many others there
// are: the rules, the policies and what they say of each class stay as they are.
type Difference struct {
	Patch   nft.Patch   // of Result.Table
	Numbers Renumbering // of Result.Numbers

	sizes map[int]int // by class: how many members more
}

// A Renumbering is a change of Numbers.
type Renumbering struct {
	Set  map[string]uint32 `json:"set,omitempty"`
	Drop []string          `json:"drop,omitempty"`
	Next uint32            `json:"next"`
}

// Renumber changes n.
func (n *Numbers) Renumber(by Renumbering) {
	for _, key := range by.Drop {
		delete(n.Workloads, key)
	}
	if n.Workloads == nil {
		n.Workloads = map[string]uint32{}
	}
	maps.Copy(n.Workloads, by.Set)
	n.Next = by.Next
}

// members is what of a Result changes when workloads begin and end in classes that stay.
type members struct {
	sizes []int           // of the classes
	taken map[uint32]bool // numbers of classes and of members
	above map[string]bool // cgroups that contain one of Input.Unlabelled, which is bound as they are
	whole bool            // every difference needs Compile
}

func membersOf(cs *classes, in Input) members {
	m := members{taken: map[uint32]bool{}, above: map[string]bool{}, whole: in.Options.Comments}
	for _, c := range cs.workloads {
		m.sizes, m.taken[c.number] = append(m.sizes, len(c.members)), true
		for _, n := range c.numbers {
			m.taken[n] = true
		}
	}
	for _, u := range in.Unlabelled {
		for at := strings.LastIndexByte(u.Cgroup.Path, '/'); at >= 0; at = strings.LastIndexByte(u.Cgroup.Path[:at],
			'/') {
			m.above[u.Cgroup.Path[:at]] = true
		}
	}
	return m
}

// Difference works out what becomes of r when workloads begin and end, and changes
// nothing. What it says is what Compile says: of all workloads that there are then, with
// the numbers that r has then. ok is false where only Compile can tell:
//
//   - a class comes or goes, or a depth of cgroups at which something is bound;
//   - a workload has networks of its own, or an unlabelled container below it;
//   - one begins that is there, or ends that is not; or no number is left;
//   - the elements of r have comments, in which others are counted.
func (r *Result) Difference(began, ended []policy.Workload) (d Difference, ok bool) {
	if r.classes == nil || r.members.whole {
		return d, false
	}
	w := differing{of: r, removed: elementsBySet{}, added: elementsBySet{}, given: map[uint32]bool{}}
	w.Difference = Difference{Numbers: Renumbering{Set: map[string]uint32{}, Next: r.Numbers.Next},
		sizes: map[int]int{}}
	for i := range ended {
		if !w.end(&ended[i]) {
			return d, false
		}
	}
	for i := range began {
		if !w.begin(&began[i]) {
			return d, false
		}
	}
	for class, more := range w.sizes {
		if r.members.sizes[class]+more <= 0 {
			return d, false
		}
	}
	w.Patch = nft.Patch{Removed: w.removed.sets(&r.Table), Added: w.added.sets(&r.Table)}
	return w.Difference, w.Patch.Fits(&r.Table)
}

// Take makes the difference, which r returned and which nothing came after.
func (r *Result) Take(d Difference) {
	r.Table.Patch(d.Patch)
	for _, key := range d.Numbers.Drop {
		if n, ok := r.Numbers.Workloads[key]; ok && strings.HasPrefix(key, itselfPrefix) {
			delete(r.members.taken, n)
		}
	}
	r.Numbers.Renumber(d.Numbers)
	for _, n := range d.Numbers.Set {
		r.members.taken[n] = true
	}
	for class, more := range d.sizes {
		r.members.sizes[class] += more
	}
}

// differing is a Difference that is being written.
type differing struct {
	of *Result
	Difference
	removed, added elementsBySet
	given          map[uint32]bool // numbers, to those that begin
}

type elementsBySet map[string][]nft.Element

func (m elementsBySet) add(set string, e nft.Element) { m[set] = append(m[set], e) }

// sets returns the elements as sets of the table, as far as it has them.
func (m elementsBySet) sets(t *nft.Table) []nft.Set {
	var list []nft.Set
	for _, name := range slices.Sorted(maps.Keys(m)) {
		s := nft.Set{Name: name}
		if at := slices.IndexFunc(t.Sets, func(s nft.Set) bool { return s.Name == name }); at >= 0 {
			s = t.Sets[at]
		}
		slices.SortFunc(m[name], nft.Element.Compare)
		s.Elements = m[name]
		list = append(list, s)
	}
	return list
}

// class returns the index of the class of a workload that can begin or end by itself.
func (d *differing) class(w *policy.Workload) (at int, ok bool) {
	if w.Kind == policy.KindAddress || w.Cgroup.Path == "" || len(w.Own) > 0 || d.of.members.above[w.Cgroup.Path] {
		return 0, false
	}
	return d.of.classes.classOf(w)
}

func (d *differing) end(w *policy.Workload) bool {
	at, ok := d.class(w)
	if !ok {
		return false
	}
	c := &d.of.classes.workloads[at]
	b := binding{class: c.number, itself: d.of.Numbers.Workloads[itself(w)[0]]}
	if d.of.Numbers.Workloads[identity(w)] != b.class || (b.itself != 0) != (c.numbers != nil) {
		return false
	}
	d.sizes[at]--
	d.bind(d.removed, w, b)
	d.Numbers.Drop = append(d.Numbers.Drop, keysOf(w)...)
	if b.itself != 0 {
		d.Numbers.Drop = append(d.Numbers.Drop, itself(w)...)
	}
	return true
}

func (d *differing) begin(w *policy.Workload) bool {
	at, ok := d.class(w)
	if !ok || slices.ContainsFunc(keysOf(w), d.known) {
		return false
	}
	c := &d.of.classes.workloads[at]
	b := binding{class: c.number}
	if c.numbers != nil {
		if b.itself = d.nextNumber(); b.itself == 0 {
			return false
		}
		for _, key := range itself(w) {
			d.Numbers.Set[key] = b.itself
		}
	}
	for _, key := range keysOf(w) {
		d.Numbers.Set[key] = b.class
	}
	d.sizes[at]++
	d.bind(d.added, w, b)
	return true
}

// known reports whether something that is there, or begins, has the key.
func (d *differing) known(key string) bool {
	_, had := d.of.Numbers.Workloads[key]
	_, has := d.Numbers.Set[key]
	return had || has
}

func (d *differing) bind(to elementsBySet, w *policy.Workload, b binding) {
	if b.itself != 0 {
		for set, e := range b.inGroup("") {
			to.add(set, e)
		}
	}
	for set, e := range b.elements(w.Cgroup, "") {
		to.add(set, e)
	}
}

// nextNumber takes the next free number, as number does; 0 if there is none. One that
// is given up by this difference is not used by it.
func (d *differing) nextNumber() uint32 {
	next := &d.Numbers.Next
	for range lastWorkloadClass {
		if *next < firstWorkloadClass || *next > lastWorkloadClass {
			*next = firstWorkloadClass
		}
		n := *next
		*next++
		if !d.of.members.taken[n] && !d.given[n] {
			d.given[n] = true
			return n
		}
	}
	return 0
}
