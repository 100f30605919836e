// SPDX-License-Identifier: Apache-2.0

// Package datapath carries the signed handshake: it takes from an NFQUEUE the packets
// whose connections other nodes have to prove, asks the state machine what becomes of
// them, and tells the kernel.
//
// Packets come in, with the mark that says from where (mark.Ungated); verdicts go
// out, with the marks that the table holds against conntrack's (mark.Pending and so
// on), and by a raw socket what the machine wants sent. Labels and policies are the
// Daemon's to know, statements and keys package peers', sockets the kernel's. It never
// sees a connection's data behind the handshake, and never decides by anything but what
// was proven: where it cannot say, it drops, or leaves the packet to be judged by its
// address.
package datapath
