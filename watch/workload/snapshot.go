package workload

import (
	"thole/compiler/policy"
	"thole/internal/condition"
)

// A Snapshot is what ran at one moment. A Partial one says of single cgroups what became of them since the snapshot
// before, and of all else that it is as it was: it has no Parents, Bridges and Conditions.
type Snapshot struct {
	Partial bool
	Gone    []string // of a Partial one: cgroups that are neither in Workloads nor in Unlabelled, or not any more

	Workloads  []policy.Workload     // one a cgroup, by path
	Unlabelled []policy.Unlabelled   // containers without labels, by path
	Parents    []policy.Cgroup       // cgroups that belong to containers alone, by path
	Bridges    []policy.Bridge       // ascending
	Conditions []condition.Condition // what an administrator or a user should know
	Unasked    bool                  // containers run of which an engine has not said yet what they are
}
