package kernel

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// Messages and attributes of conntrack (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctNew = 0 // IPCTNL_MSG_CT_NEW
	ctGet = 1 // IPCTNL_MSG_CT_GET

	ctaTupleOrig = 1
	ctaMark      = 8
	ctaZone      = 18
	ctaMarkMask  = 21
)

// The bounds of Remark.
const (
	remarkBatch = 256 // changes in one datagram
	remarkTries = 8   // how often conntrack is listed anew, until nothing is found
)

// Remark changes the marks of connections: of each whose mark has these bits under
// mask, to what change says of it. A change must be one that is not asked for again;
// conntrack is listed until there is none to make. Bits that stay are not written, so
// that rules may write them meanwhile. It returns how many changes it made.
func (c *Conn) Remark(mask, bits uint32, change func(mark uint32) uint32) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	made := 0
	for range remarkTries {
		updates, err := c.marksToChange(mask, bits, change)
		if err != nil {
			return made, fmt.Errorf("listing connections: %w", err)
		}
		if len(updates) == 0 {
			return made, nil
		}
		made += len(updates)
		for len(updates) > 0 {
			n := min(remarkBatch, len(updates))
			if err := c.sendUpdates(updates[:n]); err != nil {
				return made, fmt.Errorf("changing the marks of connections: %w", err)
			}
			updates = updates[n:]
		}
	}
	return made, fmt.Errorf("connections with old marks appear again and again: %d tries", remarkTries)
}

// marksToChange lists connections, and returns the messages that change their marks.
func (c *Conn) marksToChange(mask, bits uint32, change func(uint32) uint32) ([]netlink.Message, error) {
	var filter nlmsg.Attributes
	filter.AddBE32(ctaMark, bits)
	filter.AddBE32(ctaMarkMask, mask)
	entries, err := c.execute(conntrack(ctGet, netlink.Dump, unix.AF_UNSPEC, filter))
	if err != nil {
		return nil, err
	}
	var updates []netlink.Message
	for _, e := range entries {
		h, a, err := nlmsg.ParseNetfilter(e)
		if err != nil {
			return nil, err
		}
		mark := a.BE32(ctaMark)
		now := change(mark)
		if mark&mask != bits || now == mark || !a.Has(ctaTupleOrig) {
			continue
		}
		var u nlmsg.Attributes
		u.AddBytes(ctaTupleOrig|unix.NLA_F_NESTED, a.Bytes(ctaTupleOrig))
		if a.Has(ctaZone) {
			u.AddBytes(ctaZone, a.Bytes(ctaZone))
		}
		u.AddBE32(ctaMark, now&(now^mark))
		u.AddBE32(ctaMarkMask, now^mark)
		updates = append(updates, conntrack(ctNew, 0, h.Family, u)) // not Create: a connection that ended stays so
	}
	return updates, nil
}

// conntrack returns a message to ctnetlink.
func conntrack(typ uint16, flags netlink.HeaderFlags, family uint8, a nlmsg.Attributes) netlink.Message {
	typed := nlmsg.NetfilterType(unix.NFNL_SUBSYS_CTNETLINK, typ)
	return nlmsg.Netfilter(typed, flags, nlmsg.NetfilterHeader{Family: family}, a)
}

// sendUpdates sends messages that are answered only where they fail. A connection that
// ended meanwhile is none.
func (c *Conn) sendUpdates(updates []netlink.Message) error {
	if err := c.makeRoom(&batch{messages: updates}); err != nil {
		return err
	}
	if err := c.drain(); err != nil {
		return err
	}
	c.stale = true
	if _, err := c.nl.SendMessages(updates); err != nil {
		return err
	}
	answers, err := c.answers()
	c.stale = err != nil
	if errors.Is(err, unix.ENOBUFS) {
		return nil // answers are lost: the next listing says what is left
	}
	for _, a := range answers {
		if a.err != nil && !errors.Is(a.err, unix.ENOENT) {
			return a.err
		}
	}
	return err
}
