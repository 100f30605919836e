// SPDX-License-Identifier: Apache-2.0

// Package reference says what a policy means, naively: the independent judge
// that the compiler and the kernel have to agree with.
//
// Judge answers for one connection with loops over policies, rules, peers and
// ports. It knows no classes, no numbers and no caches, and uses nothing of the
// compiler but its vocabulary. Each function has, in quotes, the rule of
// docs/POLICY.md that it implements, not always word for word. Where the document
// says nothing, the comment begins with "Decided:".
//
// Random makes cases (policies, workloads, connections) in which things collide,
// YAML prints their policies, and Shrink makes a failing case small:
//
//	seed → Random → Case → Judge ─┐
//	                  ├─→ compiler ─┴─ agree? ── no → Shrink → Case.String
//	                  └─→ YAML → policy.Parse
//
// The package never reads a clock, a file, a socket or the kernel.
package reference
