// SPDX-License-Identifier: Apache-2.0

// Package queue hands the packets of an NFQUEUE to a function and tells the kernel
// what it said.
//
// A packet comes in with its hook, its mark and all its bytes; a verdict goes out:
// dropped, accepted as it is, or accepted with other bytes, another mark, or both; or to
// be judged anew by the chain that queued it.
// Nothing else is known of a packet here, and nothing is decided. Where no verdict can
// be given, the packet is dropped: without a reader, when the queue or the socket's
// buffer is full, and when a packet is cut off.
//
// One goroutine reads a queue, calls the function and writes the verdict, so packets
// of one queue stay in order. What the kernel guarantees about them is said in package
// packet: segmented, with complete checksums.
package queue
