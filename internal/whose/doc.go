// SPDX-License-Identifier: Apache-2.0

// Package whose answers which workload a process or a socket belongs to, and which listeners belong to nobody.
//
// In go a number of a process, an address, and a function that says whose a cgroup is. The kernel tells the cgroup in
// which each socket was made: this cgroup is what the table judges by, wherever the process is now. Out come the
// messages of package api. A look at all sockets has bounds, and serves everybody who asks meanwhile.
//
// The package never decides what a cgroup's labels are.
package whose
