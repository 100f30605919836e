package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"thole/ruleset"
)

// decodeRule reads the expressions of a rule. A rule of which anything is not of the
// IR's language becomes a single Foreign statement.
func decodeRule(list []byte, sets map[string]*ruleset.Set) ruleset.Rule {
	d := decoder{sets: sets}
	for _, e := range eachAttr(list) {
		a := parseAttrs(e)
		name := a.str(unix.NFTA_EXPR_NAME)
		if err := d.expression(name, a.nest(unix.NFTA_EXPR_DATA)); err != nil {
			return foreignRule(fmt.Sprintf("%s: %v", name, err))
		}
	}
	if err := d.finish(); err != nil {
		return foreignRule(err.Error())
	}
	return ruleset.Rule{Statements: d.out}
}

func foreignRule(why string) ruleset.Rule {
	return ruleset.Rule{Statements: []ruleset.Statement{ruleset.Foreign{Description: why}}}
}

// A decoder follows what the registers hold through the expressions of a rule, and
// emits a statement where a value is used.
type decoder struct {
	sets map[string]*ruleset.Set
	out  []ruleset.Statement

	regs [registers]*operand // at the first 4 bytes of each value
	all  []*operand

	limit uint32   // of a limit that waits for its log
	least *operand // whose lower bound was compared last: an upper one may follow
}

// registers is how many 4 byte registers there are (NFT_REG32_00 to _15). The four of
// 16 bytes lie over them.
const registers = 16

// An operand is what a register holds: a field that was read and perhaps masked or
// turned to big-endian; a constant; or what a map held.
type operand struct {
	used bool

	field   ruleset.Expr
	and     uint32 // with masked
	xor     uint32 // with masked
	masked  bool
	swapped bool

	constant []byte
	found    *ruleset.SetByMap
}

var errUnknown = errors.New("not of this language")

// expression takes one step.
func (d *decoder) expression(name string, a attrMap) error {
	least := d.least
	d.least = nil
	if d.limit != 0 && name != "log" {
		return errors.New("limits something else than a log")
	}
	switch name {
	case "meta":
		return d.meta(a)
	case "ct":
		return d.ct(a)
	case "rt":
		return d.rt(a)
	case "socket":
		return d.socket(a)
	case "fib":
		return d.fib(a)
	case "payload":
		return d.payload(a)
	case "immediate":
		return d.immediate(a)
	case "bitwise":
		return d.bitwise(a)
	case "byteorder":
		return d.byteorder(a)
	case "cmp":
		return d.cmp(a, least)
	case "range":
		return d.inRange(a)
	case "lookup":
		return d.lookup(a)
	case "exthdr":
		return d.exthdr(a)
	case "dynset":
		return d.dynset(a)
	case "queue":
		return d.queue(a)
	case "target":
		return d.target(a)
	case "notrack":
		d.emit(ruleset.Notrack{})
		return nil
	case "objref":
		return d.objref(a)
	case "limit":
		return d.setLimit(a)
	case "log":
		return d.log(a)
	case "reject":
		return d.reject(a)
	default:
		return errUnknown
	}
}

// finish checks that each value was used: reading a field ends the rule if it is not
// there, which no statement says.
func (d *decoder) finish() error {
	for _, o := range d.all {
		if !o.used {
			return errors.New("a value is not used")
		}
	}
	if d.limit != 0 {
		return errors.New("limits something else than a log")
	}
	for _, s := range d.out {
		if m, ok := s.(ruleset.Match); ok && m.Op == ruleset.AtLeast && m.From != ruleset.WordOf(uint64(m.Value)) {
			return errors.New("a bound that is too long")
		}
	}
	return nil
}

func (d *decoder) emit(s ruleset.Statement) { d.out = append(d.out, s) }

// slot returns which 4 bytes of the registers reg begins with.
func slot(reg uint32) (int, error) {
	switch {
	case reg >= unix.NFT_REG_1 && reg <= unix.NFT_REG_4:
		return int(reg-unix.NFT_REG_1) * 4, nil
	case reg >= unix.NFT_REG32_00 && reg < unix.NFT_REG32_00+registers:
		return int(reg - unix.NFT_REG32_00), nil
	default:
		return 0, fmt.Errorf("register %d", reg)
	}
}

// put stores o in a register.
func (d *decoder) put(reg uint32, o *operand) error {
	n, err := slot(reg)
	if err != nil {
		return err
	}
	d.regs[n] = o
	d.all = append(d.all, o)
	return nil
}

// take returns what a register holds, to be used.
func (d *decoder) take(reg uint32) (*operand, error) {
	n, err := slot(reg)
	if err != nil {
		return nil, err
	}
	if d.regs[n] == nil {
		return nil, errors.New("an empty register")
	}
	d.regs[n].used = true
	return d.regs[n], nil
}

// takeField is take for a register that holds a field.
func (d *decoder) takeField(reg uint32) (*operand, error) {
	o, err := d.take(reg)
	if err == nil && o.field.Field == 0 {
		err = errors.New("not a field")
	}
	return o, err
}

func (d *decoder) load(reg uint32, f ruleset.Expr) error { return d.put(reg, &operand{field: f}) }

func (d *decoder) meta(a attrMap) error {
	fields := map[expr.MetaKey]ruleset.Field{
		expr.MetaKeyMARK:     ruleset.MetaMark,
		expr.MetaKeyPRIORITY: ruleset.MetaPriority,
		expr.MetaKeyL4PROTO:  ruleset.MetaL4Proto,
		expr.MetaKeyNFPROTO:  ruleset.MetaNFProto,
		expr.MetaKeyPROTOCOL: ruleset.MetaProtocol,
		expr.MetaKeyIIF:      ruleset.MetaIif,
		expr.MetaKeyOIF:      ruleset.MetaOif,
		expr.MetaKeySKUID:    ruleset.SkUID,
		expr.MetaKeyIIFNAME:  ruleset.MetaIifName,
		expr.MetaKeyOIFNAME:  ruleset.MetaOifName,
		metaKeyOIFKIND:       ruleset.MetaOifKind,
	}
	field, ok := fields[expr.MetaKey(a.u32(unix.NFTA_META_KEY))]
	if !ok {
		return errUnknown
	}
	if a.has(unix.NFTA_META_SREG) {
		return d.store(field, a.u32(unix.NFTA_META_SREG))
	}
	return d.load(a.u32(unix.NFTA_META_DREG), ruleset.Expr{Field: field})
}

func (d *decoder) ct(a attrMap) error {
	fields := map[expr.CtKey]ruleset.Field{
		expr.CtKeyDIRECTION: ruleset.CtDirection,
		expr.CtKeySTATE:     ruleset.CtState,
		expr.CtKeyMARK:      ruleset.CtMark,
		expr.CtKeySTATUS:    ruleset.CtStatus,
	}
	if a.has(unix.NFTA_CT_DIRECTION) {
		return d.tuple(a)
	}
	field, ok := fields[expr.CtKey(a.u32(unix.NFTA_CT_KEY))]
	if !ok {
		return errUnknown
	}
	if a.has(unix.NFTA_CT_SREG) {
		return d.store(field, a.u32(unix.NFTA_CT_SREG))
	}
	return d.load(a.u32(unix.NFTA_CT_DREG), ruleset.Expr{Field: field})
}

// tuple reads one of the two tuples of a connection.
func (d *decoder) tuple(a attrMap) error {
	direction := a[unix.NFTA_CT_DIRECTION]
	at := slices.IndexFunc(tupleFields, func(t tupleField) bool {
		return t.key == a.u32(unix.NFTA_CT_KEY) && len(direction) == 1 && t.reply == (direction[0] == ruleset.DirReply)
	})
	if at < 0 || !d.mayRead(tupleFields[at].field) {
		return errUnknown
	}
	return d.load(a.u32(unix.NFTA_CT_DREG), ruleset.Expr{Field: tupleFields[at].field})
}

func (d *decoder) rt(a attrMap) error {
	if a.u32(unix.NFTA_RT_KEY) != uint32(rtKeyXFRM) {
		return errUnknown
	}
	return d.load(a.u32(unix.NFTA_RT_DREG), ruleset.Expr{Field: ruleset.RtIPsec})
}

func (d *decoder) socket(a attrMap) error {
	reg := a.u32(expr.NFTA_SOCKET_DREG)
	switch a.u32(expr.NFTA_SOCKET_KEY) {
	case expr.NFT_SOCKET_MARK:
		return d.load(reg, ruleset.Expr{Field: ruleset.SocketMark})
	case expr.NFT_SOCKET_TRANSPARENT:
		return d.load(reg, ruleset.Expr{Field: ruleset.SocketTransparent})
	case expr.NFT_SOCKET_CGROUPV2:
		level := a.u32(expr.NFTA_SOCKET_LEVEL)
		if level > 255 {
			return fmt.Errorf("level %d", level)
		}
		return d.load(reg, ruleset.Expr{Field: ruleset.SocketCgroup, Level: uint8(level)})
	default:
		return errUnknown
	}
}

func (d *decoder) fib(a attrMap) error {
	if a.u32(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE {
		return errUnknown
	}
	field := ruleset.FibDaddrType
	switch a.u32(unix.NFTA_FIB_FLAGS) {
	case unix.NFTA_FIB_F_DADDR:
	case unix.NFTA_FIB_F_SADDR:
		field = ruleset.FibSaddrType
	default:
		return errUnknown
	}
	return d.load(a.u32(unix.NFTA_FIB_DREG), ruleset.Expr{Field: field})
}

// payload reads a header. Which one it is depends on what was matched before.
func (d *decoder) payload(a attrMap) error {
	if a.has(unix.NFTA_PAYLOAD_SREG) {
		return d.change(a)
	}
	for _, h := range headerFields {
		if a.u32(unix.NFTA_PAYLOAD_BASE) == uint32(h.base) && a.u32(unix.NFTA_PAYLOAD_OFFSET) == h.offset &&
			a.u32(unix.NFTA_PAYLOAD_LEN) == uint32(h.field.Bytes()) && d.mayRead(h.field) {
			return d.load(a.u32(unix.NFTA_PAYLOAD_DREG), ruleset.Expr{Field: h.field})
		}
	}
	return errUnknown
}

// change reads a change of the packet itself.
func (d *decoder) change(a attrMap) error {
	o, err := d.takeField(a.u32(unix.NFTA_PAYLOAD_SREG))
	if err != nil {
		return err
	}
	if slices.ContainsFunc(tupleFields, func(t tupleField) bool { return t.field == o.field.Field }) {
		return d.rewrite(a, o)
	}
	return d.flip(a, o)
}

// rewrite reads what encodeRewrite writes.
func (d *decoder) rewrite(a attrMap, o *operand) error {
	for _, target := range []ruleset.Field{ruleset.IPDaddr, ruleset.IP6Daddr} {
		same := d.mayRead(target) && o.field.Field.Bytes() == target.Bytes() && !o.masked && !o.swapped
		for typ, n := range rewrites(target) {
			same = same && a.u32(typ) == n
		}
		if same {
			d.emit(ruleset.Rewrite{Target: target, Source: o.field.Field})
			return nil
		}
	}
	return errUnknown
}

// flip reads what encodeFlip writes.
func (d *decoder) flip(a attrMap, o *operand) error {
	flip := ruleset.Flip{Field: o.field.Field}
	if flip.Field != ruleset.THSport && flip.Field != ruleset.TCPSequence || !o.masked || o.swapped {
		return errUnknown
	}
	at := slices.IndexFunc(headerFields, func(h headerField) bool { return h.field == flip.Field })
	ours := o.and == flip.Bit()<<1-1 && o.xor == flip.Bit() &&
		a.u32(unix.NFTA_PAYLOAD_BASE) == uint32(headerFields[at].base) &&
		a.u32(unix.NFTA_PAYLOAD_OFFSET) == headerFields[at].offset &&
		a.u32(unix.NFTA_PAYLOAD_LEN) == uint32(flip.Field.Bytes()) &&
		a.u32(unix.NFTA_PAYLOAD_CSUM_TYPE) == unix.NFT_PAYLOAD_CSUM_INET &&
		a.u32(unix.NFTA_PAYLOAD_CSUM_OFFSET) == tcpChecksum && a.u32(unix.NFTA_PAYLOAD_CSUM_FLAGS) == 0 &&
		d.mayRead(ruleset.TCPFlags)
	if !ours {
		return errUnknown
	}
	d.emit(flip)
	return nil
}

// mayRead says that the rule matches what f needs.
func (d *decoder) mayRead(f ruleset.Field) bool {
	need := f.Needs()
	stated := func(m ruleset.Match) bool { return slices.Contains(d.out, ruleset.Statement(m)) }
	return need == nil || slices.ContainsFunc(need, stated)
}

func (d *decoder) immediate(a attrMap) error {
	reg := a.u32(unix.NFTA_IMMEDIATE_DREG)
	data := a.nest(unix.NFTA_IMMEDIATE_DATA)
	if reg == unix.NFT_REG_VERDICT {
		v, err := decodeVerdict(data.nest(unix.NFTA_DATA_VERDICT))
		d.emit(v)
		return err
	}
	return d.put(reg, &operand{constant: data[unix.NFTA_DATA_VALUE]})
}

func decodeVerdict(a attrMap) (ruleset.Verdict, error) {
	kinds := map[expr.VerdictKind]ruleset.VerdictKind{
		expr.VerdictAccept: ruleset.Accept,
		expr.VerdictDrop:   ruleset.Drop,
		expr.VerdictReturn: ruleset.Return,
		expr.VerdictJump:   ruleset.Jump,
		expr.VerdictGoto:   ruleset.Goto,
	}
	code := int32(a.u32(unix.NFTA_VERDICT_CODE))
	kind, ok := kinds[expr.VerdictKind(code)]
	if !ok || !a.has(unix.NFTA_VERDICT_CODE) {
		return ruleset.Verdict{}, fmt.Errorf("verdict %d", code)
	}
	return ruleset.Verdict{Kind: kind, Chain: a.str(unix.NFTA_VERDICT_CHAIN)}, nil
}

// number reads a register's worth of a field of up to 4 bytes.
func (o *operand) number(b []byte) (uint32, error) {
	if len(b) != o.field.Field.Bytes() || len(b) > 4 {
		return 0, fmt.Errorf("a value of %d bytes for %s", len(b), o.field.Field)
	}
	return uint32(o.word(b).Uint64()), nil
}

// word reads a register's worth of a field.
func (o *operand) word(b []byte) ruleset.Word {
	return wordOf(b, o.field.Field.HostEndian() && !o.swapped)
}

func (d *decoder) bitwise(a attrMap) error {
	from, err := d.takeField(a.u32(unix.NFTA_BITWISE_SREG))
	if err != nil {
		return err
	}
	if from.masked || from.swapped {
		return errors.New("bits of what was changed already")
	}
	o := &operand{field: from.field, masked: true}
	if o.and, err = o.number(a.nest(unix.NFTA_BITWISE_MASK)[unix.NFTA_DATA_VALUE]); err != nil {
		return err
	}
	if o.xor, err = o.number(a.nest(unix.NFTA_BITWISE_XOR)[unix.NFTA_DATA_VALUE]); err != nil {
		return err
	}
	return d.put(a.u32(unix.NFTA_BITWISE_DREG), o)
}

// byteorder turns a field to big-endian, from which nft does not except what has only
// one byte ("hton(reg, 2, 1)", which does nothing).
func (d *decoder) byteorder(a attrMap) error {
	from, err := d.takeField(a.u32(unix.NFTA_BYTEORDER_SREG))
	if err != nil {
		return err
	}
	n := from.field.Field.Bytes()
	if a.u32(unix.NFTA_BYTEORDER_OP) != unix.NFT_BYTEORDER_HTON || int(a.u32(unix.NFTA_BYTEORDER_LEN)) != n ||
		from.swapped {
		return errUnknown
	}
	if n > 1 && !from.field.Field.HostEndian() {
		return errors.New("the byte order of what has the network's")
	}
	o := *from
	o.used, o.swapped = false, n > 1
	return d.put(a.u32(unix.NFTA_BYTEORDER_DREG), &o)
}

func (d *decoder) cmp(a attrMap, least *operand) error {
	o, err := d.takeField(a.u32(unix.NFTA_CMP_SREG))
	if err != nil {
		return err
	}
	data := a.nest(unix.NFTA_CMP_DATA)[unix.NFTA_DATA_VALUE]
	if len(data) != o.field.Field.Bytes() {
		return fmt.Errorf("a value of %d bytes for %s", len(data), o.field.Field)
	}
	op := expr.CmpOp(a.u32(unix.NFTA_CMP_OP))
	switch op {
	case expr.CmpOpEq, expr.CmpOpNeq:
		return d.equal(o, op == expr.CmpOpEq, o.word(data))
	case expr.CmpOpGte, expr.CmpOpLte:
		if o.masked || o.field.Field.HostEndian() && !o.swapped {
			return errors.New("the order of what has none")
		}
	}
	switch {
	case op == expr.CmpOpGte:
		w := o.word(data)
		d.emit(ruleset.Match{Left: o.field, Op: ruleset.AtLeast, Value: uint32(w.Uint64()), From: w})
		d.least = o
		return nil
	case op == expr.CmpOpLte && least == o:
		last := &d.out[len(d.out)-1]
		m := (*last).(ruleset.Match)
		*last = rangeMatch(o, m.From, o.word(data))
		return nil
	default:
		return errUnknown
	}
}

func rangeMatch(o *operand, from, to ruleset.Word) ruleset.Match {
	return ruleset.Match{Left: o.field, Op: ruleset.InRange, From: from, To: to}
}

// equal emits a comparison for equality.
func (d *decoder) equal(o *operand, equal bool, w ruleset.Word) error {
	m := ruleset.Match{Left: o.field, Value: uint32(w.Uint64())}
	switch {
	case o.field.Field == ruleset.MetaOifKind:
		if equal || w != wordOf(noKind, false) {
			return errUnknown
		}
		m = ruleset.HasKind()
	case o.masked && (o.swapped || o.xor != 0):
		return errUnknown
	case o.masked && equal:
		m.Op, m.Mask = ruleset.Masked, o.and
	case o.masked:
		m.Op, m.Mask = ruleset.MaskedNot, o.and
	case equal && o.field.Field.Bytes() > 4:
		m = rangeMatch(o, w, w)
	case equal:
		m.Op = ruleset.Equal
	case w == ruleset.WordOf(uint64(m.Value)):
		m.Op = ruleset.NotEqual
	default:
		return errUnknown
	}
	d.emit(m)
	return nil
}

// inRange is what nft makes of a range since 1.1.1; before, two comparisons.
func (d *decoder) inRange(a attrMap) error {
	o, err := d.takeField(a.u32(unix.NFTA_RANGE_SREG))
	if err != nil {
		return err
	}
	from := a.nest(unix.NFTA_RANGE_FROM_DATA)[unix.NFTA_DATA_VALUE]
	to := a.nest(unix.NFTA_RANGE_TO_DATA)[unix.NFTA_DATA_VALUE]
	n := o.field.Field.Bytes()
	if a.u32(unix.NFTA_RANGE_OP) != unix.NFT_RANGE_EQ || len(from) != n || len(to) != n || o.masked ||
		o.field.Field.HostEndian() && !o.swapped {
		return errUnknown
	}
	d.emit(rangeMatch(o, o.word(from), o.word(to)))
	return nil
}

func (d *decoder) lookup(a attrMap) error {
	set := d.sets[a.str(unix.NFTA_LOOKUP_SET)]
	if set == nil || set.Foreign != "" || a.u32(unix.NFTA_LOOKUP_FLAGS) != 0 {
		return errUnknown
	}
	key, err := d.key(set, a.u32(unix.NFTA_LOOKUP_SREG))
	if err != nil {
		return err
	}
	dreg := a.u32(unix.NFTA_LOOKUP_DREG)
	switch {
	case !a.has(unix.NFTA_LOOKUP_DREG):
		d.emit(ruleset.InSet{Key: key, Set: set.Name})
		return nil
	case dreg == unix.NFT_REG_VERDICT:
		d.emit(ruleset.ByMap{Key: key, Map: set.Name})
		return nil
	default:
		return d.put(dreg, &operand{found: &ruleset.SetByMap{Key: key, Map: set.Name}})
	}
}

// key reads the fields of a key from consecutive registers.
func (d *decoder) key(set *ruleset.Set, reg uint32) ([]ruleset.Expr, error) {
	first, err := slot(reg)
	if err != nil {
		return nil, err
	}
	var key []ruleset.Expr
	for _, t := range set.Key {
		o, err := d.takeField(regAt(first))
		if err != nil {
			return nil, err
		}
		f := o.field
		turned := f.Field.HostEndian() && set.Interval
		if f.Field.Bytes() != t.Bytes() || o.swapped != turned || o.masked && (o.xor != 0 || o.and == 0) {
			return nil, fmt.Errorf("%s is no %s", f.Field, t)
		}
		if o.masked {
			f.Mask = o.and
		}
		key = append(key, f)
		first += slots(t.Bytes())
	}
	return key, nil
}

// store emits an assignment to a field.
func (d *decoder) store(target ruleset.Field, reg uint32) error {
	o, err := d.take(reg)
	if err != nil {
		return err
	}
	switch {
	case o.found != nil:
		s := *o.found
		s.Target = target
		d.emit(s)
	case o.constant != nil && len(o.constant) == target.Bytes():
		d.emit(ruleset.SetBits{Target: target, Or: uint32(wordOf(o.constant, target.HostEndian()).Uint64())})
	case o.swapped || o.and&o.xor != 0:
		return errUnknown
	case o.field.Field != target && (o.field.Field.Bytes() != target.Bytes() || o.field.Field == 0):
		return errUnknown
	case o.field.Field != target && o.masked:
		d.emit(ruleset.Copy{Target: target, Source: o.field.Field, And: o.and, Or: o.xor})
	case o.field.Field != target:
		d.emit(ruleset.Copy{Target: target, Source: o.field.Field, And: 1<<32 - 1})
	case o.masked:
		d.emit(ruleset.SetBits{Target: target, And: o.and, Or: o.xor})
	default:
		d.emit(ruleset.SetBits{Target: target, And: 1<<32 - 1})
	}
	return nil
}

// exthdr reads whether a TCP packet has an option, or where a fragment belongs.
func (d *decoder) exthdr(a attrMap) error {
	typ := a[unix.NFTA_EXTHDR_TYPE]
	if a.u32(unix.NFTA_EXTHDR_OP) == unix.NFT_EXTHDR_OP_IPV6 && len(typ) == 1 && typ[0] == unix.IPPROTO_FRAGMENT &&
		a.u32(unix.NFTA_EXTHDR_OFFSET) == 2 && a.u32(unix.NFTA_EXTHDR_LEN) == 2 && a.u32(unix.NFTA_EXTHDR_FLAGS) == 0 &&
		!a.has(unix.NFTA_EXTHDR_SREG) && d.mayRead(ruleset.FragmentOffset) {
		return d.load(a.u32(unix.NFTA_EXTHDR_DREG), ruleset.Expr{Field: ruleset.FragmentOffset})
	}
	if a.u32(unix.NFTA_EXTHDR_OP) != unix.NFT_EXTHDR_OP_TCPOPT ||
		a.u32(unix.NFTA_EXTHDR_FLAGS) != unix.NFT_EXTHDR_F_PRESENT ||
		a.u32(unix.NFTA_EXTHDR_OFFSET) != 0 || a.u32(unix.NFTA_EXTHDR_LEN) != 1 || len(typ) != 1 ||
		a.has(unix.NFTA_EXTHDR_SREG) ||
		!d.mayRead(ruleset.TCPOption) {
		return errUnknown
	}
	return d.load(a.u32(unix.NFTA_EXTHDR_DREG), ruleset.Expr{Field: ruleset.TCPOption, Level: typ[0]})
}

func (d *decoder) dynset(a attrMap) error {
	set := d.sets[a.str(unix.NFTA_DYNSET_SET_NAME)]
	if set == nil || set.Timeout == 0 || a.u32(unix.NFTA_DYNSET_OP) != unix.NFT_DYNSET_OP_UPDATE ||
		a.u32(unix.NFTA_DYNSET_FLAGS) != 0 ||
		a.has(unix.NFTA_DYNSET_SREG_DATA) || a.u64(unix.NFTA_DYNSET_TIMEOUT) != 0 {
		return errUnknown
	}
	var limit ruleset.Limit
	if a.has(unix.NFTA_DYNSET_EXPR) {
		e := a.nest(unix.NFTA_DYNSET_EXPR)
		var ok bool
		if limit, ok = limitOf(e.nest(unix.NFTA_EXPR_DATA)); !ok || e.str(unix.NFTA_EXPR_NAME) != "limit" {
			return errUnknown
		}
	}
	key, err := d.key(set, a.u32(unix.NFTA_DYNSET_SREG_KEY))
	if err == nil {
		d.emit(ruleset.Update{Key: key, Set: set.Name, Limit: limit})
	}
	return err
}

func (d *decoder) queue(a attrMap) error {
	number := a[unix.NFTA_QUEUE_NUM]
	if len(number) != 2 || a.u16(unix.NFTA_QUEUE_TOTAL) > 1 || a.u16(unix.NFTA_QUEUE_FLAGS) != 0 {
		return errUnknown
	}
	d.emit(ruleset.Queue{Number: a.u16(unix.NFTA_QUEUE_NUM)})
	return nil
}

// target reads NFQUEUE (see encoder.queue), the one of xtables' targets that is ours.
func (d *decoder) target(a attrMap) error {
	info := a[unix.NFTA_TARGET_INFO]
	if a.str(unix.NFTA_TARGET_NAME) != nfqueueTarget || a.u32(unix.NFTA_TARGET_REV) != nfqueueRevision ||
		len(info) < 6 ||
		binary.NativeEndian.Uint16(info[2:]) != 1 || binary.NativeEndian.Uint16(info[4:]) != 0 {
		return errUnknown
	}
	d.emit(ruleset.Queue{Number: binary.NativeEndian.Uint16(info)})
	return nil
}

func (d *decoder) objref(a attrMap) error {
	if a.u32(unix.NFTA_OBJREF_IMM_TYPE) != unix.NFT_OBJECT_COUNTER {
		return errUnknown
	}
	d.emit(ruleset.Count{Counter: a.str(unix.NFTA_OBJREF_IMM_NAME)})
	return nil
}

func (d *decoder) setLimit(a attrMap) error {
	limit, ok := limitOf(a)
	switch {
	case !ok:
		return errUnknown
	case limit.Burst == limitBurst:
		d.limit = limit.PerSecond
	default:
		d.emit(limit)
	}
	return nil
}

func limitOf(a attrMap) (ruleset.Limit, bool) {
	rate := a.u64(unix.NFTA_LIMIT_RATE)
	ok := a.u64(unix.NFTA_LIMIT_UNIT) == uint64(expr.LimitTimeSecond) &&
		a.u32(unix.NFTA_LIMIT_TYPE) == unix.NFT_LIMIT_PKTS &&
		a.u32(unix.NFTA_LIMIT_FLAGS) == 0 && rate > 0 && rate < 1<<32
	return ruleset.Limit{PerSecond: uint32(rate), Burst: a.u32(unix.NFTA_LIMIT_BURST)}, ok
}

func (d *decoder) log(a attrMap) error {
	if a.has(unix.NFTA_LOG_GROUP) || a.u32(unix.NFTA_LOG_FLAGS) != 0 || a.u32(unix.NFTA_LOG_LEVEL) != uint32(logLevel) {
		return errUnknown
	}
	d.emit(ruleset.Log{Prefix: a.str(unix.NFTA_LOG_PREFIX), PerSecond: d.limit})
	d.limit = 0
	return nil
}

func (d *decoder) reject(a attrMap) error {
	code := a[unix.NFTA_REJECT_ICMP_CODE]
	switch a.u32(unix.NFTA_REJECT_TYPE) {
	case unix.NFT_REJECT_TCP_RST:
		d.emit(ruleset.Reject{With: ruleset.TCPReset})
		return nil
	case unix.NFT_REJECT_ICMPX_UNREACH:
		if len(code) == 1 && code[0] == unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED {
			d.emit(ruleset.Reject{With: ruleset.AdminProhibited})
			return nil
		}
	}
	return errUnknown
}
