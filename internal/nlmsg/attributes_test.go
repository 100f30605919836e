package nlmsg

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// written has an attribute of each kind.
func written() Attributes {
	var a Attributes
	a.AddBytes(1, []byte{7})
	a.AddUint32(2, 0x01020304)
	a.AddBE32(3, 0x01020304)
	a.AddBE64(4, 0x0102030405060708)
	a.AddString(5, "lo")
	a.AddNested(6, func(a *Attributes) {
		a.AddBytes(1, binary.BigEndian.AppendUint16(nil, 0x0102))
		a.AddBytes(2, binary.NativeEndian.AppendUint64(nil, 9))
	})
	a.AddBytes(7, nil) // a flag
	return a
}

func TestAttributes(t *testing.T) {
	a, err := Parse(written(), Size{1, 1}, Size{4, 8}, Size{7, 0}, Size{99, 1})
	if err != nil {
		t.Fatal(err)
	}
	nest := a.Nested(6)
	for _, test := range []struct {
		what      string
		got, want any
	}{
		{"one byte", a.Uint8(1), uint8(7)},
		{"the machine's 4 bytes", a.Uint32(2), uint32(0x01020304)},
		{"the network's 4 bytes", a.BE32(3), uint32(0x01020304)},
		{"the network's 8 bytes", a.BE64(4), uint64(0x0102030405060708)},
		{"a string", a.String(5), "lo"},
		{"the network's 2 bytes, in a nest", nest.BE16(1), uint16(0x0102)},
		{"the machine's 8 bytes, in a nest", nest.Uint64(2), uint64(9)},
		{"a flag", a.Has(7), true},
		{"none", a.Has(8), false},
		{"a nest that is not there", a.Nested(8).BE32(1), uint32(0)},
		{"a string that is not there", a.String(8), ""},
		{"one byte of 4", a.Uint8(2), uint8(0)},
		{"4 bytes of 8", a.Uint32(4), uint32(0)},
		{"8 bytes of 4", a.Uint64(2), uint64(0)},
		{"the network's 4 bytes of 8", a.BE32(4), uint32(0)},
		{"the network's 8 bytes of 4", a.BE64(3), uint64(0)},
		{"the network's 2 bytes of 4", a.BE16(3), uint16(0)},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %v, want %v", test.what, test.got, test.want)
		}
	}
	var types []uint16
	for typ := range a.All() {
		types = append(types, typ)
	}
	if !slices.Equal(types, []uint16{1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("types %v", types)
	}
}

// The library writes the same bytes.
func TestAttributesAreThoseOfTheLibrary(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Bytes(1, []byte{7})
	e.Bytes(2, binary.NativeEndian.AppendUint32(nil, 0x01020304))
	e.Uint32(3, 0x01020304)
	e.Uint64(4, 0x0102030405060708)
	e.String(5, "lo")
	e.Nested(6, func(e *netlink.AttributeEncoder) error {
		e.Uint16(1, 0x0102)
		e.Bytes(2, binary.NativeEndian.AppendUint64(nil, 9))
		return nil
	})
	e.Flag(7, true)
	want, err := e.Encode()
	if err != nil || !bytes.Equal(written(), want) {
		t.Errorf("%v: got\n%x, want\n%x", err, written(), want)
	}
}

func TestParseChecksLengths(t *testing.T) {
	for _, test := range []struct {
		what string
		list []byte
		want string // the error
	}{
		{"nothing", nil, ""},
		{"without padding", []byte{5, 0, 1, 0, 9}, ""},
		{"half a header", []byte{4, 0, 1}, "invalid netlink attribute at offset 0 of 3"},
		{"too short for its header", []byte{3, 0, 1, 0}, "invalid netlink attribute at offset 0 of 4"},
		{"no length", []byte{0, 0, 1, 0}, "invalid netlink attribute at offset 0 of 4"},
		{"longer than the list", []byte{4, 0, 1, 0, 5, 0, 2, 0}, "invalid netlink attribute at offset 4 of 8"},
		{"of another size", []byte{5, 0, 1, 0, 9, 0, 0, 0, 5, 0, 2, 0, 9, 0, 0, 0},
			"netlink attribute 2 has 1 bytes: must be 4"},
	} {
		_, err := Parse(test.list, Size{2, 4})
		if got := text(err); got != test.want {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCover(t *testing.T) {
	a := written()
	var part Attributes
	part.AddString(5, "lo")
	part.AddBytes(7, nil)
	if !a.Cover(part) || !a.Cover(nil) || part.Cover(a) {
		t.Error("a part of a list is not covered, or covers the list")
	}
	part.AddBytes(8, nil)
	if a.Cover(part) {
		t.Error("a flag that is not there")
	}
}

// An attribute has at most 64 KiB. Beyond that its length would be another's.
func TestLongestAttribute(t *testing.T) {
	const longest = 1<<16 - 1 - attributeHeader
	var a Attributes
	a.AddBytes(1, make([]byte, longest))
	if got, err := Parse(a); err != nil || len(got.Bytes(1)) != longest {
		t.Errorf("%d bytes, %v", len(got.Bytes(1)), err)
	}
	for name, add := range map[string]func(){
		"bytes":  func() { a.AddBytes(1, make([]byte, longest+1)) },
		"string": func() { a.AddString(1, strings.Repeat("x", longest)) },
		"nest":   func() { a.AddNested(1, func(a *Attributes) { a.AddBytes(1, make([]byte, longest)) }) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			add()
		}()
	}
}

// FuzzAttributes: no list of attributes makes a reader read beyond it, and what Parse accepts, the library reads alike.
func FuzzAttributes(f *testing.F) {
	f.Add([]byte(written()))
	f.Add([]byte{4, 0, 1, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Parse(b)
		if err != nil {
			return
		}
		d, err := netlink.NewAttributeDecoder(b)
		if err != nil {
			t.Fatal(err)
		}
		for typ, value := range a.All() {
			if !d.Next() || d.Type() != typ || !bytes.Equal(d.Bytes(), value) {
				t.Fatalf("attribute %d: %x, the library: %d: %x, %v", typ, value, d.Type(), d.Bytes(), d.Err())
			}
			a.Nested(typ).BE32(typ)
		}
		if d.Next() || d.Err() != nil {
			t.Fatalf("the library reads more: %v", d.Err())
		}
		_ = a.String(unix.NLA_F_NESTED)
	})
}
