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
	// how often sockets that outlive their cgroup are looked for, while there are some
	endedPoll = 2 * time.Second

	// Changes that are appended to the state of the table before it is written anew; as many as there are workloads, if
	// that is more.
	leastChanges = 1000
)
