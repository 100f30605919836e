// SPDX-License-Identifier: Apache-2.0

// Package policyset has the policy set that is in force: its documents, the files that they were read from, and which
// set may take the place of which.
//
// What comes in: policy files, and the active set. What goes out: a valid set, or why it is refused. The package reads
// and writes no file.
package policyset
