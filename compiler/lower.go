package compiler

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/chains"
	"thole/compiler/classes"
	"thole/compiler/mark"
	"thole/compiler/partition"
	"thole/compiler/policy"
	nft "thole/ruleset"
)

// A lowering writes judgements as elements of maps. It knows which sets there are, and how many elements they have;
// the elements themselves are in the table.
type lowering struct {
	classes  *classes.Set
	policies []policy.Policy // by name
	options  Options
	fleet    *Fleet
	sets     map[string]*nft.Set // with elements while a table is made
	counts   map[string]int      // how many elements there are
	levels   []chains.Level      // deepest first

	expected map[uint8]int // workloads, by the depth of their cgroup
	audits   map[string]chains.Audit
	dynamic  []nft.Set         // that packets fill
	bridge   *nft.Table        // of family bridge; nil: it is not needed
	bound    map[string]member // by the path of the cgroup

	networked map[string]member // those of bound with a network of their own

	containers containers
	rows       map[string]nft.Chain // by name
	uses       map[string]int       // by name of a chain: elements that lead there
	pairs      map[[2]uint32]int    // pairs of classes: by how many of the two it was written
	frame      frame
	edit       *edit // what changes; nil: a table is made

	byRank, ranks []int    // the peers by rank (grouping), and the ranks by peer; nil: not known
	leads         [][2]int // by peer and direction: of those that no rule names over all others (grouping.lines)
	groupings     map[*classes.RuleList]*grouping
	destinations  map[*classes.RuleList][]destination
}

// containers are those beside the workloads.
type containers struct {
	parents    []policy.Cgroup
	unlabelled []policy.Unlabelled
	above      map[string]int // cgroups that contain unlabelled ones: how many
}

// A member is a workload in its class, as its cgroup is bound.
type member struct {
	*policy.Workload
	class        *classes.Class
	memberNumber uint32 // its own number, where the class is divided
}

func (m member) binding() binding { return binding{m.class.Number, m.memberNumber} }

// lower makes the table that does what the policies say of these classes.
func lower(
	in Input, policies []policy.Policy, cs *classes.Set, members []member, namespaces []*namespace,
) (*lowering, nft.Table) {
	l := &lowering{
		classes: cs, policies: policies, options: in.Options, fleet: in.Fleet,
		containers: containers{in.Parents, in.Unlabelled, map[string]int{}},
		sets:       map[string]*nft.Set{}, counts: map[string]int{}, audits: map[string]chains.Audit{},
		expected: map[uint8]int{}, rows: map[string]nft.Chain{}, uses: map[string]int{}, pairs: map[[2]uint32]int{},
		groupings: map[*classes.RuleList]*grouping{}, destinations: map[*classes.RuleList][]destination{},
	}
	l.options.Epoch = max(l.options.Epoch, 1)
	l.declare(chains.ClassSets())
	l.bindWorkloads(members)
	l.bindContainers(in.Parents, in.Unlabelled)
	l.bindNetworks(in.Bridges, in.Unlabelled, members, namespaces)
	l.bindFleet()
	l.bindAddresses()
	l.replaceDynamic()
	for _, c := range cs.Workloads {
		l.write(c, classes.Ingress)
		l.write(c, classes.Egress)
		l.leaving(c)
	}
	for _, c := range cs.Namespaces { // nothing on the host network has such a class: nothing of it leaves there
		l.write(c, classes.Ingress)
		l.write(c, classes.Egress)
	}
	for _, c := range cs.Remotes {
		l.believe(c)
	}
	return l, l.table()
}

// table returns the table with all elements, which l has no more.
func (l *lowering) table() nft.Table {
	t := nft.Table{Name: "thole"}
	for _, s := range l.sets {
		if len(s.Elements) > 0 || s.Timeout != 0 {
			t.Sets = append(t.Sets, *s)
		}
		l.counts[s.Name] = len(s.Elements) // as long as it is not said twice
	}
	l.frame = l.newFrame()
	t.Counters, t.Chains, t.Bridge = l.frame.counters, l.frame.chains, l.bridge
	t.Normalise()
	l.frame.counters, l.frame.chains, l.bridge = t.Counters, t.Chains, t.Bridge
	for i := range t.Sets {
		l.counts[t.Sets[i].Name] = len(t.Sets[i].Elements)
	}
	for _, s := range l.sets {
		s.Elements = nil
	}
	return t
}

// A frame is what of a table does not grow with what is in its sets.
type frame struct {
	counters []string
	chains   []nft.Chain
}

// newFrame returns the chains and counters for the elements that there are.
func (l *lowering) newFrame() frame {
	in := chains.Input{Levels: l.levels, Bridges: l.sets["bridges"] != nil, MemberNumbers: l.counts["group"] > 0,
		Epoch: l.options.Epoch, Deny: l.options.Deny, Ports: l.usedRows()}
	if l.fleet != nil {
		in.Fleet, in.Queue = true, l.fleet.Queue
	}
	in.Audits = l.usedAudits(in.Ports)
	f := frame{counters: chains.Counters(in), chains: chains.Build(in)}
	for i := range f.chains {
		f.chains[i].Rules = slices.DeleteFunc(f.chains[i].Rules, l.asksNothing)
	}
	return f
}

// usedRows returns the chains of ports to which some element leads, and forgets the others.
func (l *lowering) usedRows() []nft.Chain {
	maps.DeleteFunc(l.rows, func(name string, _ nft.Chain) bool { return l.uses[name] == 0 })
	return slices.Collect(maps.Values(l.rows))
}

// usedAudits returns the chains of audit policies to which elements or chains of ports lead, by name.
func (l *lowering) usedAudits(rows []nft.Chain) []chains.Audit {
	used := map[string]bool{}
	for _, c := range rows {
		for _, r := range c.Rules {
			for _, s := range r.Statements {
				if v, ok := s.(nft.Verdict); ok {
					used[v.Chain] = true
				}
			}
		}
	}
	var list []chains.Audit
	for _, name := range slices.Sorted(maps.Keys(l.audits)) {
		if used[name] || l.uses[name] > 0 {
			list = append(list, l.audits[name])
		}
	}
	return list
}

// asksNothing says whether a rule looks something up in a set that has no elements:
// neither is written.
func (l *lowering) asksNothing(r nft.Rule) bool {
	return slices.ContainsFunc(r.Statements, func(s nft.Statement) bool {
		name := ""
		switch s := s.(type) {
		case nft.InSet:
			name = s.Set
		case nft.ByMap:
			name = s.Map
		case nft.SetByMap:
			name = s.Map
		default:
			return false
		}
		return l.counts[name] == 0 && l.sets[name].Timeout == 0
	})
}

// declare makes sets and maps, empty.
func (l *lowering) declare(sets []nft.Set) {
	for _, s := range sets {
		l.sets[s.Name] = &s
	}
}

// replaceDynamic declares the sets that packets fill, for the epoch. It returns those that are there no more, and those
// that are new.
func (l *lowering) replaceDynamic() (gone, come []nft.Set) {
	before := l.dynamic
	l.dynamic = chains.DynamicSets(l.options.Epoch, l.fleet != nil)
	gone, come = withoutSets(before, l.dynamic), withoutSets(l.dynamic, before)
	for _, s := range gone {
		delete(l.sets, s.Name)
	}
	l.declare(come)
	return gone, come
}

// withoutSets returns the sets of which none of the others has the name.
func withoutSets(sets, others []nft.Set) []nft.Set {
	return slices.DeleteFunc(slices.Clone(sets), func(s nft.Set) bool {
		return slices.ContainsFunc(others, func(o nft.Set) bool { return o.Name == s.Name })
	})
}

func (l *lowering) add(set string, e nft.Element) {
	if l.edit != nil {
		l.edit.add(set, e)
		return
	}
	s := l.sets[set]
	s.Elements = append(s.Elements, e)
	if e.Verdict.Chain != "" {
		l.uses[e.Verdict.Chain]++
	}
}

// bindWorkloads maps each bound cgroup to its class, in one map for each depth.
func (l *lowering) bindWorkloads(members []member) {
	list := slices.Clone(members)
	// By the keys of the elements: who normalises the table finds them sorted.
	slices.SortFunc(list, func(a, b member) int {
		return cmp.Or(cmp.Compare(a.Cgroup.ID, b.Cgroup.ID), strings.Compare(a.Cgroup.Path, b.Cgroup.Path))
	})
	for i := range list {
		l.expected[list[i].Cgroup.Depth()]++
	}
	l.bound, l.networked = make(map[string]member, len(list)), map[string]member{}
	for _, m := range list {
		l.enterMember(m)
		l.bindMember(m)
	}
}

// enterMember notes how a cgroup is bound.
func (l *lowering) enterMember(m member) {
	l.bound[m.Cgroup.Path] = m
	if m.HasOwnNetwork() {
		l.networked[m.Cgroup.Path] = m
	}
}

// bindMember writes what binds one workload.
func (l *lowering) bindMember(m member) {
	comment := l.commentOf(m.Workload)
	if m.memberNumber != 0 {
		for set, e := range m.binding().inGroup(comment) {
			l.add(set, e)
		}
	}
	l.bind(m.Cgroup, m.binding(), comment)
}

// A binding is what a cgroup is bound to: a class and, where that is divided, the number
// of the workload itself.
type binding struct{ class, memberNumber uint32 }

func (l *lowering) bind(cg policy.Cgroup, b binding, comment string) {
	if at := l.level(cg); !at.Bound {
		at.Bound = true
		l.declare(chains.WorkloadSets(at.Depth, l.expected[at.Depth]))
	}
	for set, e := range b.elements(cg, comment) {
		l.add(set, e)
	}
}

// number is that of the workload itself, if it has one, or else that of its class.
func (b binding) number() uint32 {
	if b.memberNumber != 0 {
		return b.memberNumber
	}
	return b.class
}

// elements visits the elements that bind a cgroup, with the names of their sets.
func (b binding) elements(cg policy.Cgroup, comment string) iter.Seq2[string, nft.Element] {
	depth, key := cg.Depth(), []nft.Value{nft.CgroupValue(cg.Path, cg.ID)}
	return func(yield func(string, nft.Element) bool) {
		_ = yield(chains.SenderMap(depth), nft.Element{Key: key, Number: mark.Sender | b.number(), Comment: comment}) &&
			yield(chains.ListenerMap(depth), nft.Element{Key: key, Number: b.number(), Comment: comment}) &&
			yield(chains.SameSet(depth), nft.Element{Key: []nft.Value{key[0], class(b.class)}}) &&
			b.memberNumber != 0 &&
			yield(chains.SameSet(depth), nft.Element{Key: []nft.Value{key[0], class(b.memberNumber)}})
	}
}

// inGroup visits the elements that say in which class a number of a member's own is, and
// that it reaches itself.
func (b binding) inGroup(comment string) iter.Seq2[string, nft.Element] {
	itself := class(b.memberNumber)
	return func(yield func(string, nft.Element) bool) {
		pair := []nft.Value{itself, itself}
		_ = yield("group", nft.Element{Key: pair[:1:1], Number: b.class, Comment: comment}) &&
			yield("group_listener", nft.Element{Key: pair[:1:1], Number: b.class}) &&
			yield("itself", nft.Element{Key: pair, Comment: comment})
	}
}

// bindContainers enters the parents of containers, and the containers below them
// that are known to be unlabelled.
func (l *lowering) bindContainers(parents []policy.Cgroup, unlabelled []policy.Unlabelled) {
	for _, p := range parents {
		l.bindParent(p)
	}
	for _, u := range unlabelled {
		l.countAbove(u, 1)
		l.bindUnlabelled(u)
	}
	l.sortLevels()
}

// countAbove notes in which cgroups an unlabelled container is, or is no more.
func (l *lowering) countAbove(u policy.Unlabelled, more int) {
	for cgroup := range above(u.Cgroup.Path) {
		if l.containers.above[cgroup] += more; l.containers.above[cgroup] == 0 {
			delete(l.containers.above, cgroup)
		}
	}
}

// above visits the cgroups that contain another, the deepest first.
func above(cgroup string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for at := strings.LastIndexByte(cgroup, '/'); at >= 0; at = strings.LastIndexByte(cgroup[:at], '/') {
			if !yield(cgroup[:at]) {
				return
			}
		}
	}
}

func (l *lowering) sortLevels() {
	slices.SortFunc(l.levels, func(a, b chains.Level) int { return cmp.Compare(b.Depth, a.Depth) })
}

// bindParent closes what is not known below a cgroup: a policy could select it. As long as none is enforced, none can.
func (l *lowering) bindParent(p policy.Cgroup) {
	if !slices.ContainsFunc(l.policies, func(p policy.Policy) bool { return !p.Audit }) {
		return
	}
	if at := l.level(p); !at.Unknown {
		at.Unknown = true
		l.declare(chains.UnknownSets(at.Depth))
	}
	l.add(chains.UnknownSet(p.Depth()), nft.Element{Key: []nft.Value{nft.CgroupValue(p.Path, p.ID)}})
}

// bindUnlabelled enters an unlabelled container: it belongs to the deepest workload above it, if there is one.
func (l *lowering) bindUnlabelled(u policy.Unlabelled) {
	if b, ok := l.bindingAbove(u.Cgroup.Path); ok {
		l.bind(u.Cgroup, b, "unlabelled, in a bound cgroup")
		return
	}
	if at := l.level(u.Cgroup); !at.Free {
		at.Free = true
		l.declare(chains.FreeSets(at.Depth))
	}
	l.add(chains.FreeSet(u.Cgroup.Depth()), nft.Element{Key: []nft.Value{nft.CgroupValue(u.Cgroup.Path, u.Cgroup.ID)}})
}

// bindingAbove returns that of the deepest bound cgroup that contains another.
func (l *lowering) bindingAbove(cgroup string) (b binding, ok bool) {
	for parent := range above(cgroup) {
		if m, ok := l.bound[parent]; ok {
			return m.binding(), true
		}
	}
	return binding{}, false
}

// level returns the entry of the cgroup's depth.
func (l *lowering) level(cg policy.Cgroup) *chains.Level {
	depth := cg.Depth()
	for i := range l.levels {
		if l.levels[i].Depth == depth {
			return &l.levels[i]
		}
	}
	l.levels = append(l.levels, chains.Level{Depth: depth})
	return &l.levels[len(l.levels)-1]
}

func (l *lowering) bindAddresses() {
	for i := range l.classes.Addresses.Classes[1:] {
		c := &l.classes.Addresses.Classes[1+i]
		for _, r := range c.Ranges {
			if !partition.IsMulticast(r.From) { // nobody sends from there
				l.add("address"+family(r.From), nft.Element{Key: []nft.Value{nft.AddressRange(r.From, r.To)},
					Number: c.Number})
			}
		}
	}
}

// family is how the names of sets end that have addresses of a's family.
func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// rankPeers orders the peers: what is unlabelled, the classes of this node by their number, those of other nodes, and
// those of addresses (grouping). It does nothing as long as no class comes or goes.
func (l *lowering) rankPeers() {
	if l.ranks != nil {
		return
	}
	peers := l.classes.Peers
	l.byRank = make([]int, 0, len(peers))
	l.byRank = append(l.byRank, 0)
	for _, c := range slices.Concat(l.classes.Workloads, l.classes.Namespaces) {
		l.byRank = append(l.byRank, c.ID)
	}
	slices.SortFunc(l.byRank[1:], func(a, b int) int { return cmp.Compare(peers[a].Number(), peers[b].Number()) })
	for _, c := range l.classes.Remotes {
		l.byRank = append(l.byRank, c.ID)
	}
	for id, p := range peers {
		if p.Addresses != nil {
			l.byRank = append(l.byRank, id)
		}
	}
	l.ranks = make([]int, len(peers))
	for rank, id := range l.byRank {
		l.ranks[id] = rank
	}
}

// forgetRanks has all be ranked anew: a class comes or goes.
func (l *lowering) forgetRanks() {
	l.byRank, l.ranks = nil, nil
	clear(l.groupings)
}

// ranked returns exceptions by the rank of their peers.
func (l *lowering) ranked(exceptions []classes.Exception) []rankedRow {
	list := make([]rankedRow, len(exceptions))
	for i, e := range exceptions {
		list[i] = rankedRow{l.ranks[e.Peer], e.Row}
	}
	slices.SortFunc(list, func(a, b rankedRow) int { return a.rank - b.rank })
	return list
}

// grouping returns how a rule list divides the peers: for ingress, addresses are among them.
func (l *lowering) grouping(rl *classes.RuleList, d classes.Direction) *grouping {
	g := l.groupings[rl]
	if g == nil {
		total := len(l.byRank)
		if d == classes.Egress {
			total -= len(l.classes.Addresses.Classes)
		}
		g = newGrouping(total, l.ranked(rl.Named), rl.Others)
		l.groupings[rl] = g
	}
	return g
}

// write writes what c says of each peer: what it says of most of them for all,
// and then only who differs, so that elements do not grow with the square of the
// classes. Where both sides allow a pair everything, one element says so for both.
func (l *lowering) write(c *classes.Class, d classes.Direction) {
	l.rankPeers()
	exceptions := l.ranked(slices.Concat(c.SameLabels[d], c.Namespaces[d]))
	usual, others, lead := l.grouping(c.RuleLists[d], d).lines(exceptions)
	l.setLead(c, d, lead)
	if d == classes.Egress {
		l.introduce(c)
	}
	side := [...]side{classes.Ingress: {"ingress", chains.AtIngress}, classes.Egress: {"egress", chains.AtEgress}}[d]
	if !usual.AllowsAll() { // to allow is to fall through
		comment := l.describe(c, d, nil, usual.OtherPorts())
		l.add(side.name+"_class", element(l.says(side, usual), butForPorts(usual, comment), class(c.Number)))
	}
	for _, line := range others {
		w := lineWriter{l, side, line.Row, nft.Verdict{}}
		keys := make([]nft.Value, 2*len(line.ranks))
		for _, rank := range line.ranks {
			id := l.byRank[rank]
			key := keys[:2:2]
			keys = keys[2:]
			key[0], key[1] = class(l.classes.Peers[id].Number()), class(c.Number)
			if d == classes.Egress {
				slices.Reverse(key)
			}
			comment := l.describe(c, d, &l.classes.Peers[id], line.OtherPorts())
			if line.AllowsAll() && l.otherSideAllowsAll(c, d, id) {
				l.addPair(element(goTo(chains.Settle), comment, key...))
				continue
			}
			w.write(l.classes.Peers[id].IsRemote(), comment, key)
		}
	}
}

// addPair writes an element of pair that both sides may write.
func (l *lowering) addPair(e nft.Element) {
	key := [2]uint32{uint32(e.Key[0].From.Uint64()), uint32(e.Key[1].From.Uint64())}
	if l.edit != nil && l.edit.removes {
		if l.pairs[key]--; l.pairs[key] > 0 {
			return
		}
		delete(l.pairs, key)
	} else if l.pairs[key]++; l.pairs[key] > 1 && !l.options.Comments {
		return
	}
	l.add("pair", e)
}

// A lineWriter writes the elements of a line.
type lineWriter struct {
	*lowering
	side
	row     *classes.Row
	verdict nft.Verdict // empty before the first element: before that, it needs no chain
}

func (w *lineWriter) write(remote bool, comment string, key []nft.Value) {
	if w.verdict == (nft.Verdict{}) {
		w.verdict = w.says(w.side, w.row)
	}
	set := w.side.name + "_peer"
	if w.side.stage == chains.AtEgress && remote {
		set = "egress_remote"
	}
	w.add(set, element(w.verdict, butForPorts(w.row, comment), key...))
}

// setLead notes how much what c says to peers that no rule names leads (affected).
func (l *lowering) setLead(c *classes.Class, d classes.Direction, lead int) {
	if missing := len(l.classes.Peers) - len(l.leads); missing > 0 {
		l.leads = append(l.leads, make([][2]int, missing)...)
	}
	l.leads[c.ID][d] = lead
}

// otherSideAllowsAll says whether a peer, as the other end of a connection with c, allows it on every port, by policies
// that the table of this node holds.
func (l *lowering) otherSideAllowsAll(c *classes.Class, d classes.Direction, id int) bool {
	switch p := l.classes.Peers[id]; {
	case id == 0 || p.IsRemote():
		return false
	case p.Class == nil:
		return true // it has no policies
	default:
		return l.classes.Judge(p.Class, 1-d, c.ID).AllowsAll()
	}
}

// A side names the maps of one side of a connection.
type side struct {
	name  string
	stage chains.Stage
}

// says returns the verdict that says what a row says: it leads to a chain of ports where these are not all judged
// alike.
func (l *lowering) says(s side, r *classes.Row) nft.Verdict {
	if r.Uniform {
		return l.verdict(r.OtherPorts(), s.stage)
	}
	return goTo(l.rowChain(s, r))
}

// verdict turns a judgement into what the map says at that stage.
func (l *lowering) verdict(j classes.Judgement, at chains.Stage) nft.Verdict {
	switch {
	case at == chains.AtCalled && j.Ruling == classes.WouldDeny && j.Unsaid:
		return goTo(chains.CalledAllowedButAudited)
	case j.Ruling == classes.WouldDeny:
		a := chains.Audit{Policy: j.Policy.Name, Stage: at, Unsaid: j.Unsaid && at == chains.AtEgress}
		l.audits[a.Name()] = a
		return goTo(a.Name())
	case j.Ruling == classes.Deny && j.Unsaid && at == chains.AtEgress:
		return goTo(chains.EgressUnsaid)
	case j.Ruling == classes.Deny:
		return goTo(chains.Refuse)
	case at == chains.AtCalled:
		return goTo(chains.CalledAllowed)
	default:
		return nft.Verdict{Kind: nft.Return}
	}
}

func goTo(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Goto, Chain: chain} }

func class(n uint32) nft.Value { return nft.Number(uint64(n)) }

func element(v nft.Verdict, comment string, key ...nft.Value) nft.Element {
	return nft.Element{Key: key, Verdict: v, Comment: comment}
}

// describe says for a reader of the table who may reach whom and why. A nil peer
// is whoever is not listed.
func (l *lowering) describe(c *classes.Class, d classes.Direction, p *classes.Peer, j classes.Judgement) string {
	if !l.options.Comments {
		return ""
	}
	other := "others"
	if p != nil {
		other = p.String()
	}
	from, to := other, c.String()
	if d == classes.Egress {
		from, to = to, from
	}
	return fmt.Sprintf("%s → %s: %s", from, to, j)
}

func butForPorts(r *classes.Row, comment string) string {
	if comment == "" || r.Uniform {
		return comment
	}
	return comment + ", but for some ports"
}

// commentOf names a workload for a reader of the table.
func (l *lowering) commentOf(w *policy.Workload) string {
	if !l.options.Comments {
		return ""
	}
	return w.Name + " (" + w.Labels.String() + ")"
}
