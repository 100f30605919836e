// SPDX-License-Identifier: Apache-2.0

// Package exposure finds the sockets through which a packet of this node can reach another socket than the one that
// the table judges.
//
// Sockets and their owners come in, Exposures go out. The package looks for no socket itself, and changes none.
//
// For a packet of this node, nftables looks up the receiver with the device lo. The kernel looks it up with the device
// of the route: for an address of this node, that is the device that has the address. So three kinds of sockets can be
// given a packet that was judged for another socket, or for none:
//
//   - a UDP socket that is bound to a device other than lo: the table finds no socket, or another one;
//   - sockets of different owners on one port, where only one of them is bound to a device, or one is bound to lo and
//     the other is not: the table finds the one, the kernel the other. This is the decoy of docs/SECURITY.md;
//   - sockets of different owners in one group of SO_REUSEPORT: a BPF program, which each of them may attach, chooses
//     the receiver, and nftables does not run it. sock_diag does not show such a program.
//
// Two sockets on different addresses do not share a port, and two sockets of one owner are judged alike.
package exposure
