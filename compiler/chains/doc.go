// SPDX-License-Identifier: Apache-2.0

// Package chains writes the chains of the table: the rules that look up what package compiler puts into maps.
//
// What comes in: [Input], which says which maps and sets there are, the epoch, and a few options. What goes out:
// chains as values of package ruleset, and the sets and maps that they look up, empty. All policies have the same
// chains, but for those of audit policies and of ports. So a rule, an expression or a hook is changed here; what a
// policy means, and so the elements of maps, is changed in package compiler.
//
//	build.go         Input, and Build: all chains
//	match.go         the expressions and matches that rules are made of
//	socket.go        lookups of the socket's cgroup
//	output.go        hook output: what this node sends, and is no answer; what stays on the node
//	outside.go       what leaves the node (chains "output_leaves" and "leave…")
//	reply.go         hook output: answers (chains "output_reply…" and "answer…")
//	input.go         hook input
//	ask.go           lookups of the pair of sender and listener (chains "ask…", "ingress", "egress", "remember…")
//	nat.go           the address that was called, if NAT changed it (chain "called")
//	settle.go        what is allowed
//	refuse.go        what is denied
//	audit.go         what an audit policy would deny
//	ports.go         chains that decide by ports
//	tunnel.go        packets around judged packets: tunnels, WireGuard
//	containers.go    containers with a network of their own
//	bridge_table.go  the table of family bridge
//	fleet.go         connections with other nodes
//	sets.go          sets and maps that the compiler fills
//	dynamic.go       sets that packets fill
//	names.go         names of chains, sets and counters
//	epoch.go         which epoch a loaded table writes
//
// The package never reads a policy, a workload, a clock, a file or the kernel.
package chains
