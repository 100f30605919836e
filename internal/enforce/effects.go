package enforce

import (
	"thole/compiler/policy"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch/workload"
)

// TableName is the one table that is ours.
const TableName = "thole"

// A Kernel holds the loaded tables. A change is applied as a whole or not at all.
type Kernel interface {
	Read(name string) (*ruleset.Table, error) // nil: there is none
	Apply(ruleset.Change) error
	Generation() (uint32, error) // one more with each transaction of any program
}

// A Conntrack rewrites the marks of living connections (kernel.Conn.Remark).
type Conntrack interface {
	Remark(mask, bits uint32, change func(mark uint32) uint32) (int, error)
}

// A Scanner says what runs now.
type Scanner interface {
	Scan([]policy.Binding) workload.Snapshot
	Changes([]policy.Binding) workload.Snapshot // since the last scan
	Runs([]policy.Binding) workload.Snapshot    // of the changes those of thole run, if the others take long
	Recall(loaded workload.Snapshot)            // takes over what was known when the loaded table was made
}

// A Cgroups knows which cgroups are gone, and what is left of them.
type Cgroups interface {
	Lives(cgroup uint64) (bool, error)
	// Dying returns the id of the cgroup of that path ("": the root), 0 if there is none, and whether the kernel still
	// has some of the cgroups that were removed below it.
	Dying(path string) (id uint64, some bool, err error)
	Sockets() (map[uint64]bool, error) // ids of the cgroups that listed sockets were made in
}

// A Notifier says which transactions changed our table (kernel.Listener).
type Notifier interface {
	Next() (kernel.Write, error) // waits; kernel.ErrLost: something was not said
	Close() error                // ends it
}

// A Namer knows cgroups by their ids.
type Namer interface {
	Named(id uint64) (cgroup string, err error)
}
