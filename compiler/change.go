package compiler

import (
	"maps"
	"reflect"
	"slices"

	"thole/compiler/chains"
	"thole/compiler/classes"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A Change is what becomes different of what a Result was compiled of, while its policies and options stay.
type Change struct {
	Ended, Began []policy.Workload // what became another workload is in both

	Parents    *[]policy.Cgroup // all of them; nil: as they were
	Unlabelled *[]policy.Unlabelled

	Met, Forgotten []policy.Remote
}

// A Step is a Change of a Result, and what it makes of the table.
type Step struct {
	Numbers        Renumbering
	before         Renumbering // of the keys that Numbers changes: what they were
	result         *Result
	edit           edit
	numbersOfEnded map[policy.Cgroup]uint32 // numbers of members that ended
	classes        bool                     // some came or went
	levels         []chains.Level
	dirty          bool // the chains are others
}

// A Renumbering is a change of Numbers.
type Renumbering struct {
	Set   map[string]uint32 `json:"set,omitempty"`
	Drop  []string          `json:"drop,omitempty"`
	Next  uint32            `json:"next"`
	Freed []uint32          `json:"freed,omitempty"` // more of them
	Epoch uint16            `json:"epoch,omitempty"` // in which they were in use; 0: as it was

	Remotes     map[string]uint32 `json:"remotes,omitempty"`
	DropRemotes []string          `json:"dropRemotes,omitempty"`
	NextRemote  uint32            `json:"nextRemote,omitempty"` // 0: as it was
}

// Renumber changes n.
func (n *Numbers) Renumber(by Renumbering) {
	n.Workloads = renumbered(n.Workloads, by.Drop, by.Set)
	n.Next = by.Next
	if len(by.Remotes)+len(by.DropRemotes) > 0 {
		n.Remotes = renumbered(n.Remotes, by.DropRemotes, by.Remotes)
	}
	if by.NextRemote != 0 {
		n.NextRemote = by.NextRemote
	}
	if by.Epoch != 0 && by.Epoch != n.Epoch {
		n.Epoch, n.Freed = by.Epoch, nil
	}
	for _, number := range by.Freed {
		if at, found := slices.BinarySearch(n.Freed, number); !found {
			n.Freed = slices.Insert(slices.Clip(n.Freed), at, number) // others may have the old list
		}
	}
}

// mapsBefore returns what turns the maps back that by changes.
func (n *Numbers) mapsBefore(by Renumbering) (before Renumbering) {
	before.Set, before.Drop = entriesBefore(n.Workloads, by.Drop, by.Set)
	before.Remotes, before.DropRemotes = entriesBefore(n.Remotes, by.DropRemotes, by.Remotes)
	return before
}

func entriesBefore(numbers map[string]uint32, drop []string, set map[string]uint32) (had map[string]uint32,
	lacked []string) {
	had = map[string]uint32{}
	for _, key := range slices.Concat(drop, slices.Collect(maps.Keys(set))) {
		if number, ok := numbers[key]; ok {
			had[key] = number
		} else {
			lacked = append(lacked, key)
		}
	}
	return had, lacked
}

// Undo turns Numbers back that were the result's before the step: Change changed the maps in them.
func (s *Step) Undo(n *Numbers) {
	n.Workloads = renumbered(n.Workloads, s.before.Drop, s.before.Set)
	n.Remotes = renumbered(n.Remotes, s.before.DropRemotes, s.before.Remotes)
}

func renumbered(numbers map[string]uint32, drop []string, set map[string]uint32) map[string]uint32 {
	if numbers == nil {
		numbers = map[string]uint32{}
	}
	for _, key := range drop {
		delete(numbers, key)
	}
	maps.Copy(numbers, set)
	return numbers
}

// Change changes r, but for its table: that is for Step.Patch to say. What r then says is what Compile says of all
// that there is then, with the numbers that r has then; it costs what the change costs, however much else there is. A
// class that comes or goes costs what it says, and what others say of it.
//
// ok is false, and nothing is changed, where only Compile can tell:
//
//   - a workload that begins or ends has networks of its own, or contains an unlabelled container; or such a container
//     has networks of its own;
//   - a class comes or goes while containers of several classes share a network namespace;
//   - one begins that is there, or ends that is not; or no number is left;
//   - the elements of r have comments, in which others are counted.
func (r *Result) Change(c Change) (s *Step, ok bool) {
	if r.classes == nil {
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.canChange(&c) {
		return nil, false
	}
	l := r.lowering
	s = &Step{
		result: r, edit: edit{gone: map[string][]nft.Element{}, come: map[string][]nft.Element{}},
		Numbers: Renumbering{Set: map[string]uint32{}, Next: r.Numbers.Next, Remotes: map[string]uint32{}},
		levels:  slices.Clone(l.levels), numbersOfEnded: map[policy.Cgroup]uint32{},
	}
	l.edit = &s.edit
	s.change(&c)
	l.edit = nil
	s.before = r.Numbers.mapsBefore(s.Numbers)
	r.Numbers.Renumber(s.Numbers)
	if s.classes {
		r.describeClasses()
	}
	s.settle()
	return s, true
}

// canChange reports whether Change can tell.
func (r *Result) canChange(c *Change) bool {
	if r.lowering.options.Comments || !r.numbersLeft(len(c.Began), len(c.Met)) || r.changesNamespaces(c) {
		return false
	}
	ended := map[string]bool{} // paths
	for i := range c.Ended {
		w := &c.Ended[i]
		m, bound := r.lowering.bound[w.Cgroup.Path]
		if !r.isAlone(w) || !bound || m.Cgroup.ID != w.Cgroup.ID || m.HasOwnNetwork() || ended[w.Cgroup.Path] {
			return false
		}
		ended[w.Cgroup.Path] = true
	}
	began := map[string]bool{} // keys
	for i := range c.Began {
		w := &c.Began[i]
		for _, key := range keysOf(w) {
			_, had := r.Numbers.Workloads[key]
			if began[key] || had && !ended[w.Cgroup.Path] {
				return false
			}
			began[key] = true
		}
		if !r.isAlone(w) {
			return false
		}
	}
	if c.Unlabelled == nil {
		return true
	}
	gone, come := compareUnlabelled(r.lowering.containers.unlabelled, *c.Unlabelled)
	return !slices.ContainsFunc(slices.Concat(gone, come), func(u policy.Unlabelled) bool {
		for cgroup := range above(u.Cgroup.Path) {
			if began[cgroup] || ended[cgroup] {
				return true
			}
		}
		return len(u.Own) > 0 || u.Sharing.Namespace != ""
	})
}

// changesNamespaces reports whether a class may come or go beside those of shared network namespaces, which are judged
// by all other classes.
func (r *Result) changesNamespaces(c *Change) bool {
	if len(r.classes.Namespaces) == 0 {
		return false
	}
	left := map[*classes.Class]int{}
	for i := range c.Ended {
		class := r.classes.ClassOf(&c.Ended[i])
		if left[class]++; class == nil || left[class] >= class.Size {
			return true
		}
	}
	return len(c.Met)+len(c.Forgotten) > 0 || slices.ContainsFunc(c.Began, func(w policy.Workload) bool {
		return r.classes.ClassOf(&w) == nil
	})
}

// isAlone reports whether nothing but the sets of its depth says where a workload is.
func (r *Result) isAlone(w *policy.Workload) bool {
	return w.Kind != policy.KindAddress && w.Cgroup.Path != "" && !w.HasOwnNetwork() &&
		r.lowering.containers.above[w.Cgroup.Path] == 0
}

// numbersLeft reports whether there are numbers for so many workloads, each with a class and a number of its own, and
// for so many of other nodes, without one that was given up in this epoch.
func (r *Result) numbersLeft(workloads, remotes int) bool {
	freed, _ := slices.BinarySearch(r.Numbers.Freed, firstRemoteClass)
	freedRemotes := len(r.Numbers.Freed) - freed
	return len(r.taken)+freed+2*workloads <= lastWorkloadClass-firstWorkloadClass &&
		len(r.takenRemotes)+freedRemotes+remotes <= lastRemoteClass-firstRemoteClass
}

// compare returns what of one list is not in the other, and the other way round. Items have a cgroup, each another.
func compare[T any](had, has []T, cgroup func(*T) policy.Cgroup, same func(a, b *T) bool) (gone, come []T) {
	known := make(map[policy.Cgroup]*T, len(had))
	for i := range had {
		known[cgroup(&had[i])] = &had[i]
	}
	for i := range has {
		at := cgroup(&has[i])
		if was := known[at]; was != nil && same(was, &has[i]) {
			delete(known, at)
		} else {
			come = append(come, has[i])
		}
	}
	for i := range had {
		if known[cgroup(&had[i])] != nil {
			gone = append(gone, had[i])
		}
	}
	return gone, come
}

func compareParents(had, has []policy.Cgroup) (gone, come []policy.Cgroup) {
	return compare(had, has, func(c *policy.Cgroup) policy.Cgroup { return *c },
		func(a, b *policy.Cgroup) bool { return true })
}

func compareUnlabelled(had, has []policy.Unlabelled) (gone, come []policy.Unlabelled) {
	return compare(had, has, func(u *policy.Unlabelled) policy.Cgroup { return u.Cgroup },
		func(a, b *policy.Unlabelled) bool {
			return reflect.DeepEqual(a.Own, b.Own) && a.Sharing == b.Sharing
		})
}

func (s *Step) change(c *Change) {
	left := map[*classes.Class]bool{} // classes that may have no member now
	for i := range c.Ended {
		left[s.end(&c.Ended[i])] = true
	}
	for i := range c.Began {
		s.begin(&c.Began[i])
	}
	s.changeContainers(c)
	for i := range c.Forgotten {
		s.forget(&c.Forgotten[i])
	}
	for i := range c.Met {
		s.meet(c.Met[i])
	}
	for _, class := range slices.Clone(s.result.classes.Workloads) {
		if left[class] && class.Size == 0 {
			s.part(class)
		}
	}
}

// end takes a workload out of its class, which it returns.
func (s *Step) end(w *policy.Workload) *classes.Class {
	l := s.result.lowering
	m := l.bound[w.Cgroup.Path]
	s.writing(true, func() { l.bindMember(m) })
	delete(l.bound, w.Cgroup.Path)
	m.class.Size--
	s.Numbers.Drop = append(s.Numbers.Drop, keysOf(w)...)
	if m.memberNumber != 0 {
		s.Numbers.Drop = append(s.Numbers.Drop, memberKeys(w)...)
		delete(s.result.taken, m.memberNumber)
		s.Numbers.Freed = append(s.Numbers.Freed, m.memberNumber)
		s.numbersOfEnded[w.Cgroup] = m.memberNumber
	}
	return m.class
}

// begin puts a workload into its class.
func (s *Step) begin(w *policy.Workload) {
	l := s.result.lowering
	c, made := l.classes.ClassFor(w)
	if made {
		s.join(c)
	}
	c.Size++
	held := *w
	m := member{Workload: &held, class: c}
	for _, key := range keysOf(w) {
		s.Numbers.Set[key] = c.Number
	}
	if c.Divided {
		m.memberNumber = s.memberNumber(w.Cgroup)
		for _, key := range memberKeys(w) {
			s.Numbers.Set[key] = m.memberNumber
		}
	}
	l.enterMember(m)
	s.writing(false, func() { l.bindMember(m) })
	l.sortLevels()
}

// memberNumber returns a number for a member: the one that its cgroup had, or a free one.
func (s *Step) memberNumber(cgroup policy.Cgroup) uint32 {
	n, had := s.numbersOfEnded[cgroup]
	if !had {
		return s.nextNumber()
	}
	s.Numbers.Freed = slices.DeleteFunc(s.Numbers.Freed, func(freed uint32) bool { return freed == n })
	s.result.taken[n] = true
	return n
}

// writing has something written that goes, or comes.
func (s *Step) writing(goes bool, write func()) {
	s.edit.removes = goes
	write()
	s.edit.removes = false
}

// nextNumber takes the next free number, as number does, but for those that were given up in this epoch.
func (s *Step) nextNumber() uint32 {
	return s.next(&s.Numbers.Next, s.result.taken, firstWorkloadClass, lastWorkloadClass)
}

func (s *Step) next(next *uint32, taken map[uint32]bool, first, last uint32) uint32 {
	for {
		if *next < first || *next > last {
			*next = first
		}
		n := *next
		*next++
		_, freed := slices.BinarySearch(s.result.Numbers.Freed, n)
		if !freed && !taken[n] && !slices.Contains(s.Numbers.Freed, n) {
			taken[n] = true
			return n
		}
	}
}

// changeContainers changes what is known of containers beside workloads.
func (s *Step) changeContainers(c *Change) {
	l := s.result.lowering
	if c.Parents != nil {
		gone, come := compareParents(l.containers.parents, *c.Parents)
		s.writing(true, func() { each(gone, l.bindParent) })
		s.writing(false, func() { each(come, l.bindParent) })
		l.containers.parents = *c.Parents
	}
	if c.Unlabelled != nil {
		gone, come := compareUnlabelled(l.containers.unlabelled, *c.Unlabelled)
		s.writing(true, func() { each(gone, l.bindUnlabelled) })
		s.writing(false, func() { each(come, l.bindUnlabelled) })
		each(gone, func(u policy.Unlabelled) { l.countAbove(u, -1) })
		each(come, func(u policy.Unlabelled) { l.countAbove(u, 1) })
		l.containers.unlabelled = *c.Unlabelled
	}
	l.sortLevels()
}

func each[T any](list []T, do func(T)) {
	for _, item := range list {
		do(item)
	}
}

// meet enters what another node proved.
func (s *Step) meet(r policy.Remote) {
	cs := s.result.classes
	c := cs.ClassForRemote(&r)
	if s.Numbers.NextRemote == 0 {
		s.Numbers.NextRemote = s.result.Numbers.NextRemote
	}
	c.Number = s.next(&s.Numbers.NextRemote, s.result.takenRemotes, firstRemoteClass, lastRemoteClass)
	for _, key := range keysOf(c.First) {
		s.Numbers.Remotes[key] = c.Number
	}
	s.join(c)
}

// forget removes what another node proved.
func (s *Step) forget(r *policy.Remote) {
	cs := s.result.classes
	key := identity(cs.PeerOf(r))
	at := slices.IndexFunc(cs.Remotes, func(c *classes.Class) bool { return identity(c.First) == key })
	c := cs.Remotes[at]
	s.part(c)
	delete(s.result.takenRemotes, c.Number)
	s.Numbers.DropRemotes = append(s.Numbers.DropRemotes, key)
}

// settle finds what is left of the edit when what goes and comes again is taken out, and what that means for the
// chains.
func (s *Step) settle() {
	l := s.result.lowering
	names := slices.Sorted(maps.Keys(s.edit.gone))
	names = append(names, slices.Sorted(maps.Keys(s.edit.come))...)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		gone, come := difference(s.edit.gone[name], s.edit.come[name])
		s.edit.gone[name], s.edit.come[name] = gone, come
		before := l.counts[name]
		l.counts[name] += len(come) - len(gone)
		s.dirty = s.dirty || (before == 0) != (l.counts[name] == 0)
		s.use(gone, -1)
		s.use(come, 1)
	}
	for i := range l.levels {
		at := &l.levels[i]
		at.Bound, at.Free = l.counts[chains.SenderMap(at.Depth)] > 0, l.counts[chains.FreeSet(at.Depth)] > 0
		at.Unknown = l.counts[chains.UnknownSet(at.Depth)] > 0
	}
	l.levels = slices.DeleteFunc(l.levels, func(at chains.Level) bool { return !at.Bound && !at.Free && !at.Unknown })
	s.dirty = s.dirty || !slices.Equal(s.levels, l.levels)
}

// use notes that elements lead to chains, or do no more.
func (s *Step) use(elements []nft.Element, more int) {
	l := s.result.lowering
	for i := range elements {
		name := elements[i].Verdict.Chain
		if name == "" {
			continue
		}
		before := l.uses[name]
		if l.uses[name] += more; (before == 0) != (l.uses[name] == 0) {
			s.dirty = true
		}
		if l.uses[name] == 0 {
			delete(l.uses, name)
		}
	}
}

// difference sorts two lists of elements, and leaves out what is in both.
func difference(gone, come []nft.Element) (left, added []nft.Element) {
	slices.SortFunc(gone, nft.Element.Compare)
	slices.SortFunc(come, nft.Element.Compare)
	for len(gone) > 0 && len(come) > 0 {
		switch c := gone[0].Compare(come[0]); {
		case c < 0:
			left, gone = append(left, gone[0]), gone[1:]
		case c > 0:
			added, come = append(added, come[0]), come[1:]
		default:
			gone, come = gone[1:], come[1:]
		}
	}
	return append(left, gone...), append(added, come...)
}

// Empty reports whether no element goes or comes.
func (s *Step) Empty() bool {
	some := func(elements map[string][]nft.Element) bool {
		for _, list := range elements {
			if len(list) > 0 {
				return true
			}
		}
		return false
	}
	return !some(s.edit.gone) && !some(s.edit.come)
}

// Patch returns what the step makes of the table, for an epoch: that of the table, or a new one. It is to be asked
// once.
func (s *Step) Patch(epoch uint16) nft.Patch {
	r, l := s.result, s.result.lowering
	r.mu.Lock()
	defer r.mu.Unlock()
	p := nft.Patch{}
	for _, name := range slices.Sorted(maps.Keys(l.sets)) {
		gone, come := s.edit.gone[name], s.edit.come[name]
		if len(gone)+len(come) == 0 {
			continue
		}
		had, has := *l.sets[name], *l.sets[name]
		had.Elements, has.Elements = gone, come
		if n := l.counts[name]; n-len(come)+len(gone) > 0 {
			p.Have.Sets = append(p.Have.Sets, had)
		}
		if l.counts[name] > 0 {
			p.Want.Sets = append(p.Want.Sets, has)
		}
	}
	if epoch != l.options.Epoch {
		l.options.Epoch, s.dirty = epoch, true
		gone, come := l.replaceDynamic()
		p.Have.Sets, p.Want.Sets = append(p.Have.Sets, gone...), append(p.Want.Sets, come...)
		r.Numbers.Epoch, r.Numbers.Freed = epoch, nil
		s.Numbers.Freed = nil
	}
	s.Numbers.Epoch = r.Numbers.Epoch
	if s.dirty {
		p.Have.Counters, p.Have.Chains = l.frame.counters, l.frame.chains
		l.frame = l.newFrame()
		frame := nft.Table{Counters: l.frame.counters, Chains: l.frame.chains}
		frame.Normalise()
		l.frame.counters, l.frame.chains = frame.Counters, frame.Chains
		p.Want.Counters, p.Want.Chains = frame.Counters, frame.Chains
		p.Frame = true
		for _, name := range slices.Sorted(maps.Keys(l.sets)) {
			declared := *l.sets[name]
			declared.Elements = nil
			p.Declared = append(p.Declared, declared)
		}
	}
	return p
}

// EnterEpoch makes r, its table included, what Compile would have returned for another epoch: only the chains and the
// sets that packets fill name the epoch.
func (r *Result) EnterEpoch(epoch uint16) {
	s := Step{result: r}
	r.Table.Patch(s.Patch(epoch))
}

// An edit are the elements that go and come.
type edit struct {
	removes    bool // what is written goes
	gone, come map[string][]nft.Element
}

func (e *edit) add(set string, element nft.Element) {
	to := e.come
	if e.removes {
		to = e.gone
	}
	to[set] = append(to[set], element)
}
