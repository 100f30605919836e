package daemon

import "time"

// The limits of the daemon that are not of requests (package api). None is meant to be met in normal use; each bounds
// what one node, one look or one mistake can cost.
const (
	// Of a look at all sockets, for a status.
	maxSockets   = 65_536                 // that are looked at
	socketsTime  = 200 * time.Millisecond // that it may take
	socketsPause = 9                      // times what the last look took, until the next: a tenth of one CPU at most
	socketsShown = 8                      // in the text of a condition

	// Of the daemon itself.
	dockerPatience = 3 * time.Second       // at the start
	triesAtOnce    = 3                     // of a change of the table that fails
	retryFirst     = 50 * time.Millisecond // after a failed change of the table; doubles
	retryLast      = 30 * time.Second
	// how often it is asked whether another program changed the table, beside being told
	driftPoll = time.Second
	readBack  = time.Minute // how often the table is read in any case
	// how often sockets that outlive their cgroup are looked for, while there are some
	endedPoll        = 2 * time.Second
	maxStateFileSize = 64 << 20

	// Changes that are appended to the memory before it is written anew; as many as there are workloads, if that is
	// more.
	leastChanges = 1000
)
