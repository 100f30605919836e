// SPDX-License-Identifier: Apache-2.0

// Package tbtest has doubles of testing.TB, to test code that ends tests or registers clean-ups.
//
// What comes in: a test, and a function. What goes out: how the function would have ended the test (Record), or its
// clean-ups, when the caller wants them (Scope). The package never fails the test that it was given.
package tbtest
