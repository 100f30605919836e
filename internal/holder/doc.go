// SPDX-License-Identifier: Apache-2.0

// Package holder finds the processes that have sockets, by the inodes of the sockets' files.
//
// It reads /proc with the rights of its caller: who is not root is told only of processes of its own. The package
// changes nothing.
package holder
