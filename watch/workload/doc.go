// SPDX-License-Identifier: Apache-2.0

// Package workload defines what the watchers of this machine return: a Snapshot of the workloads that run, and the
// facts, which are labels that the daemon itself gives a workload. The package has no effects.
package workload
