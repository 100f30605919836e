package enforce

import (
	"time"

	"thole/compiler"
	"thole/compiler/mark"
	"thole/internal/api"
	"thole/internal/state"
	"thole/ruleset"
)

// loaded is the table in the kernel, and what the enforcer knows of it.
type loaded struct {
	table      *ruleset.Table // nil: there is none
	generation uint32         // of nftables, in which the kernel had this table
	readAt     time.Time      // when it was last read
	appliedAt  time.Time      // when it last changed, or was found to be as it should

	// inSync says that the active set, and what follows, are those of the table. It is false after a failure, or when
	// another program changed the table: then everything is compiled.
	inSync     bool
	result     *compiler.Result // nil: none yet. Its table is the loaded one, where that is in sync
	numbers    compiler.Numbers
	warnings   []api.Message // of result
	workloads  *roster
	containers state.Containers
	version    uint64 // grows whenever the workloads, or what the set says of them, may be others

	epoch        uint16
	epochUnknown bool // the table does not say which epochs were used
}

// replacedBy notes a table in the kernel that was not compiled from what is known.
func (l *loaded) replacedBy(table *ruleset.Table) { l.table, l.inSync = table, false }

// epochAfter returns the epoch for a change of the table: the next one where something living may lose an allowance.
func (l *loaded) epochAfter(losesAllowance bool) uint16 {
	if losesAllowance {
		return mark.NextEpoch(l.epoch)
	}
	return l.epoch
}
