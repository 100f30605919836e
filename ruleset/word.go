package ruleset

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"strings"
)

// WordOf returns n as a Word.
func WordOf(n uint64) Word {
	var w Word
	binary.BigEndian.PutUint64(w[8:], n)
	return w
}

// AddrWord returns an IPv4 or IPv6 address as a Word.
func AddrWord(a netip.Addr) Word {
	var w Word
	b := a.AsSlice()
	copy(w[len(w)-len(b):], b)
	return w
}

// Uint64 returns the lower 8 bytes of w: the number that WordOf was given.
func (w Word) Uint64() uint64 { return binary.BigEndian.Uint64(w[8:]) }

// Addr returns w as an address of type t: IPv6Addr, or else IPv4.
func (w Word) Addr(t Type) netip.Addr {
	if t == IPv6Addr {
		return netip.AddrFrom16(w)
	}
	return netip.AddrFrom4([4]byte(w[12:]))
}

// Compare orders words as numbers.
func (w Word) Compare(v Word) int { return w.compare(&v) }

func (w *Word) compare(v *Word) int {
	for _, half := range [2]int{0, 8} {
		a, b := binary.BigEndian.Uint64(w[half:]), binary.BigEndian.Uint64(v[half:])
		if a != b {
			return cmp.Compare(a, b)
		}
	}
	return 0
}

// Name returns the interface's name that Interface made w of.
func (w Word) Name() string { return strings.TrimRight(string(w[:]), "\x00") }

// Number returns a single number.
func Number(n uint64) Value { return Span(n, n) }

// Span returns the numbers from lo to hi, both included.
func Span(lo, hi uint64) Value { return Value{From: WordOf(lo), To: WordOf(hi)} }

// Address returns a single address.
func Address(a netip.Addr) Value { return AddressRange(a, a) }

// AddressRange returns the addresses from lo to hi, both included.
func AddressRange(lo, hi netip.Addr) Value { return Value{From: AddrWord(lo), To: AddrWord(hi)} }

// Prefix returns the addresses of p.
func Prefix(p netip.Prefix) Value {
	lo := p.Masked().Addr()
	hi := lo.AsSlice()
	for bit := p.Bits(); bit < len(hi)*8; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(hi)
	return AddressRange(lo, last)
}

// Interface returns the name of a network interface, of at most 15 bytes.
func Interface(name string) Value {
	var w Word
	copy(w[:len(w)-1], name)
	return Value{From: w, To: w}
}

// CgroupValue returns a cgroup: its path below the root of the hierarchy, for text,
// and its id, for the kernel. An id of 0 is not known.
func CgroupValue(path string, id uint64) Value {
	v := Number(id)
	v.Path = path
	return v
}

// Single says that v is one value and no range.
func (v Value) Single() bool { return v.From == v.To }

// compare orders values by what they are in the kernel. A cgroup's path counts only
// where its id is not known.
func (v *Value) compare(u *Value) int {
	if c := v.From.compare(&u.From); c != 0 {
		return c
	}
	if c := v.To.compare(&u.To); c != 0 {
		return c
	}
	if v.To == (Word{}) {
		return cmp.Compare(v.Path, u.Path)
	}
	return 0
}

// CompareKey orders elements of one set by their keys.
func (e Element) CompareKey(f Element) int { return e.compareKey(&f) }

func (e *Element) compareKey(f *Element) int {
	for i := range min(len(e.Key), len(f.Key)) {
		if c := e.Key[i].compare(&f.Key[i]); c != 0 {
			return c
		}
	}
	return len(e.Key) - len(f.Key)
}

// Compare orders elements of one set by their keys, then by what they map to.
func (e Element) Compare(f Element) int { return e.compare(&f) }

func (e *Element) compare(f *Element) int {
	if c := e.compareKey(f); c != 0 {
		return c
	}
	return cmp.Or(
		cmp.Compare(e.Number, f.Number),
		cmp.Compare(e.Verdict.Kind, f.Verdict.Kind),
		cmp.Compare(e.Verdict.Chain, f.Verdict.Chain),
	)
}
