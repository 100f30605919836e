// SPDX-License-Identifier: Apache-2.0

// Package partition divides all addresses, and all ports, into the classes that no rule of a set of policies can tell
// apart.
//
// What comes in: policies. What goes out: [AddressClasses] and [PortClasses], with the classes that each rule names.
// How policies divide workloads is package compiler/classes'.
//
// A line (all addresses of a family, all ports of a protocol, all ICMP types) is cut wherever something begins or ends
// that a rule names. The parts between the cuts are atoms; atoms that the same rules name are one class.
//
// The package never reads a workload, a clock, a file or the kernel.
package partition
