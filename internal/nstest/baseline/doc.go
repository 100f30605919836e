// SPDX-License-Identifier: Apache-2.0

// Package baseline builds the program of an earlier commit of the project, with which tests compare the present one: an
// attack that a test claims to stop must succeed there.
//
// What comes in: the repository's history. What goes out: the path of the program (Program). It is built once for each
// machine and version of Go, in the user's cache directory. The package never changes the work tree.
package baseline
