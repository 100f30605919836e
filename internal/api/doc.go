// SPDX-License-Identifier: Apache-2.0

// Package api is how commands speak with the daemon: requests and answers, the client, and the server with its limits.
//
// Who asks is known from the socket, never from the request. The server bounds what one user may ask for, so that no
// user keeps root or another user from being answered; `thole run` puts the process that asks into a cgroup of its own.
// What is enforced, and what a question is answered with, is behind the interfaces Changes, State and Table.
package api
