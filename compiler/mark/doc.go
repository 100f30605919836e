// SPDX-License-Identifier: Apache-2.0

// Package mark is the layout of conntrack's mark, and what marks and priorities of packets say
// while they are judged. The table writes them, and the daemon and the datapath read them.
//
// The package is constants and arithmetic: it imports nothing.
package mark
