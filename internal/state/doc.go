// SPDX-License-Identifier: Apache-2.0

// Package state is what survives the daemon on disk: the key that seals labels, the last good policy set, what the
// loaded table does not say of itself, and whether Thole is disarmed. And the lock that one daemon has.
//
// What comes in: values to store. What goes out: the same values, in a later process. A file is replaced as a whole, or
// lines are appended to it; what was half written is not read. The package never decides what is enforced.
package state
