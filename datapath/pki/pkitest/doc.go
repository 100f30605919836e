// SPDX-License-Identifier: Apache-2.0

// Package pkitest has a certificate authority for tests.
package pkitest
