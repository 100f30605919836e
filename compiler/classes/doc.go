// SPDX-License-Identifier: Apache-2.0

// Package classes divides workloads into classes that no policy of a set can tell apart, and says what each side of a
// connection between two classes allows.
//
// What comes in: policies, the workloads of this node, and what workloads of other nodes proved. What goes out: a [Set]
// of classes, and for each class and direction a [Row] for each peer: the judgement on each port, and why.
//
//	set.go          classes and peers: which there are, and which workload is in which
//	criteria.go     what the policies ask of a workload: equal answers, one class
//	label_index.go  the peers that sameLabels may match
//	matcher.go      a rule, with the peers that it matches
//	judge.go        rule lists, which classes share if the same policies select them; rows; judgements
//	naming.go       a class comes or goes: whose judgements may change
//	spans.go        what a row says of spans of ports, and a rule list of addresses
//
// New divides everything; Enter and Leave change the set by one class, and cost what that class changes.
//
// The package does not give numbers, knows no table and no chain, and never reads a clock, a file or the kernel. A Set
// must not change while it is read: compiler.Result guards it.
package classes
