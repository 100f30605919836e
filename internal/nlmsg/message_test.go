package nlmsg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// message is one of n bytes of data.
func message(n int) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Length: uint32(HeaderSize + n), Type: 20, Flags: netlink.Request, Sequence: 7, PID: 8,
		},
		Data: bytes.Repeat([]byte{9}, n),
	}
}

func TestMessages(t *testing.T) {
	want := []netlink.Message{message(8), message(5), message(0)}
	var b []byte
	for _, m := range want {
		b = Append(b, m)
	}
	for range len(want) {
		m, rest, err := Next(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[0], m); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		b, want = rest, want[1:]
	}
	if len(b) != 0 {
		t.Errorf("%d bytes are left", len(b))
	}
}

// The library writes the same bytes.
func TestMessagesAreThoseOfTheLibrary(t *testing.T) {
	m := message(8)
	want, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	m.Header.Length = 0
	if got := Append(nil, m); !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
}

func TestIncompleteMessages(t *testing.T) {
	whole := Append(nil, message(8))
	for n := range whole {
		m, _, err := Next(whole[:n])
		if err == nil {
			t.Errorf("%d bytes are taken for a message", n)
		}
		if n >= HeaderSize && m.Header.Sequence != 7 {
			t.Errorf("%d bytes: header %+v", n, m.Header)
		}
	}
	whole[0] = HeaderSize - 1
	if _, _, err := Next(whole); err == nil {
		t.Error("a message that is shorter than its header")
	}
}

func TestAnswer(t *testing.T) {
	refused := binary.NativeEndian.AppendUint32(nil, ^uint32(0)) // -EPERM
	for _, test := range []struct {
		what string
		typ  netlink.HeaderType
		data []byte
		want error
	}{
		{"acknowledged", netlink.Error, make([]byte, 20), nil},
		{"refused", netlink.Error, append(refused, make([]byte, HeaderSize)...), unix.EPERM},
		{"the end of a list", netlink.Done, make([]byte, 4), nil},
		{"the end of a list, without a number", netlink.Done, nil, nil},
		{"a list that failed", netlink.Done, refused, unix.EPERM},
	} {
		m := netlink.Message{Header: netlink.Header{Type: test.typ}, Data: test.data}
		if got := Answer(m); !errors.Is(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.what, got, test.want)
		}
	}
	if err := Answer(netlink.Message{Header: netlink.Header{Type: netlink.Error}}); err == nil {
		t.Error("an answer without a number is taken for an acknowledgement")
	}
}

func TestNetfilter(t *testing.T) {
	typ := NetfilterType(unix.NFNL_SUBSYS_QUEUE, 2)
	head := NetfilterHeader{Family: unix.AF_INET6, Resource: 0x0102}
	m := Netfilter(typ, netlink.Dump, head, written())
	if m.Header.Type != 0x0302 || m.Header.Flags != netlink.Request|netlink.Dump ||
		!bytes.Equal(m.Data[:netfilterHeader], []byte{unix.AF_INET6, 0, 1, 2}) {
		t.Errorf("%+v", m)
	}
	h, a, err := ParseNetfilter(m)
	if err != nil || h != head || !bytes.Equal(a, written()) {
		t.Errorf("%+v, %x, %v", h, a, err)
	}
	for n := range netfilterHeader {
		if _, _, err := ParseNetfilter(netlink.Message{Data: m.Data[:n]}); err == nil {
			t.Errorf("%d bytes are taken for a message", n)
		}
	}
	if _, _, err := ParseNetfilter(netlink.Message{Data: m.Data[:netfilterHeader+3]}); err == nil {
		t.Error("half a header is taken for an attribute")
	}
}

// FuzzMessages: no bytes make Next read beyond them, and all of them are in a message, or behind the last.
func FuzzMessages(f *testing.F) {
	f.Add(Append(Append(nil, message(8)), message(5)))
	f.Add([]byte{HeaderSize - 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := Next(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || len(m.Data) != int(m.Header.Length)-HeaderSize {
				t.Fatalf("%d bytes of data, %d of %d are left", len(m.Data), len(rest), len(b))
			}
			_ = Answer(m)
			_, _, _ = ParseNetfilter(m)
			b = rest
		}
	})
}
