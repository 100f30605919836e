// SPDX-License-Identifier: Apache-2.0

// Package policy is the vocabulary of policies: documents, rules, selectors, labels, and the
// workloads to which they apply.
//
// What comes in: YAML (Parse). What goes out: one valid set of documents, or the mistake
// that stands first, with its position. There are three passes:
//
//	strict    YAML text → nodes with positions (package strict)
//	decode    nodes → documents; every key and word is known
//	validate  documents → one valid set (names, what is bound once)
//
// What a selector, a cidr or sameLabels matches is here, too, with the readings of doubtful
// labels (Identify, Use). What a set of policies allows is package compiler's.
//
// The package never reads a clock, a file, a socket or the kernel.
package policy
