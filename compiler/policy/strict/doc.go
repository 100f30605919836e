// SPDX-License-Identifier: Apache-2.0

// Package strict reads YAML of which every character has one meaning, for people and for programs, and says where a
// mistake stands and what is allowed there.
//
// What comes in: the bytes of one file, and shapes: which keys a mapping may have. What goes out: values, or the
// mistake that stands first. A file passes two forms:
//
//	text  checkText     bytes → characters that every reader agrees about
//	YAML  rawDocument   characters → nodes: mappings, lists and scalars, with positions
//
// A Decoder then reads the nodes for a package that knows what they mean (compiler/policy).
//
// The package never reads a clock, a file, a socket or the kernel.
package strict
