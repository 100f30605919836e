package exposure

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Reason says why sockets are exposed.
type Reason string

// The reasons.
const (
	BoundToDevice Reason = "bound-to-device" // UDP, to another device than lo
	MixedDevices  Reason = "mixed-devices"   // one port, different devices, different owners
	SharedPort    Reason = "shared-port"     // one address, port, device and user, different owners
)

// Loopback is the name of the device over which packets of this node to itself go.
const Loopback = "lo"

// The bounds of Find. Beyond them it says that it is not complete.
const (
	MaxExposures = 32  // in the result
	MaxPerPort   = 128 // sockets that differ, on one port; those of workloads come first
)

// An Owner is what a socket belongs to.
type Owner struct {
	Workload string // its name; "": unlabelled
	Cgroup   string // in which the socket was made; "": it is gone

	// Owners with equal sides are judged alike as receivers, and may send to each other. 0: unlabelled.
	Side uint64

	Selected bool // an enforced policy selects the workload
	Users    bool // a user may start the workload alone: thole run, or a session
}

// A Socket is a listener of TCP, or a socket of UDP that is not connected.
type Socket struct {
	Protocol string     // "tcp" or "udp"
	Address  netip.Addr // an unspecified one: all
	OnlyV6   bool       // for an IPv6 socket: it gets nothing by IPv4
	Port     uint16
	Device   string // that it is bound to; "": none
	UID      uint32
	Owner    Owner
}

// An Exposure is a port with the sockets that are exposed there.
type Exposure struct {
	Reason   Reason
	Protocol string
	Port     uint16
	Sockets  []Socket // without doubles
}

// Selected reports whether an enforced policy selects one of the workloads.
func (e Exposure) Selected() bool {
	return slices.ContainsFunc(e.Sockets, func(s Socket) bool { return s.Owner.Selected })
}

// ByUsers reports whether a user can bring this about alone: each selected workload is one that a user may start.
func (e Exposure) ByUsers() bool {
	return !slices.ContainsFunc(e.Sockets, func(s Socket) bool { return s.Owner.Selected && !s.Owner.Users })
}

// Options are what else is known of the node.
type Options struct {
	// The addresses of this node are routed over lo (thole daemon --local-routes): nftables and the kernel look up
	// receivers with the same device. IPv6 link-local addresses cannot be routed so.
	LocalRoutes bool
}

// Find returns the exposures that concern a workload that a policy selects, by protocol, port and reason. complete is
// false where a bound was reached.
func Find(sockets []Socket, o Options) (found []Exposure, complete bool) {
	complete = true
	concerns := concerned(sockets, o)
	ports := map[place]map[Socket]bool{}
	for _, s := range sockets {
		at := place{s.Protocol, s.Port}
		if !concerns[at] || !judged(s) {
			continue
		}
		s.Address = s.Address.Unmap().WithZone("")
		if ports[at] == nil {
			ports[at] = map[Socket]bool{}
		}
		ports[at][s] = true
	}
	for _, all := range ports {
		list := slices.SortedFunc(keys(all), compare)
		if len(list) > MaxPerPort {
			list, complete = list[:MaxPerPort], false
		}
		found = append(found, onPort(list, o)...)
	}
	found = slices.DeleteFunc(found, func(e Exposure) bool { return !e.Selected() })
	slices.SortFunc(found, func(a, b Exposure) int {
		return cmp.Or(byUsersLast(a, b), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Reason, b.Reason))
	})
	if len(found) > MaxExposures {
		found, complete = found[:MaxExposures], false
	}
	return found, complete
}

// A place is a port of a protocol.
type place struct {
	protocol string
	port     uint16
}

// concerned returns the ports of workloads that more than one socket has, or one that is bound to a device. It is what
// makes Find cheap: most ports are neither.
func concerned(sockets []Socket, o Options) map[place]bool {
	owned, seen, concerns := map[place]bool{}, map[place]int{}, map[place]bool{}
	for _, s := range sockets {
		if judged(s) {
			at := place{s.Protocol, s.Port}
			owned[at] = owned[at] || s.Owner.Side != 0
			seen[at]++
			concerns[at] = owned[at] && (seen[at] > 1 || concerns[at] || o.boundToDevice(s))
		}
	}
	return concerns
}

// judged reports whether a receiver is judged for what is sent to the socket. What is sent to a group is not: its
// sender and the group decide.
func judged(s Socket) bool { return !s.Address.IsMulticast() && s.Address != limitedBroadcast }

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// onPort finds the exposures among the sockets of one protocol and port.
func onPort(list []Socket, o Options) []Exposure {
	devices, shared, bound := map[int]bool{}, map[int]bool{}, map[int]bool{}
	for i, a := range list {
		if a.Owner.Side != 0 && o.boundToDevice(a) {
			bound[i] = true
		}
		for j := range i {
			b := list[j]
			switch {
			case a.Owner.Side == b.Owner.Side:
			case oneGroup(a, b):
				shared[i], shared[j] = true, true
			case o.mixed(a, b):
				devices[i], devices[j] = true, true
			}
		}
	}
	var found []Exposure
	for _, kind := range []struct {
		reason Reason
		which  map[int]bool
	}{{BoundToDevice, bound}, {MixedDevices, devices}, {SharedPort, shared}} {
		if len(kind.which) == 0 {
			continue
		}
		e := Exposure{Reason: kind.reason, Protocol: list[0].Protocol, Port: list[0].Port}
		for i, s := range list {
			if kind.which[i] {
				e.Sockets = append(e.Sockets, s)
			}
		}
		found = append(found, e)
	}
	return found
}

// boundToDevice reports whether datagrams of this node reach the socket, and the table does not find it. TCP is judged
// by the socket that answers.
func (o Options) boundToDevice(s Socket) bool {
	return s.Protocol == "udp" && s.Device != "" && s.Device != Loopback && o.routedByDevice(s.Address)
}

// mixed reports whether nftables, which looks for sockets of lo, may find the one where the kernel, which looks for
// sockets of the address's device, finds the other.
func (o Options) mixed(a, b Socket) bool {
	both, overlap := common(a, b)
	if !overlap || a.Device == b.Device || !o.routedByDevice(both) {
		return false
	}
	return byNftables(a) || byNftables(b)
}

// byNftables reports whether nftables finds the socket for a packet of this node.
func byNftables(s Socket) bool { return s.Device == "" || s.Device == Loopback }

// routedByDevice reports whether packets of this node to the address are routed by another device than lo. An
// unspecified address stands for all that a socket may have.
func (o Options) routedByDevice(a netip.Addr) bool {
	if o.LocalRoutes {
		return a.Is6() && (a.IsLinkLocalUnicast() || a.IsUnspecified())
	}
	return !a.IsLoopback()
}

// oneGroup reports whether the two sockets can be in one group of SO_REUSEPORT (linux/net/core/sock_reuseport.c): who
// is in it has one user, address, port and device.
func oneGroup(a, b Socket) bool {
	return a.Address == b.Address && a.OnlyV6 == b.OnlyV6 && a.Device == b.Device && a.UID == b.UID
}

// common returns an address, maybe an unspecified one, that both sockets get packets for.
func common(a, b Socket) (netip.Addr, bool) {
	switch {
	case a.Address == b.Address:
		return a.Address, true
	case a.covers(b.Address):
		return b.Address, true
	case b.covers(a.Address):
		return a.Address, true
	}
	return netip.Addr{}, false
}

// covers reports whether the socket gets packets for an address or, where that is unspecified, for some of its family.
func (s Socket) covers(a netip.Addr) bool {
	if !s.Address.IsUnspecified() {
		return false
	}
	return s.Address.Is4() == a.Is4() || s.Address.Is6() && !s.OnlyV6
}

// compare puts sockets of workloads first, then those that are bound to a device.
func compare(a, b Socket) int {
	return cmp.Or(
		last(a.Owner.Side == 0, b.Owner.Side == 0),
		last(a.Device == "", b.Device == ""),
		cmp.Compare(a.Owner.Workload, b.Owner.Workload),
		cmp.Compare(a.Owner.Cgroup, b.Owner.Cgroup),
		a.Address.Compare(b.Address),
		cmp.Compare(a.Device, b.Device),
		cmp.Compare(a.UID, b.UID),
		last(a.OnlyV6, b.OnlyV6),
	)
}

func byUsersLast(a, b Exposure) int { return last(a.ByUsers(), b.ByUsers()) }

// last orders what is true behind what is false.
func last(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func keys(m map[Socket]bool) func(func(Socket) bool) {
	return func(yield func(Socket) bool) {
		for s := range m {
			if !yield(s) {
				return
			}
		}
	}
}

// String names the socket: "0.0.0.0:53 of web, bound to lo".
func (s Socket) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s", netip.AddrPortFrom(s.Address, s.Port), s.Owner)
	if s.Device != "" {
		fmt.Fprintf(&b, ", bound to %s", s.Device)
	}
	return b.String()
}

// String names the owner: the workload, or the cgroup of what is unlabelled.
func (o Owner) String() string {
	switch {
	case o.Workload != "":
		return o.Workload
	case o.Cgroup != "":
		return "unlabelled " + o.Cgroup
	}
	return "unlabelled, of a cgroup that ended"
}
