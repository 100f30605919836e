// SPDX-License-Identifier: Apache-2.0

// Package kernel loads a ruleset.Table into nftables and reads it back.
//
// A Conn sends a ruleset.Change as one netlink batch, which is one transaction: all
// of it is loaded, or nothing. It reads what is loaded as a Table, whoever wrote it,
// so that loading is comparing: Diff(Read, wanted), then Apply. It never reads, makes
// or removes anything of another table than the one it was given the name of.
//
// The expressions that load a field or set it are one table for both directions
// (fields.go). The others are encoded by google/nftables/expr (encode.go) and decoded
// here (decode.go). Messages are written and read here, by internal/nlmsg, for what that
// library (v0.3.0) lacks:
//
//   - Flush (conn.go) cannot name a generation, so a race with another writer goes
//     unseen; it asks for an acknowledgement of each message and an echo of each rule,
//     which overflows the receive buffer of a large batch after the kernel committed;
//   - a list of elements is one message (set.go, makeElemList), which the 16 bits of
//     an attribute's length limit to some 1,500 elements;
//   - an expression cannot name one of the two tuples of a connection, nor say that a
//     changed address of IPv6 is in the checksums behind it;
//   - expressions it does not know are left out silently when a rule is read
//     (expr/expr.go, exprsFromBytes): socket and byteorder among them; "ct set" is
//     read as a load (expr/ct.go); verdicts of a map's elements are lost, and a
//     verdict map is read as a set of verdicts (set.go).
package kernel
