package enforce

import (
	"time"
)

// None of these limits is meant to be met in normal use; each bounds what one node or one mistake can cost.
const (
	triesAtOnce = 3                     // of a change of the table that fails
	retryFirst  = 50 * time.Millisecond // after a failed change of the table; doubles
	retryLast   = 30 * time.Second
	// how often the generation is read, to see whether another program changed the table
	driftPoll = time.Second
	readBack  = time.Minute // how often the table is read in any case
	// how often it is looked whether something is left of workloads that ended, while there are some
	endedFirst     = 50 * time.Millisecond // after one ended; doubles
	endedPoll      = driftPoll
	releasedAtOnce = 128 // of them, where nothing is left
	openedAtOnce   = 2048

	// Workloads that ended and keep their labels: their classes and members have numbers, of which there are 16,383.
	// Beyond it the oldest become unknown, some at once: each time connections are decided again.
	maxEnded   = 1024
	lostAtOnce = 128
	// Likewise of what one user ran, who is not root: they count towards what the user may run, and the kernel's caches
	// hold cgroups as sockets do. So they must not keep the user from running more.
	maxEndedOfUser = 128
	// Unknown cgroups, each an element of a set. Beyond it the oldest leave the table, which is a problem.
	maxUnknown = 65_536

	// Changes that are appended to the state of the table before it is written anew; as many as there are workloads, if
	// that is more.
	leastChanges = 1000
)
