// SPDX-License-Identifier: Apache-2.0

// Package packet parses what NFQUEUE hands over, an IP packet with TCP in it or an
// ICMP error that quotes one, and writes the packets of the signed handshake.
//
// Bytes come in and a value goes out that points into them; operations append another
// packet to a buffer of the caller, which must not overlap. Nothing is allocated but
// what the buffer lacks and, when a packet is too big, its error. The package keeps no
// state and decides nothing: which operation a packet needs, and with what numbers,
// is for the state machine.
//
// With tokens T1, T2 and T3, P the size of T3, and the kernels' own numbers c and s:
//
//	packet             seq on the wire      ack on the wire  payload        written by, taken off by
//	SYN                c − len(T1) − P      –                T1             AppendSYN, AppendStrippedSYN
//	SYN-ACK            s − len(T2)          c + 1 − P        T2             AppendSYNACK, AppendStrippedSYNACK
//	client's first     c + 1 − P            s + 1            T3, then data  AppendProof, AppendStrippedProof
//	                   c + 1 − P            s + 1            T3             AppendProofAlone, AppendStrippedProof
//	RST before proof   as is                its ack − P      as is          AppendReset, AppendStrippedReset
//	ICMP errors quote seq on the wire                                       AppendShifted
//
// AppendRefusal makes a reset of a SYN-ACK, AppendResetOf one that answers a packet.
//
// The first three carry this option, right behind TCP's fixed header, so that it is the
// first of its kind and can be matched at a fixed place:
//
//	offset size meaning
//	     0    1 kind, 254
//	     1    1 length, 6
//	     2    2 ExID, 0x5448 (RFC 6994)
//	     4    1 type of the token, 1 to 5
//	     5    1 version, 1
//	     6    2 two NOPs, to a multiple of four
//
// Who receives it takes it in any place, once. What taking off leaves is, byte for byte,
// the packet that it was put on, but for what a SYN lost: the application's Fast Open
// option (kind 34, or 254 with ExID 0xf989) and its data, which it sends again.
//
// # Checksums
//
// A queue without the flag NFQA_CFG_F_GSO gets packets as they go over the wire: the
// kernel segments them and completes partial checksums before (skb_gso_segment,
// skb_checksum_help in nfnetlink_queue.c). A packet that a verdict brings back is taken
// as it is and marked CHECKSUM_NONE: nothing completes its checksum or its lengths
// later, and a local receiver verifies it. So Parse refuses a packet whose checksum is
// wrong, before rewriting could make it right, and all that is written is complete.
package packet
