// SPDX-License-Identifier: Apache-2.0

// Package explain says in words why a cgroup belongs to a workload or to none, who gave each label, and how much of the
// policies is enforced for it; and which containers the documents name in vain.
//
// What comes in: a workload as it was found, the documents, and the problems of the moment. What goes out: words for
// "thole get", "thole owner" and "thole status". The package decides nothing.
package explain
