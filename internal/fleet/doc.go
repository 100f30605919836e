// SPDX-License-Identifier: Apache-2.0

// Package fleet is this node's part among other nodes: its certificate and whom it trusts, the engine that carries the
// handshakes (package datapath), and how often another node may make the table change.
//
// The table and this node's workloads are behind the interfaces Table and Node. Whatever of the fleet fails, the node
// is enforced all the same.
package fleet
