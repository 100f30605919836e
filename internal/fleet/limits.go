package fleet

import "time"

// The limits of what other nodes may cost.
const (
	remotesPerSecond = 4    // how often a node may make the table change for what it proves
	remotesBurst     = 256  // as many at once
	maxRemoteBuckets = 4096 // nodes whose rate is known
	classPatience    = 2 * time.Second
	sweepPeriod      = time.Minute     // how often the table forgets what nobody uses
	retryPeriod      = 2 * time.Second // while the fleet is degraded, all of it is tried again so often
)
