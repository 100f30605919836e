package routes

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol is the protocol number (rtm_protocol) of the routes of this package.
const Protocol = 212

// The metrics of our IPv6 routes.
const (
	overLoopback = 1024
	ontoLink     = 2048
)

// loopback is the index of the device lo, in every network namespace.
const loopback = 1

// A Route is one of table local, with one device at most.
type Route struct {
	To       netip.Prefix
	From     netip.Prefix // IPv6; the zero Prefix: any source
	Type     uint8        // unix.RTN_LOCAL, …
	Protocol uint8
	Scope    uint8
	Device   int        // 0: none, of type throw
	Source   netip.Addr // that packets get which have none; the zero Addr: not said
	Metric   uint32
}

// A Change makes the routes of one address what they should be. First all of Remove are removed, in this order, then
// all of Add are put in front of what is there, in this order.
type Change struct {
	To          netip.Prefix
	Remove, Add []Route
}

// halves are two sources that are any source together.
var halves = []netip.Prefix{netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1")}

// Plan returns the changes that table local needs, by address, and how many addresses are routed over lo then. The
// routes are in the order in which the kernel lists them.
func Plan(have []Route) (changes []Change, addresses int) {
	places := map[netip.Prefix][]Route{}
	for _, r := range have {
		places[r.To] = append(places[r.To], r)
	}
	for to, list := range places {
		ours, others := divide(list)
		want := wanted(others)
		if len(want) > 0 {
			addresses++
		}
		if !inForce(list, want) {
			changes = append(changes, Change{To: to, Remove: loopbackLast(ours), Add: want})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(a.To.Addr().Compare(b.To.Addr()), cmp.Compare(a.To.Bits(), b.To.Bits()))
	})
	return changes, addresses
}

// Cleared returns the changes that remove all our routes.
func Cleared(have []Route) (changes []Change) {
	ours, _ := divide(have)
	if len(ours) > 0 {
		changes = []Change{{Remove: loopbackLast(ours)}}
	}
	return changes
}

// divide separates our routes from those that lead to this node by another device than lo.
func divide(list []Route) (ours, others []Route) {
	for _, r := range list {
		switch {
		case r.Protocol == Protocol:
			ours = append(ours, r)
		case r.Type != unix.RTN_LOCAL, r.Device == loopback, r.From.IsValid():
		case r.To.Addr().Is6() && r.To.Addr().IsLinkLocalUnicast():
		default:
			others = append(others, r)
		}
	}
	return ours, others
}

// loopbackLast sorts routes so that they can be removed one after the other: were the route over lo gone and the other
// still there, packets of this node to itself would leave it.
func loopbackLast(ours []Route) []Route {
	return slices.SortedStableFunc(slices.Values(ours), func(a, b Route) int { return cmp.Compare(order(a), order(b)) })
}

func order(r Route) int {
	if r.Type == unix.RTN_LOCAL {
		return 1
	}
	return 0
}

// wanted returns our routes for an address that this node has by the others. Each comes before the one that is added
// before it.
func wanted(others []Route) []Route {
	var away, over []Route
	add := func(list *[]Route, r Route) {
		r.Protocol = Protocol
		if !slices.Contains(*list, r) {
			*list = append(*list, r)
		}
	}
	metrics := map[uint32]bool{} // of IPv4, that were seen
	for _, r := range others {
		if r.To.Addr().Is6() {
			for _, half := range halves {
				add(&away, Route{To: r.To, From: half, Type: unix.RTN_UNICAST, Device: r.Device, Metric: ontoLink})
				add(&over, Route{To: r.To, From: half, Type: unix.RTN_LOCAL, Device: loopback, Metric: overLoopback})
			}
			continue
		}
		if metrics[r.Metric] {
			continue
		}
		metrics[r.Metric] = true
		// A route of a wider scope would not be found for what is sent with SO_DONTROUTE.
		add(&away, Route{To: r.To, Type: unix.RTN_THROW, Scope: unix.RT_SCOPE_HOST, Metric: r.Metric})
		add(&over, Route{To: r.To, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Device: loopback,
			Source: r.Source, Metric: r.Metric})
	}
	return append(away, over...)
}

// inForce reports whether our routes in a list of one address are those that are wanted, and, for IPv4, in front.
func inForce(list, want []Route) bool {
	ours, _ := divide(list)
	if len(ours) != len(want) || slices.ContainsFunc(want, func(r Route) bool { return !slices.Contains(ours, r) }) {
		return false
	}
	last := map[uint32]int{} // the rank that came last, by metric
	for _, r := range list {
		if !r.To.Addr().Is4() {
			break
		}
		if rank(r) < last[r.Metric] {
			return false
		}
		last[r.Metric] = rank(r)
	}
	return true
}

// rank is where a route belongs: over lo, away from here, then what is not ours.
func rank(r Route) int {
	switch {
	case r.Protocol != Protocol:
		return 2
	case r.Type == unix.RTN_LOCAL:
		return 0
	}
	return 1
}
