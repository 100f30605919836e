// SPDX-License-Identifier: Apache-2.0

// Package daemon is the one place where Thole's parts are put together:
//
//	watch ──► internal/enforce ◄── internal/api (requests), internal/fleet (other nodes)
//
// What comes in: a configuration, and the effects that the parts work with (host). What goes out: a daemon that runs,
// and the answers to requests, put together from what the parts say.
//
// It also has what commands do where no daemon runs (ApplyOnce, List, PlanInventory, Cleanup). The package never
// decides what a policy means or what is loaded.
package daemon
