package daemon

import "time"

// The limits of the daemon, all of them. None is meant to be met in normal use;
// each bounds what one user, one request or one mistake can cost.
const (
	// Of one request.
	maxRunBody     = 64 << 10 // bytes: 64 labels of the longest key and value fit
	maxApplyBody   = 32 << 20 // bytes: twice what a policy directory may hold, for JSON's escapes
	maxAnswerError = 4 << 20  // bytes of an error that a client reads
	maxLabels      = 64       // labels of one workload

	readHeaderTimeout = 5 * time.Second
	requestTimeout    = 30 * time.Second // reading, deciding and answering
	maxHeaderBytes    = 16 << 10

	// Of one user. Root has no limits but the totals.
	maxConnectionsPerUser = 128  // more are closed without an answer
	maxConcurrentPerUser  = 32   // requests at once: more are answered with a refusal
	requestsPerSecond     = 100  // refill of a user's bucket
	requestsBurst         = 200  // its size
	maxRunsPerUser        = 1000 // living cgroups of thole run

	// In total.
	maxConnections = 1024
	maxRuns        = 20_000
	maxUserBuckets = 10_000 // users that are remembered for their rate; the idle ones are forgotten first

	// Of what other nodes prove.
	maxRemotes        = 16_384           // classes of their workloads: as many numbers as there are
	maxRemotesPerNode = 1024             // of them
	remotesPerSecond  = 4                // how often a node may make the table change for what it proves
	remotesBurst      = 256              // as many at once
	maxRemoteBuckets  = 4096             // nodes that are remembered for their rate
	remoteIdle        = 10 * time.Minute // what was not proven for so long, and has no connection, is forgotten
	remoteGrace       = time.Minute      // what makes room was not proven for so long: handshakes may go on
	remoteSweep       = time.Minute      // how often it is looked for
	classPatience     = 2 * time.Second

	// Of the fleet.
	fleetRetry = 2 * time.Second // while it is degraded, all of it is tried again so often

	// Of the daemon itself.
	shutdownTimeout  = 5 * time.Second
	dockerPatience   = 3 * time.Second       // at the start
	triesAtOnce      = 3                     // of a change of the table that fails
	retryFirst       = 50 * time.Millisecond // after a failed change of the table; doubles
	retryLast        = 30 * time.Second
	driftPoll        = time.Second     // how often it is asked whether another program changed the table, beside being told
	readBack         = time.Minute     // how often the table is read in any case
	endedPoll        = 2 * time.Second // how often sockets that outlive their cgroup are looked for, while there are some
	maxStateFileSize = 64 << 20
	leastChanges     = 1000 // that are appended to the memory before it is written anew; as many as there are workloads, if that is more
)
