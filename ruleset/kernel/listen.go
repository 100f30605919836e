package kernel

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// ErrLost says that the kernel had more to tell than there was room for: anything may
// have been written.
var ErrLost = errors.New("notifications of nftables were lost")

// A Write is a transaction that changed a table, of any program's.
type Write struct {
	Generation uint32
	PID        uint32 // of the thread, as the first pid namespace counts; 0: the kernel did not say
	Program    string // its name, of up to 15 bytes
	Removed    bool   // the table of family inet is not there after it
}

// String names the program for a message.
func (w Write) String() string {
	if w.PID == 0 {
		return "a program that the kernel did not name"
	}
	return fmt.Sprintf("%q (pid %d)", w.Program, w.PID)
}

// A Listener hears of each transaction that changes one table. It belongs to one
// goroutine; only Close may be called from another.
type Listener struct {
	nl      *netlink.Conn
	table   string
	touched bool // by the transaction whose messages come now
	removed bool // by it
	pending []netlink.Message
}

// listenBuffer holds the messages of a change of some 10,000 elements.
const listenBuffer = 4 << 20

// Listen begins to listen.
func Listen(o Options, table string) (*Listener, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER,
		&netlink.Config{NetNS: o.NetNS, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("listening to nftables: %w", err)
	}
	if err := nl.SetReadBuffer(listenBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("listening to nftables: %w", err), nl.Close())
	}
	return &Listener{nl: nl, table: table}, nil
}

// Close ends a Next that waits, with an error.
func (l *Listener) Close() error { return l.nl.Close() }

// Next waits for the next transaction that changed the table. After ErrLost it may be
// called again; the transaction that comes then may not be the next.
func (l *Listener) Next() (Write, error) {
	for {
		for len(l.pending) > 0 {
			m := l.pending[0]
			l.pending = l.pending[1:]
			w, ok, err := l.hear(m)
			if err != nil {
				return Write{}, fmt.Errorf("listening to nftables: %w", err)
			}
			if ok {
				return w, nil
			}
		}
		var err error
		l.pending, err = l.nl.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			l.touched, l.removed = false, false
			return Write{}, ErrLost
		case err != nil:
			return Write{}, fmt.Errorf("listening to nftables: %w", err)
		}
	}
}

// hear takes one message. Those of a transaction end with the new generation, which
// names who made it (net/netfilter/nf_tables_api.c, nf_tables_fill_gen_info).
func (l *Listener) hear(m netlink.Message) (w Write, ok bool, err error) {
	h, a, err := nlmsg.ParseNetfilter(m)
	if err != nil || m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return w, false, err
	}
	if m.Header.Type != messageType(unix.NFT_MSG_NEWGEN) {
		switch f := family(h.Family); {
		case a.String(tableAttr) != l.table:
		case f == bridge:
			l.touched = true
		case f == inet:
			l.touched = true
			l.removed = m.Header.Type == messageType(unix.NFT_MSG_DELTABLE) ||
				l.removed && m.Header.Type != messageType(unix.NFT_MSG_NEWTABLE)
		}
		return w, false, nil
	}
	ok, removed := l.touched, l.removed
	l.touched, l.removed = false, false
	return Write{
		Removed:    removed,
		Generation: a.BE32(unix.NFTA_GEN_ID),
		PID:        a.BE32(genProcPID),
		Program:    a.String(genProcName),
	}, ok, nil
}

// NFTA_GEN_PROC_PID and NFTA_GEN_PROC_NAME (linux/netfilter/nf_tables.h).
const (
	genProcPID  = 2
	genProcName = 3
)
