// SPDX-License-Identifier: Apache-2.0

// Package cgroupfs reads the cgroup v2 tree and removes empty cgroups from it.
//
// What comes in: a path below the root, or the id of a cgroup. What goes out: ids, names, and whether
// processes live there. The package makes no cgroup and moves no process.
package cgroupfs
