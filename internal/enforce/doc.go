// SPDX-License-Identifier: Apache-2.0

// Package enforce brings the one table to what the policy set and the running workloads make of it:
//
//	snapshot ──► delta (membership.go) ──► plan (plan.go) ──► compiler ──► ruleset.Diff ──► ruleset/kernel
//
// What comes in: the policy set (a directory that is followed, or what thole apply sends), snapshots of the workloads
// that run, what other nodes proved, and the changes that other programs make of the table (drift.go). What goes out:
// changes of the table, each a single transaction, and a View from which requests are answered.
//
// One goroutine, that of Run, owns the policy set and what is known of the table; all others ask it. The package never
// decides about a packet and never flushes the table. It finds no workloads itself: all effects are behind the
// interfaces of effects.go.
package enforce
