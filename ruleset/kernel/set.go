package kernel

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// Attributes and flags that x/sys/unix lacks (linux/netfilter/nf_tables.h).
const (
	setConcat       = 0x80 // NFT_SET_CONCAT: each field of the key has its own ranges
	setDescConcat   = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen     = 1    // NFTA_SET_FIELD_LEN
	setElemKeyEnd   = 10   // NFTA_SET_ELEM_KEY_END
	setElemExprs    = 11   // NFTA_SET_ELEM_EXPRESSIONS
	setElemCatchAll = 2    // NFT_SET_ELEM_CATCHALL
	setExpr         = 17   // NFTA_SET_EXPR
	setExprs        = 18   // NFTA_SET_EXPRESSIONS
	verdictDataType = 0xffffff00
)

// dataTypes are the types as nft knows them: a number for the kernel to keep.
var dataTypes = map[ruleset.Type]nftables.SetDatatype{
	ruleset.Mark:        nftables.TypeMark,
	ruleset.ClassID:     nftables.TypeClassID,
	ruleset.CgroupV2:    nftables.TypeCGroupV2,
	ruleset.InetProto:   nftables.TypeInetProto,
	ruleset.InetService: nftables.TypeInetService,
	ruleset.IPv4Addr:    nftables.TypeIPAddr,
	ruleset.IPv6Addr:    nftables.TypeIP6Addr,
	ruleset.ICMPType:    nftables.TypeICMPType,
	ruleset.ICMPv6Type:  nftables.TypeICMP6Type,
	ruleset.IfName:      nftables.TypeIFName,
}

// typeNumber is the opposite: the type of a number, None if it is not ours.
func typeNumber(n uint32) ruleset.Type {
	if n == verdictDataType {
		return ruleset.VerdictType
	}
	for t, d := range dataTypes {
		if d.GetNFTMagic() == n {
			return t
		}
	}
	return ruleset.None
}

// keyType is what nft writes for a concatenation: 6 bits a field, the last lowest.
func keyType(key []ruleset.Type) uint32 {
	var n uint32
	for _, t := range key {
		d := dataTypes[t]
		n = n<<nftables.SetConcatTypeBits | d.GetNFTMagic()
	}
	return n
}

// keyTypes is the opposite of keyType. A field that is not ours is None.
func keyTypes(n uint32) []ruleset.Type {
	var key []ruleset.Type
	for ; n != 0; n >>= nftables.SetConcatTypeBits {
		key = append(key, typeNumber(n&nftables.SetConcatTypeMask))
	}
	slices.Reverse(key)
	return key
}

// keyLen is the size of a key: each field is padded to whole registers.
func keyLen(key []ruleset.Type) int {
	n := 0
	for _, t := range key {
		n += 4 * slots(t.Bytes())
	}
	if len(key) == 1 {
		return key[0].Bytes()
	}
	return n
}

// isRanges says that s has two elements for each range, its first key and the first
// behind it (net/netfilter/nft_set_rbtree.c). Concatenated ranges are one element
// with two keys (nft_set_pipapo.c).
func isRanges(s *ruleset.Set) bool { return s.Interval && len(s.Key) == 1 }

// setAttrs writes the attributes of NFT_MSG_NEWSET, as nft does (nftables, src/mnl.c,
// mnl_nft_set_add), so that nft's listing is the same.
func setAttrs(a *nlmsg.Attributes, table string, s *ruleset.Set, id uint32) error {
	for _, t := range s.Key {
		if _, ok := dataTypes[t]; !ok {
			return fmt.Errorf("%s cannot be the type of a key", t)
		}
	}
	if len(s.Key) == 0 || len(s.Key) > 5 {
		return fmt.Errorf("a key has 1 to 5 fields, not %d", len(s.Key))
	}
	if s.Foreign != "" {
		return fmt.Errorf("cannot load what is foreign: %s", s.Foreign)
	}
	a.AddString(unix.NFTA_SET_TABLE, table)
	a.AddString(unix.NFTA_SET_NAME, s.Name)
	a.AddBE32(unix.NFTA_SET_FLAGS, setFlags(s))
	a.AddBE32(unix.NFTA_SET_KEY_TYPE, keyType(s.Key))
	a.AddBE32(unix.NFTA_SET_KEY_LEN, uint32(keyLen(s.Key)))
	switch s.Data {
	case ruleset.None:
	case ruleset.VerdictType:
		a.AddBE32(unix.NFTA_SET_DATA_TYPE, verdictDataType)
		a.AddBE32(unix.NFTA_SET_DATA_LEN, 0)
	case ruleset.Mark, ruleset.ClassID:
		a.AddBE32(unix.NFTA_SET_DATA_TYPE, keyType([]ruleset.Type{s.Data}))
		a.AddBE32(unix.NFTA_SET_DATA_LEN, uint32(s.Data.Bytes()))
	default:
		return fmt.Errorf("%s cannot be the type of a map's data", s.Data)
	}
	a.AddBE32(unix.NFTA_SET_ID, id)
	if s.Timeout != 0 {
		a.AddBE64(unix.NFTA_SET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
		a.AddNested(unix.NFTA_SET_DESC, func(a *nlmsg.Attributes) { a.AddBE32(unix.NFTA_SET_DESC_SIZE, s.Size) })
	}
	if setFlags(s)&setConcat != 0 {
		a.AddNested(unix.NFTA_SET_DESC, func(a *nlmsg.Attributes) { describeFields(a, s.Key) })
	}
	a.AddBytes(unix.NFTA_SET_USERDATA, setUserData(s))
	return nil
}

func setFlags(s *ruleset.Set) uint32 {
	var flags uint32
	if s.Data != ruleset.None {
		flags |= unix.NFT_SET_MAP
	}
	if s.Timeout != 0 {
		flags |= unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	}
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
		if len(s.Key) > 1 {
			flags |= setConcat
		}
	}
	return flags
}

// describeFields writes the sizes of the fields that have ranges of their own.
func describeFields(a *nlmsg.Attributes, key []ruleset.Type) {
	a.AddNested(setDescConcat, func(a *nlmsg.Attributes) {
		for _, t := range key {
			a.AddNested(unix.NFTA_LIST_ELEM, func(a *nlmsg.Attributes) { a.AddBE32(setFieldLen, uint32(t.Bytes())) })
		}
	})
}

// setUserData tells nft in which byte order it finds keys and data.
func setUserData(s *ruleset.Set) []byte {
	const mixed, host, big = 0, 1, 2
	order := uint32(big)
	switch {
	case len(s.Key) > 1:
		order = mixed
	case s.Key[0].HostEndian() || s.Key[0] == ruleset.IfName: // a name has no order, but nft prints only this one
		order = host
	}
	data := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, order)
	if s.Data == ruleset.Mark || s.Data == ruleset.ClassID {
		data = userdata.AppendUint32(data, userdata.NFTNL_UDATA_SET_DATABYTEORDER, host)
	}
	return data
}

// appendField appends one end of a field of a key.
func appendField(b []byte, s *ruleset.Set, i int, w ruleset.Word) []byte {
	t := s.Key[i]
	b = appendWord(b, w, t.Bytes(), t.HostEndian() && !s.Interval)
	if len(s.Key) == 1 {
		return b
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// firstAndLast returns both ends of e's key.
func firstAndLast(s *ruleset.Set, e *ruleset.Element) (first, last []byte) {
	for i := range e.Key {
		first = appendField(first, s, i, e.Key[i].From)
		last = appendField(last, s, i, e.Key[i].To)
	}
	return first, last
}

func checkKey(s *ruleset.Set, e *ruleset.Element) error {
	if len(e.Key) != len(s.Key) {
		return fmt.Errorf("an element has %d fields, not %d", len(e.Key), len(s.Key))
	}
	for i, v := range e.Key {
		switch {
		case v.From.Compare(v.To) > 0:
			return fmt.Errorf("a range ends before it begins")
		case !v.Single() && !s.Interval:
			return fmt.Errorf("a range in a set without flags interval")
		case s.Key[i] == ruleset.CgroupV2 && v.From == ruleset.Word{}:
			return fmt.Errorf("the id of cgroup %q is not known", v.Path)
		}
	}
	return nil
}

// elementAttrs writes an element of a list: two, for a range in a set of ranges. To
// remove it, data is not needed.
func elementAttrs(a *nlmsg.Attributes, s *ruleset.Set, e *ruleset.Element, withData bool) error {
	if err := checkKey(s, e); err != nil {
		return err
	}
	first, last := firstAndLast(s, e)
	var err error
	a.AddNested(unix.NFTA_LIST_ELEM, func(a *nlmsg.Attributes) {
		addKey(a, unix.NFTA_SET_ELEM_KEY, first)
		if s.Interval && !isRanges(s) {
			addKey(a, setElemKeyEnd, last)
		}
		if withData {
			err = elementData(a, s, e)
		}
		if isRanges(s) && !increment(slices.Clone(last)) {
			a.AddBytes(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_ELEM_FLAGS,
				intervalOpen))
		}
	})
	if isRanges(s) && increment(last) {
		a.AddNested(unix.NFTA_LIST_ELEM, func(a *nlmsg.Attributes) {
			a.AddBE32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
			addKey(a, unix.NFTA_SET_ELEM_KEY, last)
		})
	}
	return err
}

// intervalOpen is what nft keeps with a range that ends with the last value there is
// (SET_ELEM_F_INTERVAL_OPEN, nftables, src/netlink.c).
const intervalOpen = 1

// increment adds one to a big-endian number. It returns false if there is no greater.
func increment(b []byte) bool {
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return true
		}
	}
	return false
}

// decrement subtracts one from a big-endian number that is not zero.
func decrement(b []byte) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			return
		}
	}
}

func addKey(a *nlmsg.Attributes, typ uint16, key []byte) {
	a.AddNested(typ, func(a *nlmsg.Attributes) { a.AddBytes(unix.NFTA_DATA_VALUE, key) })
}

// elementData writes what e maps to.
func elementData(a *nlmsg.Attributes, s *ruleset.Set, e *ruleset.Element) error {
	switch s.Data {
	case ruleset.None:
		return nil
	case ruleset.VerdictType:
		kind, err := verdictKind(e.Verdict)
		a.AddNested(unix.NFTA_SET_ELEM_DATA, func(a *nlmsg.Attributes) {
			a.AddNested(unix.NFTA_DATA_VERDICT, func(a *nlmsg.Attributes) {
				a.AddBE32(unix.NFTA_VERDICT_CODE, uint32(kind))
				if e.Verdict.Chain != "" {
					a.AddString(unix.NFTA_VERDICT_CHAIN, e.Verdict.Chain)
				}
			})
		})
		return err
	default:
		addKey(a, unix.NFTA_SET_ELEM_DATA, binary.NativeEndian.AppendUint32(nil, e.Number))
		return nil
	}
}
