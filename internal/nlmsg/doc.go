// SPDX-License-Identifier: Apache-2.0

// Package nlmsg writes and reads netlink messages and their attributes (linux/netlink.h).
//
// It is the one way to encode them in this project. Connections, requests, answers and multicast groups are those of
// github.com/mdlayher/netlink, whose type Message is used here too. This package has what that library lacks:
//
//   - attributes that are appended to one slice, and read where they are. The library copies each attribute, and each
//     nest once more, which a table of 10,000 elements and a lookup for each SYN cannot afford;
//   - messages of sockets that the library does not own, and answers that say which message failed;
//   - the header of netfilter's messages.
//
// Lengths are checked before anything is read. The package opens no socket and keeps nothing.
package nlmsg
