// SPDX-License-Identifier: Apache-2.0

// Package account says to which user a uid is charged, so that no user has the limits of several.
//
// What comes in: a uid, and the file of subordinate uids (subuid(5)). What goes out: the uid of the user who holds it.
// The package decides nothing about rights: a subordinate uid is never treated as its holder, only charged to it.
package account
