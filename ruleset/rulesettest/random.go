package rulesettest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"thole/ruleset"
)

// Random returns a table that the kernel takes. Two of them share names, and often
// the keys and ranges of their sets, so that their difference is of every kind.
func Random(r *rand.Rand, cgroups []Cgroup) ruleset.Table {
	g := &generator{Rand: r, cgroups: cgroups}
	t := ruleset.Table{Name: "thole"}
	for i := range 4 {
		if g.chance(0.7) {
			g.counters = append(g.counters, fmt.Sprintf("count%d", i))
		}
	}
	t.Counters = g.counters
	for i := range 3 {
		g.leaves = append(g.leaves, fmt.Sprintf("leaf%d", i))
	}
	for i := range 10 {
		if g.chance(0.7) {
			g.sets = append(g.sets, g.set(i))
		}
	}
	t.Sets = g.sets
	t.Chains = g.chains()
	g.Shuffle(len(t.Sets), func(i, j int) { t.Sets[i], t.Sets[j] = t.Sets[j], t.Sets[i] })
	g.Shuffle(len(t.Chains), func(i, j int) { t.Chains[i], t.Chains[j] = t.Chains[j], t.Chains[i] })
	return t
}

type generator struct {
	*rand.Rand
	cgroups  []Cgroup
	counters []string
	leaves   []string // chains that jump nowhere: the only ones that are jumped to
	sets     []ruleset.Set
}

func (g *generator) chance(p float64) bool { return g.Float64() < p }

func pick[T any](g *generator, of []T) T { return of[g.IntN(len(of))] }

// A field is a type of keys and what of a packet can be looked up for it.
var fieldsOf = map[ruleset.Type][]ruleset.Field{
	ruleset.Mark:        {ruleset.CtMark, ruleset.MetaMark},
	ruleset.ClassID:     {ruleset.MetaPriority},
	ruleset.CgroupV2:    {ruleset.SocketCgroup},
	ruleset.InetProto:   {ruleset.MetaL4Proto},
	ruleset.InetService: {ruleset.THSport, ruleset.THDport},
	ruleset.IPv4Addr:    {ruleset.IPSaddr, ruleset.IPDaddr},
	ruleset.IPv6Addr:    {ruleset.IP6Saddr, ruleset.IP6Daddr},
	ruleset.ICMPType:    {ruleset.ICMPTypeOf},
	ruleset.ICMPv6Type:  {ruleset.ICMPv6TypeOf},
}

// headers are the types that are of packets of one kind: a key has one of them.
var headers = []ruleset.Type{ruleset.IPv4Addr, ruleset.IPv6Addr, ruleset.ICMPType, ruleset.ICMPv6Type}

var plain = []ruleset.Type{ruleset.Mark, ruleset.ClassID, ruleset.InetProto, ruleset.InetService}

// set makes the i-th set: mostly of the same shape in all tables.
func (g *generator) set(i int) ruleset.Set {
	shape := g.Rand
	if g.chance(0.85) {
		shape = rand.New(rand.NewPCG(1, uint64(i)))
	}
	s := (&generator{Rand: shape}).setShape()
	s.Name = fmt.Sprintf("set%d", i)
	s.Comment = g.comment()
	s.Elements = g.elements(s, 12)
	return s
}

// RandomElements returns up to n elements of s, of which no two have a key in common.
// Verdicts jump nowhere.
func RandomElements(r *rand.Rand, s ruleset.Set, n int) []ruleset.Element {
	return (&generator{Rand: r}).elements(s, n)
}

func (g *generator) elements(s ruleset.Set, n int) []ruleset.Element {
	var out []ruleset.Element
	for range g.IntN(n + 1) {
		e := ruleset.Element{Comment: g.comment()}
		for _, t := range s.Key {
			e.Key = append(e.Key, g.value(t, s.Interval))
		}
		if slices.ContainsFunc(out, func(o ruleset.Element) bool { return overlap(e, o) }) {
			continue
		}
		switch s.Data {
		case ruleset.Mark, ruleset.ClassID:
			e.Number = g.number(32)
		case ruleset.VerdictType:
			e.Verdict = g.verdict()
		}
		out = append(out, e)
	}
	return out
}

func (g *generator) setShape() ruleset.Set {
	s := ruleset.Set{
		Interval: g.chance(0.5),
		Data:     pick(g, []ruleset.Type{ruleset.None, ruleset.Mark, ruleset.ClassID, ruleset.VerdictType}),
	}
	if g.chance(0.5) {
		s.Key = append(s.Key, pick(g, headers))
	}
	for len(s.Key) == 0 || len(s.Key) < 4 && g.chance(0.5) {
		s.Key = append(s.Key, pick(g, plain))
	}
	if !s.Interval && g.chance(0.3) {
		s.Key[0] = ruleset.CgroupV2
	}
	g.Shuffle(len(s.Key), func(i, j int) { s.Key[i], s.Key[j] = s.Key[j], s.Key[i] })
	return s
}

// overlap says that some key is in both.
func overlap(a, b ruleset.Element) bool {
	for i := range a.Key {
		if a.Key[i].To.Compare(b.Key[i].From) < 0 || b.Key[i].To.Compare(a.Key[i].From) < 0 {
			return false
		}
	}
	return true
}

// value draws from few numbers, the ends of the type among them.
func (g *generator) value(t ruleset.Type, ranges bool) ruleset.Value {
	if t == ruleset.CgroupV2 {
		return pick(g, g.cgroups).value()
	}
	lo, hi := g.word(t), g.word(t)
	if !ranges || g.chance(0.4) {
		hi = lo
	}
	if lo.Compare(hi) > 0 {
		lo, hi = hi, lo
	}
	return ruleset.Value{From: lo, To: hi}
}

func (g *generator) word(t ruleset.Type) ruleset.Word {
	var w ruleset.Word
	switch n := t.Bytes(); {
	case g.chance(0.2): // the highest ones
		for i := range n {
			w[len(w)-n+i] = 0xff
		}
		w[len(w)-1] -= byte(g.IntN(4))
	case n > 1 && g.chance(0.3): // where bytes meet
		w = ruleset.WordOf(uint64(0xfe + g.IntN(4)))
	default:
		w = ruleset.WordOf(uint64(g.IntN(20)))
	}
	return w
}

// number draws a number with few or many bits set.
func (g *generator) number(width int) uint32 {
	ones := uint32(1<<width - 1)
	switch g.IntN(4) {
	case 0:
		return uint32(g.IntN(3))
	case 1:
		return 1 << g.IntN(width)
	case 2:
		return ones >> g.IntN(width)
	default:
		return g.Uint32() & ones
	}
}

func (g *generator) comment() string {
	return pick(g, []string{"", "", "", "policies/a.yaml:3", "}\n\taccept\n", "\\", "\"", "# x\r", "\xff\x00"})
}

func (g *generator) verdict() ruleset.Verdict {
	kinds := []ruleset.VerdictKind{ruleset.Accept, ruleset.Drop, ruleset.Return, ruleset.Jump, ruleset.Goto}
	if len(g.leaves) == 0 {
		kinds = kinds[:3]
	}
	kind := pick(g, kinds)
	v := ruleset.Verdict{Kind: kind}
	if kind == ruleset.Jump || kind == ruleset.Goto {
		v.Chain = pick(g, g.leaves)
	}
	return v
}

func (g *generator) chains() []ruleset.Chain {
	var out []ruleset.Chain
	for _, name := range g.leaves {
		out = append(out, ruleset.Chain{Name: name, Rules: g.rules(g.leafStatement)})
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if g.chance(0.3) {
			continue
		}
		c := ruleset.Chain{Name: name, Comment: g.comment(), Rules: g.rules(g.statement)}
		if g.chance(0.7) {
			c.Hook = pick(g, []ruleset.Hook{ruleset.Input, ruleset.Output})
			c.Priority = int32(g.IntN(3) - 1)
		}
		out = append(out, c)
	}
	return out
}

func (g *generator) rules(statement func() ruleset.Statement) []ruleset.Rule {
	var out []ruleset.Rule
	for range g.IntN(6) {
		r := ruleset.Rule{Comment: g.comment()}
		for range 1 + g.IntN(3) {
			r.Statements = append(r.Statements, statement())
		}
		if consistent(r) {
			out = append(out, r)
		}
	}
	return out
}

// consistent says that r does not read headers of two families or protocols, which
// nft refuses, that nothing follows what ends it, and that nft 1.0.6 reads and lists it
// as it is: two equal ports of a rule are one payload expression to it, and ports of
// a protocol that it does not know are an assertion that fails in it.
func consistent(r ruleset.Rule) bool {
	t := ruleset.Table{Chains: []ruleset.Chain{{Rules: []ruleset.Rule{r}}}}
	t.Normalise()
	seen := map[ruleset.Field]uint32{}
	statements := t.Chains[0].Rules[0].Statements
	for i, s := range statements {
		proto, known := seen[ruleset.MetaL4Proto]
		if known && proto != ruleset.ProtoTCP && proto != ruleset.ProtoUDP && slices.ContainsFunc(readBy(s), port) {
			return false
		}
		if slices.ContainsFunc(statements[:i], equalPort) && equalPort(s) {
			return false
		}
		switch s := s.(type) {
		case ruleset.Match:
			f := s.Left.Field
			if f != ruleset.MetaL4Proto && f != ruleset.MetaNFProto {
				continue
			}
			if n, ok := seen[f]; s.Op != ruleset.Equal || ok && n != s.Value {
				return false
			}
			seen[f] = s.Value
		case ruleset.Verdict, ruleset.ByMap, ruleset.Reject:
			if i < len(statements)-1 {
				return false
			}
		}
	}
	icmpv6 := seen[ruleset.MetaL4Proto] == ruleset.ProtoICMPv6 && seen[ruleset.MetaNFProto] == ruleset.NFProtoIPv4
	icmp := seen[ruleset.MetaL4Proto] == ruleset.ProtoICMP && seen[ruleset.MetaNFProto] == ruleset.NFProtoIPv6
	return !icmp && !icmpv6
}

// readBy is what s reads of a packet.
func readBy(s ruleset.Statement) []ruleset.Expr {
	switch s := s.(type) {
	case ruleset.Match:
		return []ruleset.Expr{s.Left}
	case ruleset.InSet:
		return s.Key
	case ruleset.ByMap:
		return s.Key
	case ruleset.SetByMap:
		return s.Key
	}
	return nil
}

func port(e ruleset.Expr) bool { return e.Field == ruleset.THSport || e.Field == ruleset.THDport }

func equalPort(s ruleset.Statement) bool {
	m, ok := s.(ruleset.Match)
	return ok && m.Op == ruleset.Equal && port(m.Left)
}

func (g *generator) leafStatement() ruleset.Statement {
	switch g.IntN(6) {
	case 0:
		return ruleset.SetBits{Target: ruleset.CtMark, And: g.number(32), Or: g.number(32)}
	case 1:
		return ruleset.SetBits{Target: pick(g, []ruleset.Field{ruleset.MetaMark, ruleset.MetaPriority}),
			Or: g.number(32)}
	case 2:
		return ruleset.Log{Prefix: pick(g, []string{"", "thole: ", g.comment()}), PerSecond: uint32(g.IntN(3) * 50)}
	case 3:
		if len(g.counters) > 0 {
			return ruleset.Count{Counter: pick(g, g.counters)}
		}
		return ruleset.Reject{With: ruleset.AdminProhibited}
	case 4:
		return ruleset.Reject{With: pick(g, []ruleset.RejectWith{ruleset.TCPReset, ruleset.AdminProhibited})}
	default:
		return g.match()
	}
}

func (g *generator) statement() ruleset.Statement {
	switch g.IntN(4) {
	case 0:
		return g.leafStatement()
	case 1:
		return g.verdict()
	default:
		if len(g.sets) > 0 {
			return g.lookup()
		}
		return g.match()
	}
}

// lookup uses one of the sets.
func (g *generator) lookup() ruleset.Statement {
	s := pick(g, g.sets)
	var key []ruleset.Expr
	for _, t := range s.Key {
		e := f(pick(g, fieldsOf[t]))
		switch {
		case t == ruleset.Mark && g.chance(0.5):
			e.Mask = max(1, g.number(32))
		case t == ruleset.CgroupV2:
			e.Level = uint8(1 + g.IntN(3))
		}
		key = append(key, e)
	}
	switch s.Data {
	case ruleset.None:
		return ruleset.InSet{Key: key, Set: s.Name}
	case ruleset.VerdictType:
		return ruleset.ByMap{Key: key, Map: s.Name}
	case ruleset.ClassID:
		return ruleset.SetByMap{Target: ruleset.MetaPriority, Key: key, Map: s.Name}
	default:
		return ruleset.SetByMap{Target: pick(g, []ruleset.Field{ruleset.CtMark, ruleset.MetaMark}), Key: key,
			Map: s.Name}
	}
}

var matchable = []ruleset.Field{
	ruleset.CtDirection, ruleset.CtState, ruleset.CtStatus, ruleset.CtMark, ruleset.MetaMark, ruleset.MetaPriority,
	ruleset.MetaL4Proto, ruleset.MetaNFProto, ruleset.MetaIif, ruleset.MetaOif, ruleset.SocketMark, ruleset.SkUID,
	ruleset.THSport, ruleset.THDport, ruleset.TCPFlags, ruleset.TCPToken, ruleset.IPSaddr, ruleset.IPDaddr,
	ruleset.IP6Saddr, ruleset.IP6Daddr,
	ruleset.ICMPTypeOf, ruleset.ICMPv6TypeOf, ruleset.FibDaddrType, ruleset.FibSaddrType,
}

// match compares a field in a way that it has.
func (g *generator) match() ruleset.Match {
	m := is(pick(g, matchable), 0)
	field := m.Left.Field
	m.Value = g.number(8 * min(field.Bytes(), 4))
	m.Op = pick(g, []ruleset.Op{ruleset.Equal, ruleset.NotEqual})
	switch field {
	case ruleset.CtDirection:
		m.Value &= 1
	case ruleset.MetaIif, ruleset.MetaOif:
		m.Value %= 1 << 31
	case ruleset.MetaNFProto:
		m.Op, m.Value = ruleset.Equal, pick(g, []uint32{ruleset.NFProtoIPv4, ruleset.NFProtoIPv6})
	case ruleset.MetaL4Proto:
		m.Op = ruleset.Equal
	case ruleset.CtMark, ruleset.MetaMark, ruleset.CtState, ruleset.CtStatus, ruleset.TCPFlags:
		g.maskedMatch(&m)
	case ruleset.SocketMark, ruleset.SkUID, ruleset.THSport, ruleset.THDport:
		if g.chance(0.5) {
			m.Op = ruleset.AtLeast
		}
	case ruleset.IPSaddr, ruleset.IPDaddr:
		m.Op = ruleset.InRange
		v := g.value(ruleset.IPv4Addr, true)
		m.From, m.To = v.From, v.To
	case ruleset.IP6Saddr, ruleset.IP6Daddr:
		m.Op = ruleset.InRange
		v := g.value(ruleset.IPv6Addr, true)
		m.From, m.To = v.From, v.To
	case ruleset.ICMPTypeOf, ruleset.ICMPv6TypeOf:
		m.Op = ruleset.InRange
		v := g.value(ruleset.ICMPType, true)
		m.From, m.To = v.From, v.To
	case ruleset.FibDaddrType, ruleset.FibSaddrType:
		m.Value %= 12
	}
	return m
}

// maskedMatch compares bits of a field: those of the value are among them.
func (g *generator) maskedMatch(m *ruleset.Match) {
	switch g.IntN(4) {
	case 0:
		m.Op, m.Value = ruleset.Any, max(1, m.Value)
	case 1, 2:
		m.Op = pick(g, []ruleset.Op{ruleset.Masked, ruleset.MaskedNot})
		m.Mask = max(1, g.number(8*m.Left.Field.Bytes()))
		m.Value &= m.Mask
	}
}
