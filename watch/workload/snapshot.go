package workload

import (
	"thole/compiler"
	"thole/internal/condition"
)

// A Snapshot is what ran at one moment.
type Snapshot struct {
	Workloads  []compiler.Workload   // one a cgroup, by path
	Unlabelled []compiler.Unlabelled // containers without labels, by path
	Parents    []compiler.Cgroup     // cgroups that belong to containers alone, by path
	Bridges    []compiler.Bridge     // ascending
	Conditions []condition.Condition // what an administrator or a user should know
}
