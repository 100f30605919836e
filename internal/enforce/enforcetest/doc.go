// SPDX-License-Identifier: Apache-2.0

// Package enforcetest is a kernel for tests of what loads a table: it has one table, and fails when a test wants it to.
package enforcetest
