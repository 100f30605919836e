// SPDX-License-Identifier: Apache-2.0

// Package promise lists what other programs may depend on, for tests that hold it against a file: what was promised
// stays, or CHANGELOG.md says what breaks.
package promise
