package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// decodeRule reads the expressions of a rule. A rule of which anything is not of the
// IR's language becomes a single Foreign statement.
func decodeRule(list nlmsg.Attributes, sets map[string]*ruleset.Set) ruleset.Rule {
	d := decoder{sets: sets}
	for _, e := range list.All() {
		a := nlmsg.Attributes(e)
		name := a.String(unix.NFTA_EXPR_NAME)
		if err := d.expression(name, a.Nested(unix.NFTA_EXPR_DATA)); err != nil {
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
func (d *decoder) expression(name string, a nlmsg.Attributes) error {
	least := d.least
	d.least = nil
	if d.limit != 0 && name != "log" {
		return errors.New("limits something else than a log")
	}
	switch name {
	case "meta", "ct", "rt", "socket", "fib", "exthdr":
		return d.field(name, a)
	case "payload":
		if a.Has(unix.NFTA_PAYLOAD_SREG) {
			return d.write(a)
		}
		return d.field(name, a)
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

// field reads an expression that loads a field, or sets it.
func (d *decoder) field(name string, a nlmsg.Attributes) error {
	for i := range fieldExpressions {
		switch e := &fieldExpressions[i]; {
		case e.name != name || !a.Cover(e.attributes) || !d.mayRead(e.field):
		case a.Has(e.destination):
			level, ok := e.readLevel(a)
			if !ok {
				return errUnknown
			}
			return d.put(a.BE32(e.destination), &operand{field: ruleset.Expr{Field: e.field, Level: level}})
		case e.origin != 0 && a.Has(e.origin):
			return d.store(e.field, a.BE32(e.origin))
		}
	}
	return errUnknown
}

// write reads an expression that changes the packet itself: what encodeRewrite and encodeFlip write.
func (d *decoder) write(a nlmsg.Attributes) error {
	o, err := d.takeField(a.BE32(unix.NFTA_PAYLOAD_SREG))
	if err != nil {
		return err
	}
	at := slices.IndexFunc(writes, func(w packetWrite) bool { return a.Cover(w.attributes) && d.mayRead(w.field) })
	if at < 0 || o.swapped {
		return errUnknown
	}
	rewrite := ruleset.Rewrite{Target: writes[at].field, Source: o.field.Field}
	flip := ruleset.Flip{Field: writes[at].field}
	switch {
	case canRewrite(rewrite) && !o.masked:
		d.emit(rewrite)
		return nil
	case flip.Field == o.field.Field && o.masked && o.and == flip.Bit()<<1-1 && o.xor == flip.Bit():
		d.emit(flip)
		return nil
	default:
		return errUnknown
	}
}

// mayRead says that the rule matches what f needs.
func (d *decoder) mayRead(f ruleset.Field) bool {
	need := f.Needs()
	stated := func(m ruleset.Match) bool { return slices.Contains(d.out, ruleset.Statement(m)) }
	return need == nil || slices.ContainsFunc(need, stated)
}

func (d *decoder) immediate(a nlmsg.Attributes) error {
	reg := a.BE32(unix.NFTA_IMMEDIATE_DREG)
	data := a.Nested(unix.NFTA_IMMEDIATE_DATA)
	if reg == unix.NFT_REG_VERDICT {
		v, err := decodeVerdict(data.Nested(unix.NFTA_DATA_VERDICT))
		d.emit(v)
		return err
	}
	return d.put(reg, &operand{constant: data.Bytes(unix.NFTA_DATA_VALUE)})
}

func decodeVerdict(a nlmsg.Attributes) (ruleset.Verdict, error) {
	code := int32(a.BE32(unix.NFTA_VERDICT_CODE))
	for kind, k := range verdictKinds {
		if k == expr.VerdictKind(code) && a.Has(unix.NFTA_VERDICT_CODE) {
			return ruleset.Verdict{Kind: kind, Chain: a.String(unix.NFTA_VERDICT_CHAIN)}, nil
		}
	}
	return ruleset.Verdict{}, fmt.Errorf("verdict %d", code)
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

func (d *decoder) bitwise(a nlmsg.Attributes) error {
	from, err := d.takeField(a.BE32(unix.NFTA_BITWISE_SREG))
	if err != nil {
		return err
	}
	if from.masked || from.swapped {
		return errors.New("bits of what was changed already")
	}
	o := &operand{field: from.field, masked: true}
	if o.and, err = o.number(a.Nested(unix.NFTA_BITWISE_MASK).Bytes(unix.NFTA_DATA_VALUE)); err != nil {
		return err
	}
	if o.xor, err = o.number(a.Nested(unix.NFTA_BITWISE_XOR).Bytes(unix.NFTA_DATA_VALUE)); err != nil {
		return err
	}
	return d.put(a.BE32(unix.NFTA_BITWISE_DREG), o)
}

// byteorder turns a field to big-endian, from which nft does not except what has only
// one byte ("hton(reg, 2, 1)", which does nothing).
func (d *decoder) byteorder(a nlmsg.Attributes) error {
	from, err := d.takeField(a.BE32(unix.NFTA_BYTEORDER_SREG))
	if err != nil {
		return err
	}
	n := from.field.Field.Bytes()
	if a.BE32(unix.NFTA_BYTEORDER_OP) != unix.NFT_BYTEORDER_HTON || int(a.BE32(unix.NFTA_BYTEORDER_LEN)) != n ||
		from.swapped {
		return errUnknown
	}
	if n > 1 && !from.field.Field.HostEndian() {
		return errors.New("the byte order of what has the network's")
	}
	o := *from
	o.used, o.swapped = false, n > 1
	return d.put(a.BE32(unix.NFTA_BYTEORDER_DREG), &o)
}

func (d *decoder) cmp(a nlmsg.Attributes, least *operand) error {
	o, err := d.takeField(a.BE32(unix.NFTA_CMP_SREG))
	if err != nil {
		return err
	}
	data := a.Nested(unix.NFTA_CMP_DATA).Bytes(unix.NFTA_DATA_VALUE)
	if len(data) != o.field.Field.Bytes() {
		return fmt.Errorf("a value of %d bytes for %s", len(data), o.field.Field)
	}
	op := expr.CmpOp(a.BE32(unix.NFTA_CMP_OP))
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
func (d *decoder) inRange(a nlmsg.Attributes) error {
	o, err := d.takeField(a.BE32(unix.NFTA_RANGE_SREG))
	if err != nil {
		return err
	}
	from := a.Nested(unix.NFTA_RANGE_FROM_DATA).Bytes(unix.NFTA_DATA_VALUE)
	to := a.Nested(unix.NFTA_RANGE_TO_DATA).Bytes(unix.NFTA_DATA_VALUE)
	n := o.field.Field.Bytes()
	if a.BE32(unix.NFTA_RANGE_OP) != unix.NFT_RANGE_EQ || len(from) != n || len(to) != n || o.masked ||
		o.field.Field.HostEndian() && !o.swapped {
		return errUnknown
	}
	d.emit(rangeMatch(o, o.word(from), o.word(to)))
	return nil
}

func (d *decoder) lookup(a nlmsg.Attributes) error {
	set := d.sets[a.String(unix.NFTA_LOOKUP_SET)]
	if set == nil || set.Foreign != "" || a.BE32(unix.NFTA_LOOKUP_FLAGS) != 0 {
		return errUnknown
	}
	key, err := d.key(set, a.BE32(unix.NFTA_LOOKUP_SREG))
	if err != nil {
		return err
	}
	dreg := a.BE32(unix.NFTA_LOOKUP_DREG)
	switch {
	case !a.Has(unix.NFTA_LOOKUP_DREG):
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

func (d *decoder) dynset(a nlmsg.Attributes) error {
	set := d.sets[a.String(unix.NFTA_DYNSET_SET_NAME)]
	if set == nil || set.Timeout == 0 || a.BE32(unix.NFTA_DYNSET_OP) != unix.NFT_DYNSET_OP_UPDATE ||
		a.BE32(unix.NFTA_DYNSET_FLAGS) != 0 ||
		a.Has(unix.NFTA_DYNSET_SREG_DATA) || a.BE64(unix.NFTA_DYNSET_TIMEOUT) != 0 {
		return errUnknown
	}
	var limit ruleset.Limit
	if a.Has(unix.NFTA_DYNSET_EXPR) {
		e := a.Nested(unix.NFTA_DYNSET_EXPR)
		var ok bool
		if limit, ok = limitOf(e.Nested(unix.NFTA_EXPR_DATA)); !ok || e.String(unix.NFTA_EXPR_NAME) != "limit" {
			return errUnknown
		}
	}
	key, err := d.key(set, a.BE32(unix.NFTA_DYNSET_SREG_KEY))
	if err == nil {
		d.emit(ruleset.Update{Key: key, Set: set.Name, Limit: limit})
	}
	return err
}

func (d *decoder) queue(a nlmsg.Attributes) error {
	number := a.Bytes(unix.NFTA_QUEUE_NUM)
	if len(number) != 2 || a.BE16(unix.NFTA_QUEUE_TOTAL) > 1 || a.BE16(unix.NFTA_QUEUE_FLAGS) != 0 {
		return errUnknown
	}
	d.emit(ruleset.Queue{Number: a.BE16(unix.NFTA_QUEUE_NUM)})
	return nil
}

// target reads NFQUEUE (see encoder.queue), the one of xtables' targets that is ours.
func (d *decoder) target(a nlmsg.Attributes) error {
	info := a.Bytes(unix.NFTA_TARGET_INFO)
	if a.String(unix.NFTA_TARGET_NAME) != nfqueueTarget || a.BE32(unix.NFTA_TARGET_REV) != nfqueueRevision ||
		len(info) < 6 ||
		binary.NativeEndian.Uint16(info[2:]) != 1 || binary.NativeEndian.Uint16(info[4:]) != 0 {
		return errUnknown
	}
	d.emit(ruleset.Queue{Number: binary.NativeEndian.Uint16(info)})
	return nil
}

func (d *decoder) objref(a nlmsg.Attributes) error {
	if a.BE32(unix.NFTA_OBJREF_IMM_TYPE) != unix.NFT_OBJECT_COUNTER {
		return errUnknown
	}
	d.emit(ruleset.Count{Counter: a.String(unix.NFTA_OBJREF_IMM_NAME)})
	return nil
}

func (d *decoder) setLimit(a nlmsg.Attributes) error {
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

func limitOf(a nlmsg.Attributes) (ruleset.Limit, bool) {
	rate := a.BE64(unix.NFTA_LIMIT_RATE)
	ok := a.BE64(unix.NFTA_LIMIT_UNIT) == uint64(expr.LimitTimeSecond) &&
		a.BE32(unix.NFTA_LIMIT_TYPE) == unix.NFT_LIMIT_PKTS &&
		a.BE32(unix.NFTA_LIMIT_FLAGS) == 0 && rate > 0 && rate < 1<<32
	return ruleset.Limit{PerSecond: uint32(rate), Burst: a.BE32(unix.NFTA_LIMIT_BURST)}, ok
}

func (d *decoder) log(a nlmsg.Attributes) error {
	if a.Has(unix.NFTA_LOG_GROUP) || a.BE32(unix.NFTA_LOG_FLAGS) != 0 ||
		a.BE32(unix.NFTA_LOG_LEVEL) != uint32(logLevel) {
		return errUnknown
	}
	d.emit(ruleset.Log{Prefix: a.String(unix.NFTA_LOG_PREFIX), PerSecond: d.limit})
	d.limit = 0
	return nil
}

func (d *decoder) reject(a nlmsg.Attributes) error {
	code := a.Bytes(unix.NFTA_REJECT_ICMP_CODE)
	switch a.BE32(unix.NFTA_REJECT_TYPE) {
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
