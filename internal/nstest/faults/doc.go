// SPDX-License-Identifier: Apache-2.0

// Package faults makes netlink fail for a program under test.
//
// What comes in: a seed, the command of a program, the rate of failures. What goes out: a command that runs the program
// so that the Injector can fail its system calls on netlink sockets, and counts of the calls that failed. The package
// never changes what a call does that does not fail.
//
//	func TestMain(m *testing.M) { nstest.Main(m, faults.Mode) }
//
//	f := faults.New(seed)
//	cmd := f.Wrap(t, program, argv...)  // start it, then
//	f.Follow(t, pid); f.Set(1000)
package faults
