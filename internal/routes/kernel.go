package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// A Kernel reads and changes table local of one network namespace, by rtnetlink(7). It is safe for concurrent use.
type Kernel struct {
	mu      sync.Mutex // from a request to its answer
	conn    *netlink.Conn
	changes *netlink.Conn // multicast messages
	closed  sync.Once
}

// groups are those that tell of what may change the routes of an address. A flush of the routes of a device that goes
// down is not told as such.
var groups = []uint32{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
}

// Open opens the Kernel of the network namespace of the calling thread. Close it.
func Open() (*Kernel, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %v", err)
	}
	k := &Kernel{conn: conn}
	for _, option := range []netlink.ConnOption{netlink.GetStrictCheck, netlink.ExtendedAcknowledge} {
		if err := conn.SetOption(option, true); err != nil {
			return nil, errors.Join(fmt.Errorf("opening rtnetlink: option %d: %v", option, err), k.Close())
		}
	}
	if k.changes, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("opening rtnetlink: %v", err), k.Close())
	}
	for _, group := range groups {
		if err := k.changes.JoinGroup(group); err != nil {
			return nil, errors.Join(fmt.Errorf("listening to rtnetlink: %v", err), k.Close())
		}
	}
	return k, nil
}

// Close closes the Kernel. It ends Wait. A second Close does nothing.
func (k *Kernel) Close() (err error) {
	k.closed.Do(func() {
		err = k.conn.Close()
		if k.changes != nil {
			err = errors.Join(err, k.changes.Close())
		}
	})
	return err
}

// Wait returns when routes may have changed: when the kernel told so, or could not. The error is that the Kernel was
// closed.
func (k *Kernel) Wait() error {
	for {
		messages, err := k.changes.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return nil // messages were lost
		case err != nil:
			return fmt.Errorf("listening to rtnetlink: %w", err)
		}
		for _, m := range messages {
			if concernsLocal(m) {
				return nil
			}
		}
	}
}

// concernsLocal reports whether a message is about anything but a route of another table.
func concernsLocal(m netlink.Message) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
		return true
	}
	return len(m.Data) >= messageSize && m.Data[4] == unix.RT_TABLE_LOCAL
}

// List returns the routes of table local that have one device, and all of ours, in the kernel's order.
func (k *Kernel) List() ([]Route, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		answers, err := k.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump},
			Data:   []byte{family, 0, 0, 0, unix.RT_TABLE_LOCAL, 0, 0, 0, 0, 0, 0, 0},
		})
		if errors.Is(err, unix.ENOENT) {
			continue // the family has no such table
		}
		if err != nil {
			return nil, fmt.Errorf("listing local routes: %w", err)
		}
		for _, answer := range answers {
			r, ok, err := decode(answer.Data)
			if err != nil {
				return nil, fmt.Errorf("listing local routes: %v", err)
			}
			if ok && answer.Data[0] == family {
				list = append(list, r)
			}
		}
	}
	return list, nil
}

// Apply makes a change, all in one system call, so that a process that is killed makes all of it or nothing. A route
// that is to be removed and is not there is no error.
func (k *Kernel) Apply(c Change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var batch []netlink.Message
	for _, r := range c.Remove {
		batch = append(batch, encode(unix.RTM_DELROUTE, 0, r))
	}
	for _, r := range c.Add {
		flags := netlink.Create // in front
		if r.To.Addr().Is6() {
			flags |= netlink.Append // else it would have to be the only one of its metric
		}
		batch = append(batch, encode(unix.RTM_NEWROUTE, flags, r))
	}
	return k.send(batch)
}

// send sends a batch and reads all answers. ESRCH says that a route is not there.
func (k *Kernel) send(batch []netlink.Message) error {
	if _, err := k.conn.SendMessages(batch); err != nil {
		return fmt.Errorf("changing local routes: %w", err)
	}
	var failed error
	for range batch {
		_, err := k.conn.Receive()
		if err != nil && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, fmt.Errorf("changing local routes: %w", err))
		}
	}
	return failed
}

// A struct rtmsg (linux/rtnetlink.h):
//
//	offset  size  what
//	0       1     family
//	1       1     bits of the destination
//	2       1     bits of the source
//	3       1     TOS
//	4       1     table
//	5       1     protocol
//	6       1     scope
//	7       1     type
//	8       4     flags
const messageSize = 12

func encode(kind netlink.HeaderType, flags netlink.HeaderFlags, r Route) netlink.Message {
	data := make([]byte, messageSize)
	data[0], data[1] = unix.AF_INET, uint8(r.To.Bits())
	if r.To.Addr().Is6() {
		data[0] = unix.AF_INET6
	}
	data[4], data[5], data[6], data[7] = unix.RT_TABLE_LOCAL, r.Protocol, r.Scope, r.Type
	var attributes nlmsg.Attributes
	attributes.AddBytes(unix.RTA_DST, r.To.Addr().AsSlice())
	if r.Device != 0 {
		attributes.AddUint32(unix.RTA_OIF, uint32(r.Device))
	}
	if r.From.IsValid() {
		data[2] = uint8(r.From.Bits())
		attributes.AddBytes(unix.RTA_SRC, r.From.Addr().AsSlice())
	}
	if r.Source.IsValid() {
		attributes.AddBytes(unix.RTA_PREFSRC, r.Source.AsSlice())
	}
	if r.Metric != 0 {
		attributes.AddUint32(unix.RTA_PRIORITY, r.Metric)
	}
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(data, attributes...),
	}
}

// decode reads a route. ok is false for one that is in another table, depends on TOS, or is not ours and has not one
// device.
func decode(data []byte) (r Route, ok bool, err error) {
	if len(data) < messageSize {
		return r, false, fmt.Errorf("a message of %d bytes; needed: %d", len(data), messageSize)
	}
	zero := netip.IPv4Unspecified()
	if data[0] == unix.AF_INET6 {
		zero = netip.IPv6Unspecified()
	}
	size := zero.BitLen() / 8
	attributes, err := nlmsg.Parse(data[messageSize:],
		nlmsg.Size{Type: unix.RTA_DST, Bytes: size}, nlmsg.Size{Type: unix.RTA_SRC, Bytes: size},
		nlmsg.Size{Type: unix.RTA_PREFSRC, Bytes: size},
		nlmsg.Size{Type: unix.RTA_OIF, Bytes: 4}, nlmsg.Size{Type: unix.RTA_PRIORITY, Bytes: 4})
	if err != nil {
		return r, false, err
	}
	address := func(typ uint16, none netip.Addr) netip.Addr {
		if a, ok := netip.AddrFromSlice(attributes.Bytes(typ)); ok {
			return a
		}
		return none
	}
	r = Route{
		To:       netip.PrefixFrom(address(unix.RTA_DST, zero), int(data[1])),
		Source:   address(unix.RTA_PREFSRC, netip.Addr{}),
		Device:   int(attributes.Uint32(unix.RTA_OIF)),
		Metric:   attributes.Uint32(unix.RTA_PRIORITY),
		Protocol: data[5], Scope: data[6], Type: data[7],
	}
	if data[2] != 0 {
		r.From = netip.PrefixFrom(address(unix.RTA_SRC, zero), int(data[2]))
	}
	return r, data[4] == unix.RT_TABLE_LOCAL && data[3] == 0 && (r.Device != 0 || r.Protocol == Protocol), nil
}
