// SPDX-License-Identifier: Apache-2.0

// Package simulator runs packets through a table, as the kernel does. Tests compare what it says with the reference
// evaluator and with the kernel.
//
// What comes in: a table of package ruleset, and packets. What goes out: the verdict, the counters, and the marks that
// the rules write.
//
// The package never touches the kernel. Only tests import it.
package simulator
