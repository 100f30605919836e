// SPDX-License-Identifier: Apache-2.0

// Package refusal has the reasons for which the datapath refuses a packet, a token, a statement or a handshake, in one
// list. The reasons to refuse a certificate are errors of package pki; package peers has the names of their counters.
//
// The package decides nothing: the packages that it names return its reasons, and package peers counts them.
package refusal
