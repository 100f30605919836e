package nlmsg

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes is a list of netlink attributes as a message has it (linux/netlink.h, struct nlattr). For each attribute:
//
//	offset  size  meaning
//	0       2     length with this header, native-endian
//	2       2     type, and the flags "nested" and "network byte order"
//	4       n     value, padded to 4 bytes
//
// Methods that begin with Add append an attribute. The others return the value of the first attribute of a type, or
// the zero value if the list has none. Numbers are in the machine's byte order, as rtnetlink and sock_diag have them;
// those named BE are in network byte order, as netfilter has them. A number of another size is zero: see Parse.
type Attributes []byte

const attributeHeader = 4

const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER

// AddBytes appends a value as it is. The value must be shorter than 64 KiB, otherwise AddBytes panics.
func (a *Attributes) AddBytes(typ uint16, value []byte) {
	b := a.begin(typ)
	*a = append(*a, value...)
	a.end(b)
}

// AddUint32 appends a number in the machine's byte order.
func (a *Attributes) AddUint32(typ uint16, n uint32) {
	a.AddBytes(typ, binary.NativeEndian.AppendUint32(nil, n))
}

// AddBE32 appends a number in network byte order.
func (a *Attributes) AddBE32(typ uint16, n uint32) {
	a.AddBytes(typ, binary.BigEndian.AppendUint32(nil, n))
}

// AddBE64 appends a number in network byte order.
func (a *Attributes) AddBE64(typ uint16, n uint64) {
	a.AddBytes(typ, binary.BigEndian.AppendUint64(nil, n))
}

// AddString appends a string and a final zero.
func (a *Attributes) AddString(typ uint16, s string) { a.AddBytes(typ, append([]byte(s), 0)) }

// AddNested appends the attributes that fill adds, as the value of one. Together they must be shorter than 64 KiB,
// otherwise AddNested panics.
func (a *Attributes) AddNested(typ uint16, fill func(*Attributes)) {
	b := a.begin(typ | unix.NLA_F_NESTED)
	fill(a)
	a.end(b)
}

// begin appends a header, and returns where it is.
func (a *Attributes) begin(typ uint16) int {
	at := len(*a)
	*a = binary.NativeEndian.AppendUint16(append(*a, 0, 0), typ)
	return at
}

// end writes the length of the attribute that begins there, and pads it.
func (a *Attributes) end(at int) {
	length := len(*a) - at
	if length > math.MaxUint16 {
		panic(fmt.Sprintf("nlmsg: an attribute of %d bytes: must be below 64 KiB", length))
	}
	binary.NativeEndian.PutUint16((*a)[at:], uint16(length))
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

// A Size is how many bytes the value of an attribute has.
type Size struct {
	Type  uint16
	Bytes int
}

// Parse returns b as a list of attributes. The error says that b is none, or that an attribute has not its size.
func Parse(b []byte, sizes ...Size) (Attributes, error) {
	for rest := b; len(rest) > 0; {
		typ, value, after, ok := next(rest)
		if !ok {
			return nil, fmt.Errorf("invalid netlink attribute at offset %d of %d", len(b)-len(rest), len(b))
		}
		for _, s := range sizes {
			if s.Type == typ && s.Bytes != len(value) {
				return nil, fmt.Errorf("netlink attribute %d has %d bytes: must be %d", typ, len(value), s.Bytes)
			}
		}
		rest = after
	}
	return b, nil
}

// next returns the first attribute of b, and what follows it; ok is false if b does not begin with an attribute.
func next(b []byte) (typ uint16, value, rest []byte, ok bool) {
	if len(b) < attributeHeader {
		return 0, nil, nil, false
	}
	length := int(binary.NativeEndian.Uint16(b))
	if length < attributeHeader || length > len(b) {
		return 0, nil, nil, false
	}
	typ = binary.NativeEndian.Uint16(b[2:]) &^ flags
	return typ, b[attributeHeader:length:length], b[min(align(length), len(b)):], true
}

// align rounds up to where the next attribute or message begins.
func align(n int) int { return (n + 3) &^ 3 }

// All yields the type and value of each attribute. Bytes that are not an attribute end the list.
func (a Attributes) All() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for rest := []byte(a); ; {
			typ, value, after, ok := next(rest)
			if !ok || !yield(typ, value) {
				return
			}
			rest = after
		}
	}
}

// Bytes returns a value as it is. It is not a copy.
func (a Attributes) Bytes(typ uint16) []byte {
	for rest := []byte(a); ; {
		t, value, after, ok := next(rest)
		if !ok || t == typ {
			return value
		}
		rest = after
	}
}

// Has reports whether the list has an attribute of the type.
func (a Attributes) Has(typ uint16) bool { return a.Bytes(typ) != nil }

// Nested returns the attributes within one.
func (a Attributes) Nested(typ uint16) Attributes { return a.Bytes(typ) }

// String returns a string up to its final zero.
func (a Attributes) String(typ uint16) string {
	s, _, _ := strings.Cut(string(a.Bytes(typ)), "\x00")
	return s
}

// Uint8 returns a number of one byte.
func (a Attributes) Uint8(typ uint16) uint8 {
	return number(a.Bytes(typ), 1, func(b []byte) uint8 { return b[0] })
}

// Uint32 returns a number in the machine's byte order.
func (a Attributes) Uint32(typ uint16) uint32 {
	return number(a.Bytes(typ), 4, binary.NativeEndian.Uint32)
}

// Uint64 returns a number in the machine's byte order.
func (a Attributes) Uint64(typ uint16) uint64 {
	return number(a.Bytes(typ), 8, binary.NativeEndian.Uint64)
}

// BE16 returns a number in network byte order.
func (a Attributes) BE16(typ uint16) uint16 { return number(a.Bytes(typ), 2, binary.BigEndian.Uint16) }

// BE32 returns a number in network byte order.
func (a Attributes) BE32(typ uint16) uint32 { return number(a.Bytes(typ), 4, binary.BigEndian.Uint32) }

// BE64 returns a number in network byte order.
func (a Attributes) BE64(typ uint16) uint64 { return number(a.Bytes(typ), 8, binary.BigEndian.Uint64) }

// number reads a number of so many bytes, 0 if b has another size.
func number[N uint8 | uint16 | uint32 | uint64](b []byte, size int, read func([]byte) N) (n N) {
	if len(b) == size {
		n = read(b)
	}
	return n
}

// Cover reports whether a has each attribute of b, with the same value.
func (a Attributes) Cover(b Attributes) bool {
	for typ, value := range b.All() {
		if !a.Has(typ) || string(a.Bytes(typ)) != string(value) {
			return false
		}
	}
	return true
}
