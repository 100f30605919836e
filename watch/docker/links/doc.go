// SPDX-License-Identifier: Apache-2.0

// Package links finds out by which ports containers are connected to bridges.
//
// What comes in: the kernel's list of network interfaces (rtnetlink) and the number of a process. What goes out: names
// of bridges and of their ports. The package changes nothing.
package links
