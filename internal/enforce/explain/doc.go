// SPDX-License-Identifier: Apache-2.0

// Package explain says in words why a cgroup belongs to a workload or to none, who gave each label, and how much of the
// policies is enforced for it.
//
// What comes in: a workload as it was found, and the problems of the moment. What goes out: words for "thole get" and
// "thole owner". The package decides nothing.
package explain
