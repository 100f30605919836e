package kernel

import (
	"encoding/binary"
	"iter"
	"strings"

	"golang.org/x/sys/unix"
)

// attrs is a list of netlink attributes being written (linux/netlink.h, struct
// nlattr): for each
//
//	offset  size  meaning
//	0       2     length with this header, native-endian
//	2       2     type, and the flag "nested"
//	4       n     value, padded to 4 bytes
type attrs []byte

const attrHeader = 4

// bytes appends an attribute.
func (a *attrs) bytes(typ uint16, value []byte) {
	b := binary.NativeEndian.AppendUint16(*a, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	*a = b
}

// u32 appends a number: nf_tables has them in network byte order.
func (a *attrs) u32(typ uint16, n uint32) {
	a.bytes(typ, binary.BigEndian.AppendUint32(nil, n))
}

func (a *attrs) u64(typ uint16, n uint64) {
	a.bytes(typ, binary.BigEndian.AppendUint64(nil, n))
}

// str appends a string with its final zero.
func (a *attrs) str(typ uint16, s string) { a.bytes(typ, append([]byte(s), 0)) }

// nest appends the attributes that fill writes as the value of one. They must be
// shorter than 64 KiB.
func (a *attrs) nest(typ uint16, fill func(*attrs)) {
	start := len(*a)
	a.bytes(typ|unix.NLA_F_NESTED, nil)
	fill(a)
	binary.NativeEndian.PutUint16((*a)[start:], uint16(len(*a)-start))
}

// eachAttr yields the type and value of each attribute of b, without flags. What does
// not look like one ends it.
func eachAttr(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			length := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if length < attrHeader || length > len(b) || !yield(typ, b[attrHeader:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// attrMap is the attributes of a message or a nest, by type.
type attrMap map[uint16][]byte

func parseAttrs(b []byte) attrMap {
	m := attrMap{}
	for typ, value := range eachAttr(b) {
		m[typ] = value
	}
	return m
}

func (m attrMap) has(typ uint16) bool { return m[typ] != nil }

// u32 returns a number of 4 bytes, 0 if there is none.
func (m attrMap) u32(typ uint16) uint32 {
	if b := m[typ]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// u64 returns a number of 8 bytes, 0 if there is none.
func (m attrMap) u16(typ uint16) uint16 {
	if len(m[typ]) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(m[typ])
}

func (m attrMap) u64(typ uint16) uint64 {
	if b := m[typ]; len(b) == 8 {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// str returns a string up to its final zero.
func (m attrMap) str(typ uint16) string {
	s, _, _ := strings.Cut(string(m[typ]), "\x00")
	return s
}

// nest returns the attributes within one.
func (m attrMap) nest(typ uint16) attrMap { return parseAttrs(m[typ]) }
