package daemon

import (
	"time"
)

// The limits of the daemon that are not of requests (package api). None is meant to be met in normal use; each bounds
// what one node, one look or one mistake can cost.
const (
	// Of a look at all sockets, for a status.
	maxSockets   = 65_536                 // that are looked at
	socketsTime  = 200 * time.Millisecond // that it may take
	socketsPause = 9                      // times what the last look took, until the next: a tenth of one CPU at most
	socketsShown = 8                      // in the text of a condition

	// Of the daemon itself.
	dockerPatience = 3 * time.Second // at the start
)
