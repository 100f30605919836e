// SPDX-License-Identifier: Apache-2.0

// Package daemon is the one place where Thole's parts are put together:
//
//	watch ──► compiler ──► ruleset.Diff ──► ruleset/kernel
//
// What comes in: the policy set (a directory that is followed, or what thole
// apply sends), the workloads that run, and requests over a Unix socket. What
// goes out: changes of the one table, each a single transaction, and answers.
//
// One goroutine, the enforcer's, owns the policy set and the table; all others
// ask it. The package never decides about a packet, never flushes the table, and
// never takes a caller's word for who it is.
//
// It also has what commands do where no daemon runs (ApplyOnce, List, PlanInventory, Cleanup).
package daemon
