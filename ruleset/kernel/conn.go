package kernel

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// Options say where a Conn works.
type Options struct {
	// NetNS is a file descriptor of a network namespace, which Open enters (that takes
	// CAP_SYS_ADMIN). 0 is the one of the calling thread.
	NetNS int
}

// A Conn reads and changes nftables in one network namespace: that of Open, whichever
// thread calls it later. It is safe for concurrent use.
//
// The levels of "socket cgroupv2" count from the cgroup namespace of the thread that
// calls Apply, though.
type Conn struct {
	mu sync.Mutex // held while a request is sent and answered
	nl socket

	// stale: a request failed, and answers to it may come yet. They would be taken for
	// those to the next one.
	stale bool

	queueing queueing
}

// A socket is a *netlink.Conn, or one of a test that fails.
type socket interface {
	Execute(netlink.Message) ([]netlink.Message, error)
	SendMessages([]netlink.Message) ([]netlink.Message, error)
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	SyscallConn() (syscall.RawConn, error)
	Close() error
}

// Open opens a connection.
func Open(o Options) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: o.NetNS})
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	// Otherwise an error carries the whole message that it is about, up to maxElements. With this option, the library
	// cannot read an extended acknowledgement.
	if err := nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		return nil, errors.Join(fmt.Errorf("opening nftables: %w", err), nl.Close())
	}
	return &Conn{nl: nl}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.nl.Close() }

// Generation returns a number that the kernel raises with each transaction, of any
// program, on any table of the namespace. It is never 0.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation()
}

func (c *Conn) generation() (uint32, error) {
	replies, err := c.execute(request(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil))
	if err != nil {
		return 0, fmt.Errorf("reading the generation: %w", err)
	}
	if len(replies) != 1 {
		return 0, fmt.Errorf("reading the generation: %d answers", len(replies))
	}
	_, a, err := nlmsg.ParseNetfilter(replies[0])
	return a.BE32(unix.NFTA_GEN_ID), err
}

// request returns a message to nf_tables.
func request(typ uint16, flags netlink.HeaderFlags, f family, a nlmsg.Attributes) netlink.Message {
	return nlmsg.Netfilter(messageType(typ), flags, nlmsg.NetfilterHeader{Family: uint8(f)}, a)
}

// messageType returns the netlink type of a message of nf_tables.
func messageType(typ uint16) netlink.HeaderType {
	return nlmsg.NetfilterType(unix.NFNL_SUBSYS_NFTABLES, typ)
}

// execute sends a request and returns its answers. c.mu is held.
func (c *Conn) execute(m netlink.Message) ([]netlink.Message, error) {
	if err := c.drain(); err != nil {
		return nil, err
	}
	replies, err := c.nl.Execute(m)
	c.stale = err != nil
	return replies, err
}

// drain throws away the answers to a request that failed.
func (c *Conn) drain() error {
	if !c.stale {
		return nil
	}
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1)
	readErr := raw.Read(func(fd uintptr) bool {
		for err = nil; !errors.Is(err, unix.EAGAIN); {
			_, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
				return true
			}
		}
		return true
	})
	if readErr != nil {
		return readErr
	}
	if !errors.Is(err, unix.EAGAIN) {
		return err
	}
	c.stale = false
	return nil
}
