// Package datapath will prove workloads' labels between nodes: the NFQUEUE loop,
// the handshake's tokens and its state machine. Nothing is here yet; connections
// between nodes are judged by address (a policy's cidr and any), never by label.
package datapath
