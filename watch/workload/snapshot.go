package workload

import (
	"thole/compiler/policy"
	"thole/internal/condition"
)

// A Snapshot is what ran at one moment.
type Snapshot struct {
	Workloads  []policy.Workload     // one a cgroup, by path
	Unlabelled []policy.Unlabelled   // containers without labels, by path
	Parents    []policy.Cgroup       // cgroups that belong to containers alone, by path
	Bridges    []policy.Bridge       // ascending
	Conditions []condition.Condition // what an administrator or a user should know
}
