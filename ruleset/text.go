package ruleset

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Text returns t, normalised, as a script for nft -f. Loading it replaces the table
// in one transaction. Equal tables with equal comments and paths give equal bytes.
//
// Names of tables, chains, sets and counters are written as they are: they come from
// the compiler and are identifiers, no keywords (such as "fwd"). Comments and log prefixes may hold what
// users wrote; they cannot leave their line or string.
//
// nft knows a cgroup by its path alone, below /sys/fs/cgroup. An element whose path
// is not known, or cannot stand in a string of nft, is written as a comment, and so
// is a rule that holds something Foreign: the script loads without them.
func (t Table) Text() string {
	t = t.normalised()
	w := &textWriter{filter: filterPriority}
	w.line(0, "# Made by thole. Loading this file replaces the table: nft -f FILE")
	w.table("inet", t)
	if t.Bridge != nil {
		w.filter = bridgeFilterPriority
		w.blank()
		w.table("bridge", *t.Bridge)
	}
	return w.b.String()
}

func (w *textWriter) table(family string, t Table) {
	w.line(0, "table %s %s", family, t.Name)
	w.line(0, "delete table %s %s", family, t.Name)
	w.line(0, "table %s %s {", family, t.Name)
	for _, f := range t.Foreign {
		w.comment(1, "foreign: "+f)
	}
	for _, c := range t.Counters {
		w.line(1, "counter %s {", c)
		w.line(1, "}")
	}
	for _, s := range t.Sets {
		w.blank()
		w.set(s)
	}
	for _, c := range t.Chains {
		w.blank()
		w.chain(c)
	}
	w.line(0, "}")
}

// textWriter collects indented lines.
type textWriter struct {
	b      strings.Builder
	filter int32 // what nft calls priority filter in this family
}

// What nft calls priority filter (linux/netfilter_ipv4.h, NF_IP_PRI_FILTER;
// linux/netfilter_bridge.h, NF_BR_PRI_FILTER_BRIDGED).
const (
	filterPriority       = 0
	bridgeFilterPriority = -200
)

func (w *textWriter) line(indent int, format string, args ...any) {
	w.b.WriteString(strings.Repeat("\t", indent))
	fmt.Fprintf(&w.b, format, args...)
	w.b.WriteByte('\n')
}

func (w *textWriter) blank() { w.b.WriteByte('\n') }

// comment writes s, if there is any, as a line of its own.
func (w *textWriter) comment(indent int, s string) {
	if s != "" {
		w.line(indent, "# %s", oneLine(s))
	}
}

func (w *textWriter) set(s Set) {
	w.comment(1, s.Comment)
	if s.Foreign != "" {
		w.comment(1, fmt.Sprintf("foreign: %s: %s", s.Name, s.Foreign))
		return
	}
	w.line(1, "%s %s {", s.kind(), s.Name)
	w.line(2, "type %s", s.typeText())
	if s.Interval {
		w.line(2, "flags interval")
	}
	if s.Timeout != 0 {
		w.line(2, "flags dynamic,timeout")
		w.line(2, "timeout %ds", s.Timeout/time.Second)
		w.line(2, "size %d", s.Size)
	}
	w.elements(s)
	w.line(1, "}")
}

// elements writes one element a line. nft takes no empty braces, so those that can
// not be written come before them.
func (w *textWriter) elements(s Set) {
	written := 0
	for _, e := range s.Elements {
		if s.writable(e) {
			written++
		} else {
			w.comment(2, "not written: "+s.elementText(e)+trailer(e.Comment))
		}
	}
	if written == 0 {
		return
	}
	w.line(2, "elements = {")
	for _, e := range s.Elements {
		if s.writable(e) {
			w.line(3, "%s,%s", s.elementText(e), trailer(e.Comment))
		}
	}
	w.line(2, "}")
}

func (w *textWriter) chain(c Chain) {
	w.comment(1, c.Comment)
	if c.Foreign != "" {
		w.comment(1, fmt.Sprintf("foreign: %s: %s", c.Name, c.Foreign))
		return
	}
	w.line(1, "chain %s {", c.Name)
	if c.Hook != NoHook {
		w.line(2, "%s", c.hookText(w.filter))
	}
	for _, r := range c.Rules {
		w.comment(2, r.Comment)
		if r.writable() {
			w.line(2, "%s", r.text())
		} else {
			w.comment(2, "not written: "+r.text())
		}
	}
	w.line(1, "}")
}

// String returns the hook's name in nft.
func (h Hook) String() string {
	names := [...]string{"none", "prerouting", "input", "forward", "output", "postrouting"}
	if int(h) < len(names) {
		return names[h]
	}
	return fmt.Sprintf("hook %d", h)
}

// hookText writes the priority as nft does: by its distance from filter.
func (c Chain) hookText(filter int32) string {
	priority := "filter"
	switch distance := int64(c.Priority) - int64(filter); {
	case distance > 0:
		priority += fmt.Sprintf(" + %d", distance)
	case distance < 0:
		priority += fmt.Sprintf(" - %d", -distance)
	}
	return fmt.Sprintf("type filter hook %s priority %s; policy accept;", c.Hook, priority)
}

// kind returns what nft calls s.
func (s Set) kind() string {
	if s.Data == None {
		return "set"
	}
	return "map"
}

func (s Set) typeText() string {
	names := make([]string, len(s.Key))
	for i, t := range s.Key {
		names[i] = t.String()
	}
	text := strings.Join(names, " . ")
	if s.Data != None {
		text += " : " + s.Data.String()
	}
	return text
}

// writable says that every cgroup of e's key has a path that nft can read.
func (s Set) writable(e Element) bool {
	for i, v := range e.Key {
		if s.Key[i] == CgroupV2 && !writablePath(v.Path) {
			return false
		}
	}
	return true
}

// writablePath says that p can stand between the quotes of a string of nft 1.0.6:
// all but the quote itself can, of what the kernel takes for a cgroup's name; there
// is no escape. What would upset a terminal is refused too.
func writablePath(p string) bool {
	return p != "" && utf8.ValidString(p) && !strings.ContainsFunc(p, func(r rune) bool {
		return r == '"' || isControl(r)
	})
}

func (s Set) elementText(e Element) string {
	text := s.keyText(e)
	switch s.Data {
	case None:
		return text
	case VerdictType:
		return text + " : " + e.Verdict.text()
	default:
		return text + " : " + numberText(s.Data.shape().format, uint64(e.Number))
	}
}

func (s Set) keyText(e Element) string {
	parts := make([]string, len(e.Key))
	for i, v := range e.Key {
		parts[i] = valueText(s.Key[i], v)
	}
	return strings.Join(parts, " . ")
}

func valueText(t Type, v Value) string {
	sh := t.shape()
	switch sh.format {
	case cgroup:
		if v.Path == "" {
			return fmt.Sprintf("cgroup id %d", v.From.Uint64())
		}
		return `"` + v.Path + `"`
	case address:
		return addressText(t, v)
	case ifname:
		return `"` + v.From.Name() + `"`
	}
	if v.Single() {
		return numberText(sh.format, v.From.Uint64())
	}
	if sh.format == protocol {
		sh.format = decimal
	}
	return numberText(sh.format, v.From.Uint64()) + "-" + numberText(sh.format, v.To.Uint64())
}

// addressText writes an address, a prefix if v is one, or a range.
func addressText(t Type, v Value) string {
	lo, hi := v.From.Addr(t), v.To.Addr(t)
	if lo == hi {
		return lo.String()
	}
	if p := netip.PrefixFrom(lo, commonBits(t, v)); Prefix(p) == (Value{From: v.From, To: v.To}) {
		return p.String()
	}
	return lo.String() + "-" + hi.String()
}

// commonBits counts the leading bits that both ends of v share.
func commonBits(t Type, v Value) int {
	n := 0
	for i := len(v.From) - t.Bytes(); i < len(v.From); i++ {
		same := bits.LeadingZeros8(v.From[i] ^ v.To[i])
		n += same
		if same < 8 {
			break
		}
	}
	return n
}

func (r Rule) text() string {
	parts := make([]string, len(r.Statements))
	for i, s := range r.Statements {
		parts[i] = statementText(s)
	}
	return strings.Join(parts, " ")
}

// writable says that nft can read all of r.
func (r Rule) writable() bool {
	for _, s := range r.Statements {
		switch s := s.(type) {
		case Foreign:
			return false
		case Match: // nft knows no number of a cgroup
			if s.Left.Field == SocketCgroup {
				return false
			}
		}
	}
	return len(r.Statements) > 0
}

func statementText(s Statement) string {
	switch s := s.(type) {
	case Match:
		return s.text()
	case InSet:
		return keyExprText(s.Key) + " @" + s.Set
	case ByMap:
		return keyExprText(s.Key) + " vmap @" + s.Map
	case SetByMap:
		return s.text()
	case SetBits:
		return s.text()
	case Copy:
		return s.text()
	case Rewrite:
		return fmt.Sprintf("%s set %s", s.Target, s.Source)
	case Flip:
		name := s.name()
		return fmt.Sprintf("%s set %s ^ 0x%x", name, name, s.Bit())
	case Update:
		if s.Limit != (Limit{}) {
			return fmt.Sprintf("update @%s { %s %s }", s.Set, keyExprText(s.Key), s.Limit.text())
		}
		return fmt.Sprintf("update @%s { %s }", s.Set, keyExprText(s.Key))
	case Limit:
		return s.text()
	case Queue:
		return fmt.Sprintf("queue num %d", s.Number)
	case Notrack:
		return "notrack"
	case Count:
		return fmt.Sprintf("counter name %q", s.Counter)
	case Log:
		return s.text()
	case Reject:
		return "reject with " + s.With.String()
	case Verdict:
		return s.text()
	case Foreign:
		return "(foreign: " + s.Description + ")"
	default:
		return fmt.Sprintf("(unknown: %T)", s)
	}
}

// String returns the answer as it is written in nft.
func (w RejectWith) String() string {
	if w == TCPReset {
		return "tcp reset"
	}
	return "icmpx admin-prohibited"
}

func (v Verdict) text() string {
	switch v.Kind {
	case Accept:
		return "accept"
	case Drop:
		return "drop"
	case Return:
		return "return"
	case Jump:
		return "jump " + v.Chain
	case Goto:
		return "goto " + v.Chain
	default:
		return "continue"
	}
}

func (l Log) text() string {
	text := "log"
	if l.Prefix != "" {
		text += ` prefix "` + l.Prefix + `"`
	}
	if l.PerSecond == 0 {
		return text
	}
	return fmt.Sprintf("limit rate %d/second %s", l.PerSecond, text)
}

func (l Limit) text() string {
	return fmt.Sprintf("limit rate %d/second burst %d packets", l.PerSecond, l.Burst)
}

// text writes an assignment with no more operations than it takes. s is normalised:
// the bits of Or are not in And.
func (s SetBits) text() string {
	f := s.Target.shape().format
	switch {
	case s.And == 0:
		return fmt.Sprintf("%s set %s", s.Target, numberText(f, uint64(s.Or)))
	case s.Or == 0 && s.And == s.Target.ones():
		return fmt.Sprintf("%s set %s", s.Target, s.Target)
	case s.Or == 0:
		return fmt.Sprintf("%s set %s & 0x%08x", s.Target, s.Target, s.And)
	case s.And|s.Or == s.Target.ones():
		return fmt.Sprintf("%s set %s | 0x%08x", s.Target, s.Target, s.Or)
	default:
		return fmt.Sprintf("%s set %s & 0x%08x | 0x%08x", s.Target, s.Target, s.And, s.Or)
	}
}

// Bit is what s changes of the field's value.
func (s Flip) Bit() uint32 { return 1 << (8*s.Field.Bytes() - 1) }

// name is the field's in TCP.
func (s Flip) name() string {
	if s.Field == THSport {
		return "tcp sport"
	}
	return s.Field.String()
}

// text writes an assignment with no more operations than it takes. s is normalised.
func (s Copy) text() string {
	text := fmt.Sprintf("%s set %s", s.Target, s.Source)
	if s.And != s.Source.ones() {
		text += fmt.Sprintf(" & 0x%08x", s.And)
	}
	if s.Or != 0 {
		text += fmt.Sprintf(" | 0x%08x", s.Or)
	}
	return text
}

// text puts fields with a mask between parentheses: in an assignment, nft reads none
// without behind the first (src/parser_bison.y, concat_stmt_expr).
func (s SetByMap) text() string {
	parts := make([]string, len(s.Key))
	for i, e := range s.Key {
		parts[i] = e.text()
		if e.Mask != 0 {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	return fmt.Sprintf("%s set %s map @%s", s.Target, strings.Join(parts, " . "), s.Map)
}

func keyExprText(key []Expr) string {
	parts := make([]string, len(key))
	for i, e := range key {
		parts[i] = e.text()
	}
	return strings.Join(parts, " . ")
}

func (e Expr) text() string {
	text := e.Field.String()
	switch e.Field {
	case SocketCgroup:
		text += fmt.Sprintf(" level %d", e.Level)
	case TCPOption:
		text += fmt.Sprintf(" %d", e.Level)
	}
	if e.Mask != 0 {
		text += fmt.Sprintf(" & 0x%08x", e.Mask)
	}
	return text
}

// text writes a comparison. Of a field of bits, nft takes a bare value for Any, so
// that equality needs its sign.
func (m Match) text() string {
	left, value := m.Left.text(), m.Left.Field.valueText(m.Value)
	switch m.Left.Field {
	case TCPOption, RtIPsec:
		return left + map[bool]string{true: " exists", false: " missing"}[m.exists()]
	case MetaOifKind:
		return left + ` != "` + noKind + `"`
	}
	if m.Left.Field == FragmentOffset && m.Mask == FragmentMask { // nft adds the mask by itself
		return fmt.Sprintf("%s %s %d", left, map[Op]string{Masked: "==", MaskedNot: "!="}[m.Op], m.Value>>3)
	}
	switch m.Op {
	case Equal:
		if m.Left.Field.isBits() {
			return left + " == " + value
		}
		return left + " " + value
	case NotEqual:
		return left + " != " + value
	case AtLeast:
		return left + " >= " + value
	case Any:
		if names, all := stateNames(m.Value); m.Left.Field == CtState && all {
			return left + " " + names
		}
		return fmt.Sprintf("%s & %s != 0", left, value)
	case Masked:
		return fmt.Sprintf("%s & %s == %s", left, m.Left.Field.valueText(m.Mask), value)
	case MaskedNot:
		return fmt.Sprintf("%s & %s != %s", left, m.Left.Field.valueText(m.Mask), value)
	case InRange:
		return left + " " + m.rangeText()
	default:
		return fmt.Sprintf("(unknown operator %d of %s)", m.Op, left)
	}
}

// noKind is no kind of interface: nft takes no empty string.
const noKind = "none"

// HasKind holds where software made the interface that a packet leaves by.
func HasKind() Match { return Match{Left: Expr{Field: MetaOifKind}, Op: NotEqual, Value: 0} }

// exists says that a match of what is there or not asks for its presence.
func (m Match) exists() bool { return (m.Op == Equal) == (m.Value == 1) }

func (m Match) rangeText() string {
	sh := m.Left.Field.shape()
	switch {
	case sh.format == address && sh.bytes == 16:
		return ends(m.From.Addr(IPv6Addr), m.To.Addr(IPv6Addr))
	case sh.format == address:
		return ends(m.From.Addr(IPv4Addr), m.To.Addr(IPv4Addr))
	default:
		return fmt.Sprintf("%d-%d", m.From.Uint64(), m.To.Uint64())
	}
}

func ends(lo, hi netip.Addr) string {
	if lo == hi {
		return lo.String()
	}
	return lo.String() + "-" + hi.String()
}

// valueText writes a number that f is compared with.
func (f Field) valueText(n uint32) string {
	if f.Bytes() == 16 {
		return WordOf(uint64(n)).Addr(IPv6Addr).String()
	}
	return numberText(f.shape().format, uint64(n))
}

func numberText(f format, n uint64) string {
	switch f {
	case hexadecimal:
		return fmt.Sprintf("0x%08x", n)
	case classid:
		return fmt.Sprintf("%x:%x", n>>16, n&0xffff)
	case address:
		return WordOf(n).Addr(IPv4Addr).String()
	case protocol:
		return nameOr(n, map[uint64]string{
			ProtoICMP: "icmp", ProtoTCP: "tcp", ProtoUDP: "udp",
			ProtoICMPv6: "ipv6-icmp", ProtoSCTP: "sctp",
		})
	case family:
		return nameOr(n, map[uint64]string{NFProtoIPv4: "ipv4", NFProtoIPv6: "ipv6"})
	case etherType:
		return nameOr(n, map[uint64]string{EtherIPv4: "ip", EtherIPv6: "ip6", EtherARP: "arp", EtherVLAN: "vlan",
			EtherQinQ: "8021ad"})
	case direction:
		return nameOr(n, map[uint64]string{DirOriginal: "original", DirReply: "reply"})
	case iface:
		return nameOr(n, map[uint64]string{IfindexLo: `"lo"`})
	case routeType:
		return nameOr(n, map[uint64]string{RTNLocal: "local", RTNBroadcast: "broadcast", RTNMulticast: "multicast"})
	case state:
		return fmt.Sprintf("0x%x", n)
	case tcpFlags:
		return flagNames(n)
	default:
		return fmt.Sprint(n)
	}
}

func nameOr(n uint64, names map[uint64]string) string {
	if name, ok := names[n]; ok {
		return name
	}
	return fmt.Sprint(n)
}

// stateNames writes a list of conntrack states; all says that each bit has a name.
func stateNames(n uint32) (list string, all bool) {
	var names []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{StateInvalid, "invalid"},
		{StateEstablished, "established"},
		{StateRelated, "related"},
		{StateNew, "new"},
		{StateUntracked, "untracked"},
	} {
		if n&s.bit != 0 {
			names = append(names, s.name)
			n &^= s.bit
		}
	}
	return strings.Join(names, ","), n == 0 && names != nil
}

// flagNames writes TCP flags, or-ed.
func flagNames(n uint64) string {
	names := [8]string{"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"}
	var set []string
	for i, name := range names {
		if n&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	switch len(set) {
	case 0:
		return "0x0"
	case 1:
		return set[0]
	default:
		return "(" + strings.Join(set, " | ") + ")"
	}
}

// trailer writes a comment at a line's end.
func trailer(comment string) string {
	if comment == "" {
		return ""
	}
	return " # " + oneLine(comment)
}

// oneLine keeps a comment on its line, and control sequences from terminals: it escapes as Go's %q does.
func oneLine(s string) string {
	quoted := strconv.Quote(s)
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1 : len(quoted)-1])
}

// isControl says that r is neither visible nor a space: control characters, line
// separators, marks of text direction.
func isControl(r rune) bool { return !unicode.IsPrint(r) }
