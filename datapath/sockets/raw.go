package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Sender sends IP packets as they are. It is safe for concurrent use.
type Sender struct {
	mu     sync.Mutex // guards the descriptors, which Close gives free
	v4, v6 int
}

// NewSender opens a Sender in the network namespace of the calling thread. Close it.
func NewSender() (*Sender, error) {
	v4, err := rawSocket(unix.AF_INET)
	if err != nil {
		return nil, err
	}
	v6, err := rawSocket(unix.AF_INET6)
	if err != nil {
		unix.Close(v4)
		return nil, err
	}
	return &Sender{v4: v4, v6: v6}, nil
}

// rawSocket opens a socket that takes packets with their IP header: with the protocol
// IPPROTO_RAW both families do, and it receives nothing.
func rawSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("opening a raw socket: %v", err)
	}
	return fd, nil
}

// Close closes the Sender.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v4 < 0 {
		return nil
	}
	err := errors.Join(unix.Close(s.v4), unix.Close(s.v6))
	s.v4, s.v6 = -1, -1
	return err
}

// ErrNoPacket says that what was to be sent is no IP packet.
var ErrNoPacket = errors.New("no IP packet")

// Send sends an IP packet to its destination with a mark, without waiting: where the
// device's queue is full it fails. The device is needed for link-local addresses of
// IPv6, and else not looked at. Of IPv4's header the kernel makes the checksum, and the
// identification if it is zero; all else goes as it is, and through OUTPUT like any
// packet, as one of this socket.
func (s *Sender) Send(packet []byte, mark uint32, device int) error {
	family, to, err := destination(packet, device)
	if err != nil {
		return err
	}
	control := markMessage(mark)
	s.mu.Lock()
	defer s.mu.Unlock()
	fd := s.v4
	if family == unix.AF_INET6 {
		fd = s.v6
	}
	if _, err := unix.SendmsgN(fd, packet, control, to, 0); err != nil {
		return fmt.Errorf("sending a packet of %d bytes: %w", len(packet), err)
	}
	return nil
}

// markMessage is a control message, cmsg(3), that sets SO_MARK for one packet.
func markMessage(mark uint32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	header.Level, header.Type = unix.SOL_SOCKET, unix.SO_MARK
	header.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], mark)
	return b
}

// destination reads an IP header as far as it is needed here.
func destination(packet []byte, device int) (family int, to unix.Sockaddr, err error) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(packet[16:])}, nil
	case len(packet) >= 40 && packet[0]>>4 == 6:
		a := &unix.SockaddrInet6{Addr: [16]byte(packet[24:])}
		if a.Addr[0] == 0xfe && a.Addr[1]&0xc0 == 0x80 {
			a.ZoneId = uint32(device)
		}
		return unix.AF_INET6, a, nil
	}
	return 0, nil, ErrNoPacket
}
