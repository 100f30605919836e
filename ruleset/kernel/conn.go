package kernel

import (
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
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
	nl *netlink.Conn

	queueing queueing
}

// Open opens a connection.
func Open(o Options) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: o.NetNS})
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	// An error else carries the whole message that it is about, up to maxElements.
	if err := nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		nl.Close()
		return nil, fmt.Errorf("opening nftables: %w", err)
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
	replies, err := c.nl.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   nfgenmsg(unix.AF_UNSPEC, 0),
	})
	if err != nil {
		return 0, fmt.Errorf("reading the generation: %w", err)
	}
	if len(replies) != 1 {
		return 0, fmt.Errorf("reading the generation: %d answers", len(replies))
	}
	return messageAttrs(replies[0]).u32(unix.NFTA_GEN_ID), nil
}
