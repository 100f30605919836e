// SPDX-License-Identifier: Apache-2.0

// Package inventory reads and writes files of Workload documents that stand for running workloads, so that policies can
// be tried without a node.
//
// Workloads makes workloads of documents; Write makes documents of workloads that run. What is written and read back
// has the same labels, of the same sources, so that the same policies say the same of it. It has no addresses, and the
// ids of its cgroups are not known. The package has no effects.
package inventory
