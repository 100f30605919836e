// SPDX-License-Identifier: Apache-2.0

// Package routes has packets of this node to its own addresses routed over lo alone.
//
// The routes of the kernel's table "local" come in, changes of it go out. The package never changes a route that has
// not its own protocol number.
//
// nftables sees a packet of this node to itself on the device lo, and looks for a receiver that is bound to lo, or to
// no device. The kernel delivers it by the device of its route, which is, for an address of this node, the device
// that has the address. So a socket that is bound to lo is judged, and another one on the same port gets the datagram.
// With a route over lo in front of the kernel's own, both look for the same sockets.
//
// A sender may also choose the device (SO_BINDTODEVICE, IP_PKTINFO, IP_UNICAST_IF): then the route over lo does not
// match, and the kernel's own would. So a second route is between them, which does not lead to this node: what is sent
// so leaves by the device, and arrives nowhere.
//
//	IPv4, one list for each address and metric; the first route that matches the device counts:
//
//	    local ADDR dev lo                  ours
//	    throw ADDR                         ours: look in the next table
//	    local ADDR dev DEVICE              the kernel's
//
//	IPv6, where no metric comes before that of the kernel's own, and throw matches lo alone: routes with a source
//	prefix come before those without, and the two halves of the address space are any source:
//
//	    local ADDR from ::/1 dev lo metric 1024, and from 8000::/1       ours
//	    ADDR from ::/1 dev DEVICE metric 2048, and from 8000::/1         ours: onto the link
//	    local ADDR dev DEVICE metric 0                                   the kernel's
//
// Packets from outside are delivered as without these routes, and keep their device. IPv6 link-local addresses are left
// alone: they are always routed by a device, and the second route would keep away what neighbours send.
package routes
