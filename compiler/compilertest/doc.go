// SPDX-License-Identifier: Apache-2.0

// Package compilertest reads numbers and epoch out of a table, so that a test can compile the same again.
//
// The daemon keeps both on disk (compiler.Numbers); that they can be read out of the table as well is a second way to
// know them, which tests compare.
package compilertest
