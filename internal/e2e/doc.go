// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the tests that run all of Thole on a real kernel: in
// namespaces of their own, with real sockets and Debian's programs. It has no
// code of its own.
package e2e
