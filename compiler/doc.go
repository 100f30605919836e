// SPDX-License-Identifier: Apache-2.0

// Package compiler turns policies and workloads into a [thole/ruleset.Table].
//
// What comes in: the documents of package [thole/compiler/policy] and the workloads that
// run now. What goes out: one table value, the classes it speaks of, and warnings. Compile
// is a pure function in named passes:
//
//	classify  workloads, addresses, ports → classes that no policy can tell apart
//	number    classes → numbers, those of the loaded table where possible
//	judge     class × class        → what is allowed, denied, would be denied
//	lower     judgements           → elements of maps
//	build     which maps there are → the chains that look them up
//
// Package [thole/compiler/classes] divides workloads and judges. Package [thole/compiler/partition] divides addresses
// and ports. Package [thole/compiler/chains] builds the chains.
//
// [Result.Change] changes a Result into what Compile would return after the change. Its
// cost depends on the change only: a new class costs its own elements, and those by which
// others name it.
//
// The meaning of a policy is docs/POLICY.md; package compiler/reference says it
// a second time, naively, and tests hold the two together. What the rules write into
// marks is package [thole/compiler/mark].
//
// The package never reads a clock, a file, a socket or the kernel.
package compiler
