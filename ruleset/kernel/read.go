package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// Read returns a table as it is loaded, with that of family bridge beside it,
// normalised; nil if there is neither. What is not
// of the IR's language, because somebody else put it there, is Foreign. Elements have
// no comments and cgroups no paths: the kernel keeps none.
func (c *Conn) Read(name string) (*ruleset.Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range readTries {
		before, err := c.generation()
		if err != nil {
			return nil, err
		}
		t, err := c.read(name)
		if errors.Is(err, errInterrupted) {
			continue
		}
		after, genErr := c.generation()
		if genErr != nil {
			return nil, genErr
		}
		if before != after {
			continue
		}
		return t, err
	}
	return nil, fmt.Errorf("reading table %s: %w, %d times", name, errInterrupted, readTries)
}

// readTries is how often a read begins anew when nftables changes under it: a table
// takes many requests.
const readTries = 20

// errInterrupted says that what was read may be half old and half new.
var errInterrupted = errors.New("nftables changed while it was read")

// A Counter is what a named counter counted.
type Counter struct{ Packets, Bytes uint64 }

// Counters returns the named counters of a table, of both families; none if there is
// no table.
func (c *Conn) Counters(table string) (map[string]Counter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]Counter{}
	for _, f := range []family{inet, bridge} {
		objects, err := c.dump(f, unix.NFT_MSG_GETOBJ, ofTable(table))
		if err != nil {
			return nil, fmt.Errorf("reading counters of table %s %s: %w", f, table, err)
		}
		for _, o := range objects {
			if o.String(tableAttr) == table && o.BE32(unix.NFTA_OBJ_TYPE) == unix.NFT_OBJECT_COUNTER {
				data := o.Nested(unix.NFTA_OBJ_DATA)
				out[o.String(unix.NFTA_OBJ_NAME)] = Counter{
					Packets: data.BE64(unix.NFTA_COUNTER_PACKETS),
					Bytes:   data.BE64(unix.NFTA_COUNTER_BYTES),
				}
			}
		}
	}
	return out, nil
}

// tableAttr is the attribute of a table's name in all messages (NFTA_TABLE_NAME,
// NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and so on).
const tableAttr = unix.NFTA_TABLE_NAME

// ofTable returns attributes that ask for what is in a table.
func ofTable(table string) nlmsg.Attributes {
	var a nlmsg.Attributes
	a.AddString(tableAttr, table)
	return a
}

// dump asks for all of a kind.
func (c *Conn) dump(f family, typ uint16, a nlmsg.Attributes) ([]nlmsg.Attributes, error) {
	replies, err := c.execute(request(typ, netlink.Dump, f, a))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make([]nlmsg.Attributes, 0, len(replies))
	for _, m := range replies {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return nil, errInterrupted
		}
		_, found, err := nlmsg.ParseNetfilter(m)
		if err != nil {
			return nil, err
		}
		out = append(out, found)
	}
	return out, nil
}

// read reads a table once. c.mu is held.
func (c *Conn) read(name string) (*ruleset.Table, error) {
	table, err := c.readFamily(inet, name)
	if err != nil {
		return nil, err
	}
	beside, err := c.readFamily(bridge, name)
	if err != nil || beside == nil {
		return table, err
	}
	if table == nil {
		table = &ruleset.Table{}
	}
	table.Bridge = beside
	return table, nil
}

// A reader reads one table of one family.
type reader struct {
	conn   *Conn
	family family
	table  *ruleset.Table
}

func (c *Conn) readFamily(f family, name string) (*ruleset.Table, error) {
	flags, err := c.tableFlags(f, name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	r := reader{conn: c, family: f, table: &ruleset.Table{Name: name}}
	if flags != 0 {
		r.foreign("flags %#x", flags)
	}
	for _, step := range []func() error{r.objects, r.flowtables, r.sets, r.chains, r.rules} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading table %s %s: %w", f, name, err)
	}
	r.table.Normalise()
	return r.table, nil
}

// tableFlags returns a table's flags, ENOENT if there is none.
func (c *Conn) tableFlags(f family, name string) (uint32, error) {
	replies, err := c.execute(request(unix.NFT_MSG_GETTABLE, 0, f, ofTable(name)))
	if err != nil || len(replies) == 0 {
		return 0, err
	}
	_, a, err := nlmsg.ParseNetfilter(replies[0])
	return a.BE32(unix.NFTA_TABLE_FLAGS), err
}

func (r *reader) dump(typ uint16, a nlmsg.Attributes) ([]nlmsg.Attributes, error) {
	return r.conn.dump(r.family, typ, a)
}

func (r *reader) foreign(format string, args ...any) {
	r.table.Foreign = append(r.table.Foreign, fmt.Sprintf(format, args...))
}

func (r *reader) objects() error {
	objects, err := r.dump(unix.NFT_MSG_GETOBJ, ofTable(r.table.Name))
	for _, o := range objects {
		name := o.String(unix.NFTA_OBJ_NAME)
		switch {
		case o.String(tableAttr) != r.table.Name:
		case o.BE32(unix.NFTA_OBJ_TYPE) == unix.NFT_OBJECT_COUNTER:
			r.table.Counters = append(r.table.Counters, name)
		default:
			r.foreign("object %s of type %d", name, o.BE32(unix.NFTA_OBJ_TYPE))
		}
	}
	return err
}

// flowtableName is NFTA_FLOWTABLE_NAME (linux/netfilter/nf_tables.h).
const flowtableName = 2

func (r *reader) flowtables() error {
	tables, err := r.dump(unix.NFT_MSG_GETFLOWTABLE, ofTable(r.table.Name))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	for _, t := range tables {
		if t.String(tableAttr) == r.table.Name {
			r.foreign("flowtable %s", t.String(flowtableName))
		}
	}
	return err
}

// chains reads all chains of the family: the kernel does not select them.
func (r *reader) chains() error {
	chains, err := r.dump(unix.NFT_MSG_GETCHAIN, nil)
	for _, a := range chains {
		if a.String(tableAttr) == r.table.Name {
			r.table.Chains = append(r.table.Chains, decodeChain(a))
		}
	}
	return err
}

// Attributes of chains that x/sys/unix lacks (linux/netfilter/nf_tables.h).
const (
	chainFlags = 10 // NFTA_CHAIN_FLAGS
	chainBase  = 1  // NFT_CHAIN_BASE
	hookDevs   = 4  // NFTA_HOOK_DEVS
)

func decodeChain(a nlmsg.Attributes) ruleset.Chain {
	c := ruleset.Chain{Name: a.String(unix.NFTA_CHAIN_NAME)}
	if flags := a.BE32(chainFlags) &^ chainBase; flags != 0 {
		c.Foreign = fmt.Sprintf("flags %#x", flags)
	}
	if !a.Has(unix.NFTA_CHAIN_HOOK) {
		return c
	}
	hook := a.Nested(unix.NFTA_CHAIN_HOOK)
	c.Hook = ruleset.Hook(hook.BE32(unix.NFTA_HOOK_HOOKNUM) + 1)
	c.Priority = int32(hook.BE32(unix.NFTA_HOOK_PRIORITY))
	typ, policy := a.String(unix.NFTA_CHAIN_TYPE), a.BE32(unix.NFTA_CHAIN_POLICY)
	if typ != chainType || policy != chainPolicy || c.Hook > ruleset.Postrouting || hook.Has(unix.NFTA_HOOK_DEV) ||
		hook.Has(hookDevs) {
		c.Foreign = fmt.Sprintf("type %s, hook %d, policy %d", typ, hook.BE32(unix.NFTA_HOOK_HOOKNUM), policy)
	}
	return c
}

func (r *reader) rules() error {
	sets := map[string]*ruleset.Set{}
	for i := range r.table.Sets {
		sets[r.table.Sets[i].Name] = &r.table.Sets[i]
	}
	chains := map[string]*ruleset.Chain{}
	for i := range r.table.Chains {
		chains[r.table.Chains[i].Name] = &r.table.Chains[i]
	}
	rules, err := r.dump(unix.NFT_MSG_GETRULE, ofTable(r.table.Name))
	for _, a := range rules {
		if a.String(tableAttr) != r.table.Name {
			continue
		}
		c := chains[a.String(unix.NFTA_RULE_CHAIN)]
		if c == nil {
			return errInterrupted
		}
		c.Rules = append(c.Rules, decodeRule(a.Nested(unix.NFTA_RULE_EXPRESSIONS), sets))
	}
	return err
}

func (r *reader) sets() error {
	sets, err := r.dump(unix.NFT_MSG_GETSET, ofTable(r.table.Name))
	if err != nil {
		return err
	}
	for _, a := range sets {
		// An anonymous set is a part of the rule that it is used in, which is foreign.
		if a.String(tableAttr) != r.table.Name || a.BE32(unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS != 0 {
			continue
		}
		s := decodeSet(a)
		if s.Foreign == "" && s.Timeout == 0 {
			if err := r.elements(&s, a); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
		r.table.Sets = append(r.table.Sets, s)
	}
	return nil
}

// decodeSet reads what a set is.
func decodeSet(a nlmsg.Attributes) ruleset.Set {
	flags := a.BE32(unix.NFTA_SET_FLAGS)
	s := ruleset.Set{
		Name:     a.String(unix.NFTA_SET_NAME),
		Key:      keyTypes(a.BE32(unix.NFTA_SET_KEY_TYPE)),
		Interval: flags&unix.NFT_SET_INTERVAL != 0,
	}
	isMap := flags&unix.NFT_SET_MAP != 0
	if isMap {
		s.Data = typeNumber(a.BE32(unix.NFTA_SET_DATA_TYPE))
	}
	const known = unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | setConcat
	const ofRules = unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	if flags == ofRules {
		flags = 0
		s.Timeout = time.Duration(a.BE64(unix.NFTA_SET_TIMEOUT)) * time.Millisecond
		s.Size = a.Nested(unix.NFTA_SET_DESC).BE32(unix.NFTA_SET_DESC_SIZE)
	}
	switch {
	case flags&^known != 0, a.Has(setExpr), a.Has(setExprs), a.BE64(unix.NFTA_SET_TIMEOUT) != 0 && s.Timeout == 0:
		s.Foreign = fmt.Sprintf("flags %#x", flags)
	case len(s.Key) == 0 || slices.Contains(s.Key, ruleset.None) || keyLen(s.Key) != int(a.BE32(unix.NFTA_SET_KEY_LEN)):
		s.Foreign = fmt.Sprintf("key of type %#x", a.BE32(unix.NFTA_SET_KEY_TYPE))
	case isMap && s.Data != ruleset.VerdictType && s.Data != ruleset.Mark && s.Data != ruleset.ClassID:
		s.Foreign = fmt.Sprintf("data of type %#x", a.BE32(unix.NFTA_SET_DATA_TYPE))
	}
	return s
}

// setCount is how many elements a set has (linux/netfilter/nf_tables.h,
// NFTA_SET_COUNT; newer kernels tell). Of ranges, the number is not exact.
const setCount = 20

// elements reads the elements of s. If one has what ours have not, all of s is foreign.
//
// A hash table grows in the background for a while after a large batch, and what is
// read meanwhile lacks some elements: an element's place in a list of several messages
// is how far the walk through the table came (net/netfilter/nft_set_hash.c,
// nft_rhash_walk; 6.18 lost 5,000 of 60,000, more often than not). So they are read
// until there are as many as the kernel counts, or as the time before.
func (r *reader) elements(s *ruleset.Set, a nlmsg.Attributes) error {
	counted, expected := a.Has(setCount), int(a.BE32(setCount))
	for range readTries {
		lists, err := r.elementLists(s)
		if err != nil {
			return err
		}
		if err := decodeElements(s, lists); err != nil {
			s.Foreign, s.Elements = err.Error(), nil
			return nil
		}
		if s.Interval || len(s.Elements) == expected || !counted && len(lists) <= 1 {
			return nil
		}
		if !counted {
			expected = len(s.Elements)
		}
	}
	return errInterrupted
}

func (r *reader) elementLists(s *ruleset.Set) ([]nlmsg.Attributes, error) {
	a := ofTable(r.table.Name)
	a.AddString(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	return r.dump(unix.NFT_MSG_GETSETELEM, a)
}

// A boundary is an element as the kernel has it. In a set of ranges it is where one
// begins or, if end is true, the first behind one.
type boundary struct {
	key, last []byte
	end       bool
	element   ruleset.Element
}

// decodeElements reads the elements of s, in ascending order, from lists.
func decodeElements(s *ruleset.Set, lists []nlmsg.Attributes) error {
	var found []boundary
	for _, list := range lists {
		for _, e := range list.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS).All() {
			b, err := decodeElement(s, e)
			if err != nil {
				return err
			}
			found = append(found, b)
		}
	}
	if isRanges(s) {
		found = joinRanges(found)
	}
	s.Elements = make([]ruleset.Element, len(found))
	for i, b := range found {
		b.element.Key = decodeKey(s, b.key, b.last)
		s.Elements[i] = b.element
	}
	slices.SortFunc(s.Elements, ruleset.Element.Compare)
	s.Elements = slices.CompactFunc(s.Elements, func(a, b ruleset.Element) bool { return a.CompareKey(b) == 0 })
	return nil
}

// joinRanges makes a range of each beginning: it ends before the next boundary, or
// with the last value there is (net/netfilter/nft_set_rbtree.c looks up the greatest
// boundary that is not above the key). Nothing begins at an end of one range, but
// another range.
func joinRanges(found []boundary) []boundary {
	slices.SortFunc(found, func(a, b boundary) int { return bytes.Compare(a.key, b.key) })
	var out []boundary
	for i, b := range found {
		if b.end {
			continue
		}
		b.last = bytes.Repeat([]byte{0xff}, len(b.key))
		for _, next := range found[i+1:] {
			if !bytes.Equal(next.key, b.key) {
				b.last = slices.Clone(next.key)
				decrement(b.last)
				break
			}
		}
		out = append(out, b)
	}
	return out
}

var errElement = errors.New("an element with more than a key and data")

func decodeElement(s *ruleset.Set, b []byte) (boundary, error) {
	a := nlmsg.Attributes(b)
	flags := a.BE32(unix.NFTA_SET_ELEM_FLAGS)
	for _, typ := range []uint16{
		unix.NFTA_SET_ELEM_TIMEOUT, unix.NFTA_SET_ELEM_EXPIRATION, unix.NFTA_SET_ELEM_EXPR,
		unix.NFTA_SET_ELEM_OBJREF, setElemExprs,
	} {
		if a.Has(typ) {
			return boundary{}, errElement
		}
	}
	out := boundary{
		key:  a.Nested(unix.NFTA_SET_ELEM_KEY).Bytes(unix.NFTA_DATA_VALUE),
		last: a.Nested(setElemKeyEnd).Bytes(unix.NFTA_DATA_VALUE),
		end:  flags&unix.NFT_SET_ELEM_INTERVAL_END != 0,
	}
	if out.last == nil {
		out.last = out.key
	}
	if flags&setElemCatchAll != 0 || len(out.key) != keyLen(s.Key) || len(out.last) != len(out.key) {
		return boundary{}, errElement
	}
	if out.end {
		return out, nil
	}
	data := a.Nested(unix.NFTA_SET_ELEM_DATA)
	switch s.Data {
	case ruleset.None:
		return out, nil
	case ruleset.VerdictType:
		v, err := decodeVerdict(data.Nested(unix.NFTA_DATA_VERDICT))
		out.element.Verdict = v
		return out, err
	default:
		value := data.Bytes(unix.NFTA_DATA_VALUE)
		if len(value) != 4 {
			return boundary{}, errElement
		}
		out.element.Number = binary.NativeEndian.Uint32(value)
		return out, nil
	}
}

// decodeKey reads the fields of a key.
func decodeKey(s *ruleset.Set, first, last []byte) []ruleset.Value {
	key := make([]ruleset.Value, len(s.Key))
	at := 0
	for i, t := range s.Key {
		n, host := t.Bytes(), t.HostEndian() && !s.Interval
		key[i] = ruleset.Value{From: wordOf(first[at:at+n], host), To: wordOf(last[at:at+n], host)}
		at += 4 * slots(n)
	}
	return key
}
