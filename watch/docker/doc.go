// SPDX-License-Identifier: Apache-2.0

// Package docker finds the containers of a container engine, Docker or Podman, in the cgroup tree.
//
// What comes in: the cgroup tree, the engine's answers and events, the ports of its bridges. What goes out: a
// workload.Snapshot of the containers that have a cgroup. The package never changes the engine, a cgroup or a network
// interface.
//
// The cgroup shows that a container runs, and the engine tells what the container is. The cgroup is created some 30 ms
// or more before the first instruction; the engine's event comes at about the same time as that instruction. So the
// cgroup tree decides which containers the engine is asked about:
//
//	CgroupChanged ──► created  ── List ─────┐
//	Find ───────────► starting ── Networks ─┼──► containers ── search ──► Snapshot
//	events, Find ───► inspect  ── Inspect ──┘
//
// After a change of single containers, Find looks at these alone. What cannot be decided by that needs a search: the
// cases are listed at look.
//
// Docker's List answers at once also about a container that is being started, with its labels; Inspect waits until the
// start is done, and tells how the container is connected. Podman's List waits, too: until it has answered, the cgroup
// is closed. The labels of a container never change: a record remains while the
// engine is away, and across restarts of the daemon (Recall).
//
// Containers that share a network namespace (share) can use each other's addresses and ports: the snapshot says which.
//
// Containers are not known in two cases:
//
//   - They began while the engine did not answer. If their parent belongs to containers alone (Snapshot.Parents), they
//     are closed, and otherwise free.
//   - A label is invalid, or the image's labels cannot be told from a person's: the container is closed, and reported.
//
// The types, each with one job:
//
//	Docker       connects to the engine, again and again
//	connection   whether the engine answers
//	session      asks over one connection, and stores the answers
//	client       the engine's API: List, Inspect, Networks, Events
//	queues       the containers that the engine is to be asked about
//	containers   the records, and which containers have a cgroup
//	search       one reading of the cgroup tree, or a look at single containers: the same code for each container
//	places       the cgroups below which the engine puts containers
//	bridges      the bridges of the engine's networks, and their ports
//	startWatch   the containers that are being connected to a bridge
package docker
