// SPDX-License-Identifier: Apache-2.0

// Package sockets tells whose socket a TCP packet belongs to, and sends packets of which
// no socket knows.
//
// Addresses and ports go in, and the id of the socket's cgroup comes out: for a SYN on
// its way out that of the socket that connects, for one on its way in that of the
// listener that it will find. Which listener that is, is the kernel's own search to say:
// among addresses, devices, dual-stack sockets and groups of SO_REUSEPORT. It is asked
// by sock_diag(7) for one socket, and answers with one message; nothing is listed.
//
// Dump and Bound list sockets, for what looks at all of them and not at a packet.
//
// What it does not find is nobody's; what the answer means is for who asks.
package sockets
