// SPDX-License-Identifier: Apache-2.0

// Package policies holds the policies that come with Thole: examples to copy, of which
// one is the default. They are data; package compiler gives them a meaning. Each file is
// also an input of tests, so that what a reader copies is what was tried.
package policies
