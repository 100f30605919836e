// SPDX-License-Identifier: Apache-2.0

// Package condition names everything that "thole status" may report as a problem or a notice.
//
// A problem needs an administrator: thole status exits 1 while there is one. A notice is something that a user
// may cause alone, with "thole run" or with the image of a container, or it says that nothing runs which a document
// names, or that more is refused than each policy says: it never changes an exit status, so that no user can make a
// node look broken.
//
// Other packages make Conditions; this package only says which kinds there are. docs/OPERATIONS.md has the same
// table for people, and a test holds the two together.
package condition
