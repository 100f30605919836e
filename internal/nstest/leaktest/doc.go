// SPDX-License-Identifier: Apache-2.0

// Package leaktest tests that all that a test made with nstest is gone after the test, however the test binary ended.
//
// What comes in: functions that make hosts, processes and engines. What goes out: Remains, a list of what they made, as
// it is seen from outside, and a failed test if any of it is still there. A victim is a test binary that is ended on
// purpose:
//
//	func TestVictim(t *testing.T) { leaktest.Victim(t, nil) }
//
//	cmd, in, made := leaktest.StartVictim(t, "panic")
//	in.Close()
//	made.WaitGone(t)
package leaktest
