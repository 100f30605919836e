// SPDX-License-Identifier: Apache-2.0

// Package remotes has the workloads of other nodes that this node knows: what they proved, when each was proven last,
// and which classes they have in the loaded table.
//
// Input: labels that were proven, the certificates that are trusted, and the classes of the loaded table.
// Output: the list that the next table is compiled from. The list is bounded: for a new workload, others that have no
// connection are removed. The package never changes the table, and reads no clock.
package remotes
