// SPDX-License-Identifier: Apache-2.0

// Package owner is the client's part of "thole owner": it reads the question, asks the daemon, adds the processes that
// /proc shows to this process, and writes the answer as text. It decides nothing about who is a workload.
package owner
