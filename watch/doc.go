// SPDX-License-Identifier: Apache-2.0

// Package watch says what runs and what is wanted.
//
// What comes in: the cgroup tree, what Docker says of its containers, the Workload
// documents of the active policy set (bindings), and a policy directory. What goes out: a Snapshot of the workloads
// that run, on demand and with a wake-up when a new one is worth taking; and the
// policy directory's files, each time they changed and came to rest.
//
//	cgroup tree ── inotify ──► Cgroups ── Changed, Scan ──► Snapshot
//	thole.slice ── inotify ──► Scopes ───────┤
//	Docker ── List, Inspect, Events ──► Docker
//	policy directory ── inotify ──► Directory ──► Files
//
// Events say only that something changed, and where, never what: the state is read anew
// each time, all of it (Scan) or that of single cgroups of thole run (Glance), so that a
// lost or late event cannot make the picture wrong for longer than until the next one. A
// snapshot is taken by who applies it, when he applies it: one that waited in a queue
// could be older than a cgroup that has just been made, and applying it would take that
// cgroup's elements out of the table.
//
// Docker has a part of its own in this. That a container runs is said by its cgroup;
// what it is, by Docker. Containers are not known
//
//   - while Docker does not answer, if they began since: where they have a parent of
//     their own (Snapshot.Parents) they are closed, else free;
//   - if a label can not be taken, or the image's labels can not be told from a
//     person's: they are closed, and reported.
//
// The package reads which interfaces there are and never changes them; it never talks
// to nftables or over the network (but for a Docker that listens there), never judges a policy, and
// never removes a cgroup that is not its own or not empty.
package watch
