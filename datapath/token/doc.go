// SPDX-License-Identifier: Apache-2.0

// Package token holds the bytes of the signed handshake and what they prove.
//
// Bytes come in and values go out, or values come in and bytes go out; what is
// refused has a refusal.Reason. The package knows no packet, no clock and no state: who
// remembers statements, keys and pending connections calls it. It never writes to
// what it is given, and what it parses without copying says so.
//
// Numbers are big-endian. C is the node that opens the connection, S the other.
//
//	token      offset size meaning
//	all             0    1 version, 1
//	                1    1 type: 1 T1 short, 2 T1 full, 3 T2 short, 4 T2 full, 5 T3
//	                2    2 capabilities, 0
//	T1 short        4   16 fingerprint of C's statement
//	               20   16 fingerprint of S's statement
//	               36   16 nonce of C
//	               52   16 M1                                          68 bytes
//	T1 full         4   16 nonce of C
//	               20    2 L, the statement's length
//	               22    L C's statement                             22+L bytes
//	T2 short        4   16 nonce of S
//	               20   16 fingerprint of S's statement
//	               36   16 M2                                          52 bytes
//	T2 full         4   16 nonce of S
//	               20    2 L, the statement's length
//	               22    L S's statement
//	             22+L   16 M2                                        38+L bytes
//	T3              4   16 M3                                          20 bytes
//
//	statement       0    1 version, 1
//	                1    1 suite, 1: Ed25519, X25519, SHA-256
//	                2    8 not before, seconds since 1970
//	               10    2 lifetime, seconds: 1 to 300
//	               12   32 ephemeral X25519 key
//	               44    2 c, the certificate's length
//	               46    2 l, the labels' length
//	               48    c certificate, DER
//	             48+c    l labels
//	           48+c+l   64 Ed25519 signature over "thole/1 statement\0" and all before it
//
//	label           0    1 k, the key's length: at least 1
//	                1    1 v, the value's length
//	                2    k key
//	              2+k    v value
//
// Every length is exact, every key greater than the one before it (as bytes), every
// reserved bit zero; so what is accepted has one encoding.
//
// H is SHA-256 of a statement with its signature, the fingerprint the first 16 bytes
// of H. Who receives a statement computes them; the sender's word is never taken.
//
//	PRK          = HKDF-Extract(salt "thole/1", X25519(eC, eS))
//	k1 ‖ k2 ‖ k3 = HKDF-Expand(PRK, "mac" ‖ HC ‖ HS, 96)
//	X            = version 1 ‖ protocol number 1 ‖ capabilities of C 2 ‖ nonce of C 16
//	M1           = HMAC(k1, X)
//	M2           = HMAC(k2, X ‖ capabilities of S 2 ‖ nonce of S 16)
//	M3           = HMAC(k3, X ‖ capabilities of S 2 ‖ nonce of S 16 ‖ M2)
//
// each HMAC-SHA-256, cut to its first 16 bytes.
//
// # What the bytes alone do not stop
//
// Reflection. A statement that our own node signed is refused (Checker.Self), and keys
// are never derived between two equal ephemeral keys. HC and HS have their places in
// the keys, so that no MAC of one direction is one of the other.
//
// Relay. Who copies another's statement does not have its private key and can compute
// no MAC. Who puts another's ephemeral key in a statement of his own changes H, and
// with it the keys, which he cannot compute either. What is left is to pass tokens on
// unchanged, as a router does; Claim.Admit holds the packet's source against the
// certificate, each time.
//
// Replay. T1 proves nothing about now: T1 full is no secret, and a T1 short can be sent
// again by who saw it for as long as both ephemeral keys live. So M1 only chooses whose
// quota a pending connection counts against. M3 covers the nonce of S: S must draw it
// fresh for each connection, and never again for the same keys.
//
// The nonce of a T1 full is covered by M2 and M3 alone: who changes it on the way ends
// that connection, as by dropping it.
package token
