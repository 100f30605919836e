package nlmsg

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// HeaderSize is the size of a message's header (linux/netlink.h, struct nlmsghdr), all native-endian:
//
//	offset  size  meaning
//	0       4     length with this header
//	4       2     type
//	6       2     flags
//	8       4     sequence number, which the kernel's answers repeat
//	12      4     port id of the sender
const HeaderSize = unix.SizeofNlMsghdr

// Append appends a message with its length. The length that m's header has is not looked at.
func Append(b []byte, m netlink.Message) []byte {
	h := m.Header
	b = binary.NativeEndian.AppendUint32(b, uint32(HeaderSize+len(m.Data)))
	b = binary.NativeEndian.AppendUint16(b, uint16(h.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(h.Flags))
	b = binary.NativeEndian.AppendUint32(b, h.Sequence)
	b = binary.NativeEndian.AppendUint32(b, h.PID)
	b = append(b, m.Data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// Next returns the first message of what was read from a socket, and what follows it. Its data are not copied. If the
// message is not complete, the error says so, and m has the header alone, if at least that is complete.
func Next(b []byte) (m netlink.Message, rest []byte, err error) {
	if len(b) < HeaderSize {
		return m, nil, fmt.Errorf("a netlink message has %d bytes: its header alone has %d", len(b), HeaderSize)
	}
	m.Header = netlink.Header{
		Length:   binary.NativeEndian.Uint32(b),
		Type:     netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])),
		Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
		Sequence: binary.NativeEndian.Uint32(b[8:]),
		PID:      binary.NativeEndian.Uint32(b[12:]),
	}
	if m.Header.Length < HeaderSize || uint64(m.Header.Length) > uint64(len(b)) {
		return m, nil, fmt.Errorf("a netlink message says that it has %d bytes, of %d", m.Header.Length, len(b))
	}
	length := int(m.Header.Length)
	m.Data = b[HeaderSize:length:length]
	return m, b[min(align(length), len(b)):], nil
}

// Answer returns the unix.Errno that a message of type netlink.Error or netlink.Done tells, nil if it is an
// acknowledgement (linux/netlink.h, struct nlmsgerr):
//
//	offset  size  meaning
//	0       4     errno, negative; 0 is an acknowledgement
//	4       16    Error: the header of the message that it is about
//
// What may follow is not read. Where an extended acknowledgement is wanted, the library's connections have it.
func Answer(m netlink.Message) error {
	switch {
	case len(m.Data) < 4 && m.Header.Type == netlink.Done:
		return nil
	case len(m.Data) < 4:
		return fmt.Errorf("an answer of netlink has %d bytes: must be at least 4", len(m.Data))
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); errno != 0 {
		return errno
	}
	return nil
}
