// SPDX-License-Identifier: Apache-2.0

// Package process finds a process of this machine by its number, says in which cgroup it is, and ends it with its
// descendants.
//
// What comes in: a number. What goes out: a Process, which a later process of the same number does not equal. The
// package starts no process and moves none.
package process
