// SPDX-License-Identifier: Apache-2.0

// Package thole has no code. Its tests check the project as a whole: the directions of imports, the license of each
// package, and the names of files in the documents.
package thole
