// SPDX-License-Identifier: Apache-2.0

// Package live says which of the sockets that there are now are exposed, for a status: it lists them, and has package
// exposure judge them.
//
// What comes in: the kernel's list of sockets, and whose each of them is. What goes out: an account for the status, and
// conditions. A look is bounded in sockets and in time. The package changes nothing.
package live
