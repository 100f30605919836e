package compiler

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	nft "thole/ruleset"
)

// A lowering writes judgements as elements of maps.
type lowering struct {
	*classes
	sets   map[string]*nft.Set
	levels []level // deepest first
	audits map[string]auditChain
	bridge *nft.Table         // of family bridge; nil: it is not needed
	bound  map[string]binding // by the path of the cgroup
	rows   map[string]nft.Chain

	comments bool
}

// lower returns the table that does what the policies say of these classes.
func (cs *classes) lower(in Input) nft.Table {
	l := &lowering{classes: cs, sets: map[string]*nft.Set{}, audits: map[string]auditChain{}, bound: map[string]binding{}, rows: map[string]nft.Chain{}, comments: in.Options.Comments}
	l.declare()
	l.bindWorkloads()
	l.bindContainers(in.Parents, in.Unlabelled)
	l.bindNetworks(in.Bridges, in.Unlabelled)
	l.bindFleet(in.Fleet)
	l.bindAddresses()
	l.declareTunnels()
	l.declareJudged(epochOf(in.Options))
	for i := range cs.workloads {
		l.inbound(&cs.workloads[i])
		l.outbound(&cs.workloads[i])
		l.leaving(&cs.workloads[i])
	}
	return l.table(in)
}

func (l *lowering) table(in Input) nft.Table {
	o := in.Options
	_, bridges := l.sets["bridges"]
	lay := layout{levels: l.levels, bridges: bridges, groups: len(l.sets["group"].Elements) > 0, epoch: epochOf(o), deny: o.Deny, fleet: in.Fleet}
	t := nft.Table{Name: "thole", Counters: slices.Clone(counters)}
	for _, name := range slices.Sorted(maps.Keys(l.audits)) {
		a := l.audits[name]
		if a.unsaid { // it leads to the one without
			said := a
			said.unsaid = false
			if _, there := l.audits[said.name()]; !there {
				lay.audits = append(lay.audits, said)
			}
		}
		lay.audits = append(lay.audits, a)
		if c := AuditCounter(a.policy); !slices.Contains(t.Counters, c) {
			t.Counters = append(t.Counters, c)
		}
	}
	if in.Fleet != nil {
		t.Counters = append(t.Counters, floodCounter)
	}
	for _, s := range l.sets {
		if len(s.Elements) > 0 || s.Timeout != 0 {
			t.Sets = append(t.Sets, *s)
		}
	}
	lay.rows = slices.Collect(maps.Values(l.rows))
	t.Chains = lay.chains()
	for i := range t.Chains {
		t.Chains[i].Rules = slices.DeleteFunc(t.Chains[i].Rules, l.asksNothing)
	}
	t.Bridge = l.bridge
	t.Normalise()
	return t
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
		return len(l.sets[name].Elements) == 0 && l.sets[name].Timeout == 0
	})
}

// epochOf is the epoch in its place in the mark.
func epochOf(o Options) uint32 { return uint32(max(o.Epoch, 1)) << epochShift }

// declare makes the maps that a table may have, empty.
func (l *lowering) declare() {
	for _, s := range []nft.Set{
		{Name: "group", Key: []nft.Type{nft.Mark}, Data: nft.Mark, Comment: "the class of those who have a number of their own"},
		{Name: "group_listener", Key: []nft.Type{nft.ClassID}, Data: nft.ClassID, Comment: "the same"},
		{Name: "address4", Key: []nft.Type{nft.IPv4Addr}, Data: nft.Mark, Interval: true, Comment: "classes of addresses outside; 0x8000 is elsewhere"},
		{Name: "address6", Key: []nft.Type{nft.IPv6Addr}, Data: nft.Mark, Interval: true},
		{Name: "leave_class", Key: []nft.Type{nft.ClassID}, Data: nft.VerdictType, Comment: "sender, to any other address"},
	} {
		l.declareSet(s)
	}
	l.declareAddresses("leave", nft.ClassID, "sender . address . protocol . port: what rules say, where it differs from leave_class")
	l.declareAddresses("called", nft.Mark, "the same, of the address that was called, where NAT led to this node")
	l.declareSet(nft.Set{Name: "pair", Key: []nft.Type{nft.Mark, nft.ClassID}, Data: nft.VerdictType, Comment: "sender . listener: both sides allow everything, or it is the same workload"})
	l.declareSide("ingress", "listener", nft.ClassID)
	l.declareSide("egress", "sender", nft.Mark)
	l.declareSet(nft.Set{Name: "egress_remote", Key: []nft.Type{nft.Mark, nft.Mark}, Data: nft.VerdictType, Comment: "sender . another node's workload: where it differs from egress_class"})
}

// declareAddresses makes the maps that say what a sender may have to do with addresses outside.
func (l *lowering) declareAddresses(name string, sender nft.Type, comment string) {
	for i, address := range []nft.Type{nft.IPv4Addr, nft.IPv6Addr} {
		v, types := families[i], []nft.Type{nft.ICMPType, nft.ICMPv6Type}[i]
		l.declareSet(nft.Set{Name: name + v, Key: []nft.Type{sender, address, nft.InetProto, nft.InetService},
			Data: nft.VerdictType, Interval: true, Comment: comment})
		l.declareSet(nft.Set{Name: name + "_icmp" + v, Key: []nft.Type{sender, address, types},
			Data: nft.VerdictType, Interval: true, Comment: "by ICMP type, where it differs from " + name + v})
	}
}

// declareSide makes the maps that say what one side of a connection says.
func (l *lowering) declareSide(name, self string, of nft.Type) {
	l.declareSet(nft.Set{Name: name + "_peer", Key: []nft.Type{nft.Mark, nft.ClassID}, Data: nft.VerdictType, Comment: "sender . listener: where it differs from " + name + "_class"})
	l.declareSet(nft.Set{Name: name + "_class", Key: []nft.Type{of}, Data: nft.VerdictType, Comment: self})
}

func (l *lowering) add(set string, e nft.Element) {
	s := l.sets[set]
	s.Elements = append(s.Elements, e)
}

// bindWorkloads maps each bound cgroup to its class, in one map for each depth.
func (l *lowering) bindWorkloads() {
	for i := range l.workloads {
		c := &l.workloads[i]
		for at, w := range c.members {
			b := binding{class: c.number}
			if c.numbers != nil {
				b.itself = c.numbers[at]
				for set, e := range b.inGroup(l.commentOf(w)) {
					l.add(set, e)
				}
			}
			l.bound[w.Cgroup.Path] = b
			l.bind(w.Cgroup, b, l.commentOf(w))
		}
	}
}

// A binding is what a cgroup is bound to: a class and, where that is divided, the number
// of the workload itself.
type binding struct{ class, itself uint32 }

func (l *lowering) bind(cg Cgroup, b binding, comment string) {
	at := l.level(cg)
	if !at.bound {
		at.bound = true
		l.declareSet(nft.Set{Name: senderMap(at.depth), Key: []nft.Type{nft.CgroupV2}, Data: nft.Mark,
			Comment: fmt.Sprintf("cgroups at depth %d: the number of what they send", at.depth)})
		l.declareSet(nft.Set{Name: listenerMap(at.depth), Key: []nft.Type{nft.CgroupV2}, Data: nft.ClassID,
			Comment: "the same number, of a listener"})
		l.declareSet(nft.Set{Name: sameSet(at.depth), Key: []nft.Type{nft.CgroupV2, nft.Mark},
			Comment: "the same, to ask whether the mark says so already"})
	}
	for set, e := range b.elements(cg, comment) {
		l.add(set, e)
	}
}

// number is that of the workload itself, if it has one, or else that of its class.
func (b binding) number() uint32 {
	if b.itself != 0 {
		return b.itself
	}
	return b.class
}

// elements visits the elements that bind a cgroup, with the names of their sets.
func (b binding) elements(cg Cgroup, comment string) iter.Seq2[string, nft.Element] {
	depth, key := cg.depth(), nft.CgroupValue(cg.Path, cg.ID)
	return func(yield func(string, nft.Element) bool) {
		_ = yield(senderMap(depth), nft.Element{Key: []nft.Value{key}, Number: senderMark | b.number(), Comment: comment}) &&
			yield(listenerMap(depth), nft.Element{Key: []nft.Value{key}, Number: b.number(), Comment: comment}) &&
			yield(sameSet(depth), nft.Element{Key: []nft.Value{key, class(b.class)}}) && b.itself != 0 &&
			yield(sameSet(depth), nft.Element{Key: []nft.Value{key, class(b.itself)}})
	}
}

// inGroup visits the elements that say in which class a number of a member's own is, and
// that it reaches itself.
func (b binding) inGroup(comment string) iter.Seq2[string, nft.Element] {
	itself := class(b.itself)
	return func(yield func(string, nft.Element) bool) {
		_ = yield("group", nft.Element{Key: []nft.Value{itself}, Number: b.class, Comment: comment}) &&
			yield("group_listener", nft.Element{Key: []nft.Value{itself}, Number: b.class}) &&
			yield("pair", nft.Element{Key: []nft.Value{itself, itself}, Verdict: goTo("settle"), Comment: comment})
	}
}

// depth counts from the root, whose children have 1.
func (c Cgroup) depth() uint8 { return uint8(strings.Count(c.Path, "/") + 1) }

// bindContainers enters the parents of containers, and the containers below them
// that are known to be unlabelled: those belong to the deepest workload above
// them, if there is one.
func (l *lowering) bindContainers(parents []Cgroup, unlabelled []Unlabelled) {
	for _, p := range parents {
		at := l.level(p)
		if !at.unknown {
			at.unknown = true
			l.declareSet(nft.Set{Name: unknownSet(at.depth), Key: []nft.Type{nft.CgroupV2},
				Comment: "parents of containers: what is below them and in no set of a deeper level is not known yet"})
		}
		l.add(unknownSet(at.depth), nft.Element{Key: []nft.Value{nft.CgroupValue(p.Path, p.ID)}})
	}
	for _, u := range unlabelled {
		if b, ok := l.bindingAbove(u.Cgroup.Path); ok {
			l.bind(u.Cgroup, b, "unlabelled, in a bound cgroup")
			continue
		}
		at := l.level(u.Cgroup)
		if !at.free {
			at.free = true
			l.declareSet(nft.Set{Name: freeSet(at.depth), Key: []nft.Type{nft.CgroupV2}, Comment: "containers that are known to be unlabelled"})
		}
		l.add(freeSet(at.depth), nft.Element{Key: []nft.Value{nft.CgroupValue(u.Cgroup.Path, u.Cgroup.ID)}})
	}
	slices.SortFunc(l.levels, func(a, b level) int { return cmp.Compare(b.depth, a.depth) })
}

// bindingAbove returns that of the deepest bound cgroup that contains another.
func (l *lowering) bindingAbove(cgroup string) (b binding, ok bool) {
	for at := strings.LastIndexByte(cgroup, '/'); at >= 0; at = strings.LastIndexByte(cgroup[:at], '/') {
		if b, ok = l.bound[cgroup[:at]]; ok {
			return b, true
		}
	}
	return binding{}, false
}

// level returns the entry of the cgroup's depth.
func (l *lowering) level(cg Cgroup) *level {
	depth := cg.depth()
	for i := range l.levels {
		if l.levels[i].depth == depth {
			return &l.levels[i]
		}
	}
	l.levels = append(l.levels, level{depth: depth})
	return &l.levels[len(l.levels)-1]
}

func (l *lowering) declareSet(s nft.Set) { l.sets[s.Name] = &s }

func (l *lowering) bindAddresses() {
	for i := range l.addresses.classes[1:] {
		c := &l.addresses.classes[1+i]
		for _, r := range c.ranges {
			if !isGroup(r.from) { // nobody sends from there
				l.add("address"+family(r), nft.Element{Key: []nft.Value{nft.AddressRange(r.from, r.to)}, Number: c.number})
			}
		}
	}
}

func family(r addressRange) string {
	if r.from.Is4() {
		return "4"
	}
	return "6"
}

// inbound writes what c says of those who connect to it.
func (l *lowering) inbound(c *workloadClass) {
	peers := l.local()
	for i := range l.addresses.classes {
		peers = append(peers, peer{addresses: &l.addresses.classes[i]})
	}
	l.matrix(c, ingress, peers)
}

// outbound writes what c says of those on this node to whom it connects.
func (l *lowering) outbound(c *workloadClass) { l.matrix(c, egress, l.local()) }

// local are the peers on this node, by their number: their order decides where as many
// peers differ as do not, and must not change with who is the first of a class.
func (l *lowering) local() []peer {
	peers := []peer{{}}
	for i := range l.workloads {
		peers = append(peers, peer{workloads: &l.workloads[i]})
	}
	slices.SortFunc(peers, func(a, b peer) int { return cmp.Compare(a.number(), b.number()) })
	for i := range l.remotes {
		peers = append(peers, peer{workloads: &l.remotes[i]})
	}
	return peers
}

// A line is what one class says of peers about which it says the same.
type line struct {
	peers []peer
	*row
}

// matrix writes what c says of each peer: what it says of most of them for all,
// and then only who differs, so that elements do not grow with the square of the
// classes. Where both sides allow a pair everything, one element says so for both.
func (l *lowering) matrix(c *workloadClass, d direction, peers []peer) {
	lines := l.lines(c, d, peers)
	side := map[direction]side{ingress: {"ingress", atIngress}, egress: {"egress", atEgress}}[d]
	dk, usual := l.docket(c, d), lines[0].row
	if !usual.allowsAll() { // to allow is to fall through
		l.writeRow(side, side.name+"_class", dk, usual, func(j judgement) string { return l.describe(c, d, nil, j) }, class(c.number))
	}
	for _, line := range lines[1:] {
		for _, p := range line.peers {
			key := []nft.Value{class(p.number()), class(c.number)}
			if d == egress {
				slices.Reverse(key)
			}
			comment := func(j judgement) string { return l.describe(c, d, &p, j) }
			if line.allowsAll() && p.number() != 0 && !p.elsewhere() && l.otherSideAllowsAll(c, d, p) {
				l.add("pair", element(goTo("settle"), comment(line.judgements[0]), key...))
				continue
			}
			set := side.name + "_peer"
			if d == egress && p.elsewhere() {
				set = "egress_remote"
			}
			l.writeRow(side, set, dk, line.row, comment, key...)
		}
	}
}

// otherSideAllowsAll says whether p, as the other end of a connection with c, allows
// it on every port.
func (l *lowering) otherSideAllowsAll(c *workloadClass, d direction, p peer) bool {
	if p.workloads == nil {
		return true // it has no policies
	}
	return l.judge(p.workloads, 1-d, peer{workloads: c}).allowsAll()
}

// A side names the maps of one side of a connection.
type side struct {
	name  string
	stage stage
}

// writeRow writes what a row says of one key: one element, which leads to a chain of ports
// where these are not all judged alike.
func (l *lowering) writeRow(s side, set string, dk *docket, r *row, describe func(judgement) string, key ...nft.Value) {
	rest := r.judgements[0]
	if r.uniform() {
		l.add(set, element(l.verdict(rest, s.stage), describe(rest), key...))
		return
	}
	l.add(set, element(goTo(l.rowChain(s, dk, r)), butForPorts(describe(rest)), key...))
}

// lines groups the peers of which c says the same, the largest group first.
func (l *lowering) lines(c *workloadClass, d direction, peers []peer) []line {
	var lines []line
	index := map[string]int{}
	mentioned := l.mentioned(l.docket(c, d))
	var plain *row // of addresses that no rule of c mentions
	for _, p := range peers {
		r := plain
		if r == nil || p.addresses == nil || mentioned[p.addresses.index] {
			r = l.judge(c, d, p)
		}
		if p.addresses != nil && !mentioned[p.addresses.index] {
			plain = r
		}
		at, ok := index[r.signature]
		if !ok {
			at = len(lines)
			index[r.signature] = at
			lines = append(lines, line{row: r})
		}
		lines[at].peers = append(lines[at].peers, p)
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(len(b.peers), len(a.peers)) })
	return lines
}

// mentioned says which classes of addresses a CIDR of the docket matches.
func (l *lowering) mentioned(dk *docket) []bool {
	is := make([]bool, len(l.addresses.classes))
	for _, e := range dk.entries {
		if e.list >= 0 {
			for _, at := range l.addresses.matched[e.list] {
				is[at] = true
			}
		}
	}
	return is
}

// verdict turns a judgement into what the map says at that stage.
func (l *lowering) verdict(j judgement, at stage) nft.Verdict {
	switch {
	case at == atCalled && j.ruling == would && j.unsaid:
		return goTo("called_allowed_but_audited")
	case j.ruling == would:
		a := auditChain{policy: j.policy.Name, stage: at, unsaid: j.unsaid && at == atEgress}
		l.audits[a.name()] = a
		return goTo(a.name())
	case j.ruling == deny && j.unsaid && at == atEgress:
		return goTo("egress_unsaid")
	case j.ruling == deny:
		return goTo("refuse")
	case at == atCalled:
		return goTo("called_allowed")
	default:
		return verdictReturn
	}
}

func class(n uint32) nft.Value { return nft.Number(uint64(n)) }

func element(v nft.Verdict, comment string, key ...nft.Value) nft.Element {
	return nft.Element{Key: key, Verdict: v, Comment: comment}
}

// describe says for a reader of the table who may reach whom and why. A nil peer
// is whoever is not listed.
func (l *lowering) describe(c *workloadClass, d direction, p *peer, j judgement) string {
	if !l.comments {
		return ""
	}
	other := "others"
	if p != nil {
		other = p.String()
	}
	from, to := other, c.String()
	if d == egress {
		from, to = to, from
	}
	return fmt.Sprintf("%s → %s: %s", from, to, j)
}

func butForPorts(comment string) string {
	if comment == "" {
		return ""
	}
	return comment + ", but for some ports"
}

// commentOf names a workload for a reader of the table.
func (l *lowering) commentOf(w *Workload) string {
	if !l.comments {
		return ""
	}
	return w.Name + " (" + w.Labels.String() + ")"
}

func (c *workloadClass) String() string {
	s := c.members[0].Labels.String()
	if n := len(c.members); n > 1 {
		s += fmt.Sprintf(" (and %d more)", n-1)
	}
	return s
}

func (p *peer) String() string {
	switch {
	case p.workloads != nil:
		return p.workloads.String()
	case p.addresses != nil && p.addresses.number == elsewhere:
		return "elsewhere"
	case p.addresses != nil:
		return p.addresses.ranges[0].String()
	default:
		return "unlabelled"
	}
}

func (j judgement) String() string {
	verb := map[ruling]string{allow: "allowed", deny: "denied", would: "would be denied"}[j.ruling]
	if j.why.policy == nil {
		return verb
	}
	return fmt.Sprintf("%s by policy %s (%s)", verb, j.why.policy.Name, j.why.position)
}
