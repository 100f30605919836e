// SPDX-License-Identifier: Apache-2.0

// Package wire makes packets by hand, and shows a test the packets of its nstest.Hosts.
//
// What comes in: addresses and data, two hosts to be linked, or one to be observed. What goes out: packets with right
// checksums (Segment, Datagram); each frame between the two hosts, which the test lets pass, loses, repeats, holds back
// or replaces (Forwarder); and the TCP and UDP packets that the INPUT hook of one host let pass (Observer). The package
// never opens a socket of TCP or UDP.
//
//	f := wire.Forward(a, "10.0.0.1/24", "", b, "10.0.0.2/24", "") // as nstest.Link
//	f.SetRule(rule), f.Send(frame), f.Passed()
//	o := wire.Observe(host); …; o.Packets()                       // whichever process they were for
//	s := wire.Segment{From: a, To: b, Flags: wire.SYN}; s.Packet() // also Datagram, IPv4, Ethernet
package wire
