// SPDX-License-Identifier: Apache-2.0

// Package peers keeps what a node knows for the signed handshake: its own statements,
// those of other nodes that it has checked, the keys of each pair of them, and which
// addresses have proven themselves, and where there is no Thole.
//
// A statement's bytes and the address that a packet came from go in, and the time; a
// Pair comes out, or the reason why not. The package knows no packet, reads no clock and
// starts nothing: its owner calls Sweep. It may be used by several goroutines, under one
// lock, which is not held while signatures and keys are computed.
//
// # What is remembered, how long
//
//	what                  key                     at most                          until
//	own statement         label set               4,096 sets, two statements each  used for 45–60 s, kept for 90 s
//	certificate           SHA-256 of its DER      4,096                            an hour
//	checked statement     fingerprint             256 a node, 16,384               Claim.Until
//	pair, with keys       two fingerprints, side  1,024 a node, 16,384             one of the two ends
//	statement for T1      own fingerprint,        8,192                            lifetime − 60 s after T2 full
//	short                 address and port
//	proven address        address                 256 a node, 16,384               10 min after the last proof
//	place that answered   address and port        8,192                            10 min after the last T2
//	plain place           address and port        4,096                            10 min
//
// Every statement carries the generation of the trust (CAs and lists) under which its
// certificate was verified. Under another one it is not used before the certificate was
// verified again, once for all statements with it: so a list that revokes a node ends
// what is known of it at once, and costs the others nothing but that.
//
// # Who can push out whom
//
// Statements, pairs and proven addresses belong to nodes; type fairCache says how they make
// room. To get into it unproven takes a statement that a certified node signed: who has
// no certificate can only send those again that he saw, and pushes out such as nobody
// has proven yet. Proven (M2 or M3 was good: the other side has the ephemeral key, now)
// is what a node does for itself, and to have more of it than the others makes it the
// one that loses.
//
// The others make room by use. Certificates are the CA's to give out. Label sets of this
// node and places are filled by its own workloads; what makes room is
// made again: a signature, T1 full in the place of T1 short, a SYN with T1 answered
// plainly once more.
//
// # What a flood can cost
//
// What is known costs nothing; what is not is paid for in processor time before it is
// verified: about 140 µs for a statement with an unknown certificate, 60 µs with a known
// one, 50 µs for a pair's keys. An address that has proven itself lately has 2 % of a
// processor, all of them 40 %; what answers our own SYN has 20 %; everybody else shares
// 10 %. Identities that are only claimed are never what is limited.
package peers
