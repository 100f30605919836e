// SPDX-License-Identifier: Apache-2.0

// Package watch says what runs.
//
// What comes in: the cgroup tree, the containers that an Engine finds, the Workload documents of the active policy set
// (bindings). What goes out: a workload.Snapshot of the workloads that run, on demand and with a wake-up when a new one
// is worth taking.
//
//	cgroup tree ── inotify ──► Cgroups ── Changed, Scan ──► Snapshot
//	thole.slice ── inotify ──► Scopes ───┤
//	docker.Docker ── Find ──► Engine ────┘
//
// Events say only that something changed, and where, never what: the state is read anew
// each time, all of it (Scan) or that of single cgroups of thole run and containers (Changes), so that a
// lost or late event cannot make the picture wrong for longer than until the next one. A
// snapshot is taken by who applies it, when he applies it: one that waited in a queue
// could be older than a cgroup that has just been made, and applying it would take that
// cgroup's elements out of the table.
//
// The package never talks to nftables, to a container engine or over the network, never judges a policy, and never
// removes a cgroup that is not its own or not empty.
package watch
