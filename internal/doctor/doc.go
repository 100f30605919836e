// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out whether this machine can enforce policies.
//
// It looks at what it can look at, and tries out the rest: Probe runs in a process
// of its own, in a network namespace that ends with it and in a cgroup that is
// removed afterwards, and there loads small tables with each expression that a
// compiled table may contain and sends packets through them. Nothing that was
// there before is changed.
//
// A Finding never says only "missing": it says what follows and what mends it.
package doctor
