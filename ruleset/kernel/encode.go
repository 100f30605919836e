package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"thole/ruleset"
)

// firstReg is the first register (16 bytes), which values are computed in.
const firstReg = unix.NFT_REG_1

// regAt returns the register of the n-th 4 bytes of the registers: the first is
// called by its old name, as nft does.
func regAt(n int) uint32 {
	if n == 0 {
		return firstReg
	}
	return unix.NFT_REG32_00 + uint32(n)
}

// slots returns how many registers of 4 bytes hold n bytes.
func slots(n int) int { return (n + 3) / 4 }

// An encoder turns rules into the expressions that nft makes of their text
// (nft --debug=netlink shows them).
type encoder struct {
	sets   map[string]*ruleset.Set // of the table as it will be
	compat bool                    // the kernel has no expression "queue"
}

func (e *encoder) rule(r ruleset.Rule) ([]expr.Any, error) {
	var out []expr.Any
	for _, s := range r.Statements {
		es, err := e.statement(s)
		if err != nil {
			return nil, err
		}
		out = append(out, es...)
	}
	return out, nil
}

func (e *encoder) statement(s ruleset.Statement) ([]expr.Any, error) {
	switch s := s.(type) {
	case ruleset.Match:
		return encodeMatch(s)
	case ruleset.InSet:
		return e.lookup(s.Key, expr.Lookup{SetName: s.Set})
	case ruleset.ByMap:
		return e.lookup(s.Key, expr.Lookup{SetName: s.Map, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
	case ruleset.SetByMap:
		return e.setByMap(s)
	case ruleset.SetBits:
		return encodeSetBits(s)
	case ruleset.Copy:
		return encodeCopy(s)
	case ruleset.Rewrite:
		return encodeRewrite(s)
	case ruleset.Flip:
		return encodeFlip(s)
	case ruleset.Update:
		return e.update(s)
	case ruleset.Limit:
		return encodeLimit(s)
	case ruleset.Queue:
		return []expr.Any{e.queue(s)}, nil
	case ruleset.Notrack:
		return []expr.Any{&expr.Notrack{}}, nil
	case ruleset.Count:
		return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: s.Counter}}, nil
	case ruleset.Log:
		return encodeLog(s), nil
	case ruleset.Reject:
		return []expr.Any{encodeReject(s)}, nil
	case ruleset.Verdict:
		kind, err := verdictKind(s)
		return []expr.Any{&expr.Verdict{Kind: kind, Chain: s.Chain}}, err
	case ruleset.Foreign:
		return nil, fmt.Errorf("cannot load what is foreign: %s", s.Description)
	default:
		return nil, fmt.Errorf("unknown statement %T", s)
	}
}

// noKind is the name that a kind of interface is compared with (nftables: meta oifkind != "none").
var noKind = append([]byte("none"), make([]byte, 12)...)

// appendWord appends w as n bytes, in the machine's byte order if host is true.
func appendWord(b []byte, w ruleset.Word, n int, host bool) []byte {
	tail := w[len(w)-n:]
	switch {
	case host && n == 4:
		return binary.NativeEndian.AppendUint32(b, binary.BigEndian.Uint32(tail))
	case host && n == 8:
		return binary.NativeEndian.AppendUint64(b, binary.BigEndian.Uint64(tail))
	default:
		return append(b, tail...)
	}
}

// wordOf is the opposite of appendWord.
func wordOf(b []byte, host bool) ruleset.Word {
	var w ruleset.Word
	switch {
	case len(b) > len(w):
	case host && len(b) == 4:
		binary.BigEndian.PutUint32(w[12:], binary.NativeEndian.Uint32(b))
	case host && len(b) == 8:
		binary.BigEndian.PutUint64(w[8:], binary.NativeEndian.Uint64(b))
	default:
		copy(w[len(w)-len(b):], b)
	}
	return w
}

// inRegister returns n as a register holds it when f was loaded.
func inRegister(f ruleset.Field, n uint32) []byte {
	return appendWord(nil, ruleset.WordOf(uint64(n)), f.Bytes(), f.HostEndian())
}

// masked keeps bits of a register that holds f.
func masked(f ruleset.Field, mask uint32, reg uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(f.Bytes()),
		Mask: inRegister(f, mask), Xor: make([]byte, f.Bytes()),
	}
}

// bigEndian turns a host-endian register round: the kernel compares bytes.
func bigEndian(n int, reg uint32) expr.Any {
	return &expr.Byteorder{
		SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: uint32(n), Size: uint32(n),
	}
}

// encodeMatch loads, shapes and compares a field.
func encodeMatch(m ruleset.Match) ([]expr.Any, error) {
	f := m.Left.Field
	if f == ruleset.SocketCgroup {
		return nil, fmt.Errorf("%s can be looked up in a set only", f)
	}
	first, err := load(m.Left, firstReg)
	if err != nil {
		return nil, err
	}
	out := []expr.Any{first}
	compare := func(op expr.CmpOp, data []byte) {
		out = append(out, &expr.Cmp{Op: op, Register: firstReg, Data: data})
	}
	ordered := func(w ruleset.Word) []byte { return appendWord(nil, w, f.Bytes(), false) }
	toOrder := func() {
		if f.HostEndian() {
			out = append(out, bigEndian(f.Bytes(), firstReg))
		}
	}
	mask := func(bits uint32) { out = append(out, masked(f, bits, firstReg)) }
	switch m.Op {
	case ruleset.Equal:
		compare(expr.CmpOpEq, inRegister(f, m.Value))
	case ruleset.NotEqual:
		if f == ruleset.MetaOifKind {
			compare(expr.CmpOpNeq, noKind)
			break
		}
		compare(expr.CmpOpNeq, inRegister(f, m.Value))
	case ruleset.AtLeast:
		toOrder()
		compare(expr.CmpOpGte, ordered(ruleset.WordOf(uint64(m.Value))))
	case ruleset.Any:
		mask(m.Value)
		compare(expr.CmpOpNeq, inRegister(f, 0))
	case ruleset.Masked:
		mask(m.Mask)
		compare(expr.CmpOpEq, inRegister(f, m.Value))
	case ruleset.MaskedNot:
		mask(m.Mask)
		compare(expr.CmpOpNeq, inRegister(f, m.Value))
	case ruleset.InRange:
		if m.From == m.To {
			compare(expr.CmpOpEq, appendWord(nil, m.From, f.Bytes(), f.HostEndian()))
			break
		}
		toOrder()
		compare(expr.CmpOpGte, ordered(m.From))
		compare(expr.CmpOpLte, ordered(m.To))
	default:
		return nil, fmt.Errorf("unknown operator %d of %s", m.Op, f)
	}
	return out, nil
}

// lookup loads a key and looks it up.
func (e *encoder) lookup(key []ruleset.Expr, l expr.Lookup) ([]expr.Any, error) {
	set := e.sets[l.SetName]
	switch {
	case set == nil:
		return nil, fmt.Errorf("no set or map @%s", l.SetName)
	case len(key) != len(set.Key):
		return nil, fmt.Errorf("@%s has keys of %d fields, not %d", l.SetName, len(set.Key), len(key))
	}
	var out []expr.Any
	slot := 0
	for i, f := range key {
		if f.Field.Bytes() != set.Key[i].Bytes() {
			return nil, fmt.Errorf("%s is no %s, as @%s has it", f.Field, set.Key[i], l.SetName)
		}
		es, err := loadKey(f, regAt(slot), set.Interval)
		if err != nil {
			return nil, err
		}
		out = append(out, es...)
		slot += slots(f.Field.Bytes())
	}
	l.SourceRegister = firstReg
	return append(out, &l), nil
}

// loadKey loads a field of a key. The keys of interval sets are big-endian, for they
// are ordered.
func loadKey(f ruleset.Expr, reg uint32, interval bool) ([]expr.Any, error) {
	first, err := load(f, reg)
	if err != nil {
		return nil, err
	}
	out := []expr.Any{first}
	if f.Mask != 0 {
		out = append(out, masked(f.Field, f.Mask, reg))
	}
	if interval && f.Field.HostEndian() {
		out = append(out, bigEndian(f.Field.Bytes(), reg))
	}
	return out, nil
}

func (e *encoder) setByMap(s ruleset.SetByMap) ([]expr.Any, error) {
	out, err := e.lookup(s.Key, expr.Lookup{SetName: s.Map, IsDestRegSet: true, DestRegister: firstReg})
	if err != nil {
		return nil, err
	}
	store, err := store(s.Target)
	return append(out, store), err
}

func encodeCopy(s ruleset.Copy) ([]expr.Any, error) {
	from, err := load(ruleset.Expr{Field: s.Source}, firstReg)
	if err != nil {
		return nil, err
	}
	to, err := store(s.Target)
	if s.And == 1<<32-1 && s.Or == 0 {
		return []expr.Any{from, to}, err
	}
	change := &expr.Bitwise{
		SourceRegister: firstReg, DestRegister: firstReg, Len: 4,
		Mask: inRegister(s.Source, s.And&^s.Or), Xor: inRegister(s.Source, s.Or),
	}
	return []expr.Any{from, change, to}, err
}

func encodeRewrite(s ruleset.Rewrite) ([]expr.Any, error) {
	if !canRewrite(s) {
		return nil, fmt.Errorf("%s cannot be set to %s", s.Target, s.Source)
	}
	from, err := load(ruleset.Expr{Field: s.Source}, firstReg)
	if err != nil {
		return nil, err
	}
	to, err := write(s.Target)
	return []expr.Any{from, to}, err
}

func encodeFlip(s ruleset.Flip) ([]expr.Any, error) {
	from, err := load(ruleset.Expr{Field: s.Field}, firstReg)
	if err != nil {
		return nil, err
	}
	change := &expr.Bitwise{
		SourceRegister: firstReg, DestRegister: firstReg, Len: uint32(s.Field.Bytes()),
		Mask: bytes.Repeat([]byte{0xff}, s.Field.Bytes()), Xor: inRegister(s.Field, s.Bit()),
	}
	to, err := write(s.Field)
	return []expr.Any{from, change, to}, err
}

// update loads a key and adds it to a set.
func (e *encoder) update(s ruleset.Update) ([]expr.Any, error) {
	out, err := e.lookup(s.Key, expr.Lookup{SetName: s.Set})
	if err != nil {
		return nil, err
	}
	update := &expr.Dynset{SrcRegKey: firstReg, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE}
	out[len(out)-1] = update
	if s.Limit == (ruleset.Limit{}) {
		return out, nil
	}
	limit, err := encodeLimit(s.Limit)
	update.Exprs = limit
	return out, err
}

func encodeLimit(l ruleset.Limit) ([]expr.Any, error) {
	if l.PerSecond == 0 || l.Burst == limitBurst {
		return nil, fmt.Errorf("no limit: %d/second burst %d", l.PerSecond, l.Burst)
	}
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.PerSecond), Unit: expr.LimitTimeSecond,
		Burst: l.Burst}}, nil
}

// The target NFQUEUE of xtables, for kernels without the expression: struct
// xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h), of three numbers of 2 bytes in the
// machine's order, queue, how many queues, flags; as x_tables aligns it.
const (
	nfqueueTarget   = "NFQUEUE"
	nfqueueRevision = 3
	nfqueueInfo     = 8
)

func (e *encoder) queue(s ruleset.Queue) expr.Any {
	if !e.compat {
		return &expr.Queue{Num: s.Number, Total: 1}
	}
	info := make(xt.Unknown, nfqueueInfo)
	binary.NativeEndian.PutUint16(info, s.Number)
	binary.NativeEndian.PutUint16(info[2:], 1)
	return &expr.Target{Name: nfqueueTarget, Rev: nfqueueRevision, Info: &info}
}

// encodeSetBits writes a constant, or what the field holds with bits changed.
func encodeSetBits(s ruleset.SetBits) ([]expr.Any, error) {
	store, err := store(s.Target)
	if err != nil {
		return nil, err
	}
	if s.And == 0 {
		return []expr.Any{&expr.Immediate{Register: firstReg, Data: inRegister(s.Target, s.Or)}, store}, nil
	}
	first, err := load(ruleset.Expr{Field: s.Target}, firstReg)
	if err != nil {
		return nil, err
	}
	if s.And == 1<<32-1 {
		return []expr.Any{first, store}, nil
	}
	change := &expr.Bitwise{
		SourceRegister: firstReg, DestRegister: firstReg, Len: 4,
		Mask: inRegister(s.Target, s.And&^s.Or), Xor: inRegister(s.Target, s.Or),
	}
	return []expr.Any{first, change, store}, nil
}

// What nft makes of a log statement that says no more than a prefix, and of a limit
// without a burst.
const (
	logLevel   = expr.LogLevelWarning
	limitBurst = 5
)

func encodeLog(s ruleset.Log) []expr.Any {
	log := &expr.Log{Key: 1 << unix.NFTA_LOG_LEVEL, Level: logLevel}
	if s.Prefix != "" {
		log.Key |= 1 << unix.NFTA_LOG_PREFIX
		log.Data = []byte(s.Prefix)
	}
	if s.PerSecond == 0 {
		return []expr.Any{log}
	}
	limit := &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(s.PerSecond), Unit: expr.LimitTimeSecond,
		Burst: limitBurst}
	return []expr.Any{limit, log}
}

func encodeReject(s ruleset.Reject) expr.Any {
	if s.With == ruleset.TCPReset {
		return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
}

// verdictKinds are the verdicts as the kernel has them.
var verdictKinds = map[ruleset.VerdictKind]expr.VerdictKind{
	ruleset.Accept: expr.VerdictAccept,
	ruleset.Drop:   expr.VerdictDrop,
	ruleset.Return: expr.VerdictReturn,
	ruleset.Jump:   expr.VerdictJump,
	ruleset.Goto:   expr.VerdictGoto,
}

func verdictKind(v ruleset.Verdict) (expr.VerdictKind, error) {
	kind, ok := verdictKinds[v.Kind]
	if !ok {
		return 0, fmt.Errorf("unknown verdict %d", v.Kind)
	}
	return kind, nil
}
