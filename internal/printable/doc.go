// SPDX-License-Identifier: Apache-2.0

// Package printable writes values so that they cannot control a terminal.
//
// Names, labels, cgroups and files come from other people. A control character in one of them would otherwise reach the
// terminal of the administrator who lists it, and could clear it, colour it, or forge lines. So all text output passes
// one of the functions here. They escape as Go's %q does, but leave double quotes as they are.
//
// JSON and YAML keep the values themselves: what cannot be printed is an escape of that language there.
package printable
