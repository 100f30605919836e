// SPDX-License-Identifier: Apache-2.0

// Package certified holds workloads against the certificate of their node.
//
// What comes in: a workload, and what the certificate says of the node. What goes out: the workload with what the
// certificate adds, the labels of it that other nodes receive, and contradictions.
package certified
