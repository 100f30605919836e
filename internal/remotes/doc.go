// SPDX-License-Identifier: Apache-2.0

// Package remotes has the workloads of other nodes that this node knows: what they proved, when each was proven last,
// and which classes they have in the loaded table.
//
// What comes in: proven labels, which certificates are trusted, and the classes of a table that was loaded.
// What goes out: the list that the next table is compiled from. It is bounded: for a new workload, others are removed
// that have no connection. The package never changes the table, and reads no clock.
package remotes
