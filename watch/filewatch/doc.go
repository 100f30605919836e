// SPDX-License-Identifier: Apache-2.0

// Package filewatch watches files that people change: a directory of policy files, and single files such as keys.
//
// What comes in: the kernel's events (inotify) about each directory on the way to a file. What goes out: what the files
// hold, or that one of them has changed. The package reads files, and writes none.
package filewatch
