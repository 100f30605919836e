package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"thole/datapath/refusal"
)

// A segment is what tests make packets of.
type segment struct {
	v6        bool
	extension []byte // between the IP header and TCP: IPv4 options, or IPv6 headers
	next      byte   // IPv6: the first extension header's number; 0: TCP
	seq, ack  uint32
	flags     Flags
	urgent    uint16
	options   []byte
	payload   []byte
	reverse   bool // from the server to the client
}

var (
	client4 = netip.MustParseAddrPort("192.0.2.1:40000")
	server4 = netip.MustParseAddrPort("198.51.100.2:5432")
	client6 = netip.MustParseAddrPort("[2001:db8::1]:40000")
	server6 = netip.MustParseAddrPort("[2001:db8:1::2]:5432")
)

// Options as Linux writes them.
var (
	// MSS, SACK permitted, timestamps, NOP, window scale
	linuxSYN  = unhex("020405b4 0402080a0000006400000000 01030307")
	linuxData = unhex("0101080a000000640000000a") // NOP, NOP, timestamps
)

func (s segment) ends() (src, dst netip.AddrPort) {
	src, dst = client4, server4
	if s.v6 {
		src, dst = client6, server6
	}
	if s.reverse {
		src, dst = dst, src
	}
	return src, dst
}

// build encodes s, checksums by naive.
func (s segment) build() []byte {
	src, dst := s.ends()
	t := binary.BigEndian.AppendUint16(nil, src.Port())
	t = binary.BigEndian.AppendUint16(t, dst.Port())
	t = binary.BigEndian.AppendUint32(t, s.seq)
	t = binary.BigEndian.AppendUint32(t, s.ack)
	t = append(t, byte((20+len(s.options))/4)<<4, byte(s.flags), 0xfa, 0xf0, 0, 0)
	t = binary.BigEndian.AppendUint16(t, s.urgent)
	t = append(append(t, s.options...), s.payload...)
	protocol := byte(6)
	if s.next != 0 {
		protocol = s.next
	}
	b := append(ipHeader(s.v6, protocol, src.Addr(), dst.Addr(), s.extension, len(t)), t...)
	at := len(b) - len(t)
	binary.BigEndian.PutUint16(b[at+16:], ^naive(b, 6, b[at:]))
	return b
}

func ipHeader(v6 bool, protocol byte, src, dst netip.Addr, extension []byte, size int) []byte {
	var b []byte
	if v6 {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(extension)+size))
		b = append(b, protocol, 64)
	} else {
		b = append(b, 0x45+byte(len(extension)/4), 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+len(extension)+size))
		b = append(b, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0)
	}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), extension...)
	if !v6 {
		binary.BigEndian.PutUint16(b[10:], ^naive(nil, 0, b))
	}
	return b
}

// naive is the Internet checksum of RFC 1071, with the pseudo header of ip where there
// is one: a word at a time.
func naive(ip []byte, protocol byte, b []byte) uint16 {
	if ip != nil {
		addresses := ip[12:20]
		if ip[0]>>4 == 6 {
			addresses = ip[8:40]
		}
		b = bytes.Join([][]byte{addresses, {0, protocol}, binary.BigEndian.AppendUint16(nil, uint16(len(b))), b}, nil)
	}
	if len(b)%2 == 1 {
		b = append(bytes.Clone(b), 0)
	}
	total := uint32(0)
	for ; len(b) > 0; b = b[2:] {
		total += uint32(b[0])<<8 + uint32(b[1])
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func mustParse(t testing.TB, b []byte) Packet {
	t.Helper()
	p, err := Parse(b)
	if err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return p
}

// wantPacket fails unless got is, byte for byte, the segment that is wanted.
func wantPacket(t *testing.T, got []byte, err error, want segment) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if want := want.build(); !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
}

func wantReason(t *testing.T, err error, want refusal.Reason) {
	t.Helper()
	var got refusal.Reason
	if !errors.As(err, &got) || got != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// marked is our option before others.
func marked(typ byte, options []byte) []byte {
	return append([]byte{254, 6, 0x54, 0x48, typ, 1, 1, 1}, options...)
}
