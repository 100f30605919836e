// SPDX-License-Identifier: Apache-2.0

// Package ruleset is a value form of our nftables table: what the compiler makes,
// what the kernel back end loads and reads back, what a dry run prints.
//
// A [Table] holds chains of rules made of a few statements, and sets and maps of
// elements. Text prints it as an nft script, Diff says how one table becomes
// another. Package ruleset/kernel loads it, and package ruleset/simulator runs
// packets through it. All four read the same value, so that what is printed is what is
// loaded and what was tested.
//
// The statements are those that nftables has (nft(8)) and that our table needs;
// a Table cannot hold another program's rules. Nothing here opens a socket,
// reads a file or knows what a policy is. The package imports the standard
// library only.
package ruleset
