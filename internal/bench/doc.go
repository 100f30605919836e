// SPDX-License-Identifier: Apache-2.0

// Package bench measures what the table costs traffic on one node, against a firewall that only tracks
// connections. It is all tests: "make bench-local" and "make bench-programs" run it, and internal/figures writes
// its figures into docs/PERFORMANCE.md.
package bench
