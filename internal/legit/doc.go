// SPDX-License-Identifier: Apache-2.0

// Package legit holds a test of legitimate uses of sockets on one node: each must behave with the table as it does
// without one. It lists situations (tcp_test.go, udp_test.go, group_test.go, early_test.go); a case is a situation with
// an address and a pair of parties. Another test uses real programs (programs_test.go). The package has no code of its
// own.
package legit
