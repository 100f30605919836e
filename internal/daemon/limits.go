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

	silentTimeout  = 5 * time.Second  // from the connect until the request was read completely
	requestTimeout = 30 * time.Second // reading, deciding and answering
	maxHeaderBytes = 16 << 10

	// Of one user. Root has only the first limit, and those in total.
	maxConnectionsOfRoot  = 128  // at once; see connections for what happens to more
	maxConnectionsPerUser = 128  // at once, of every other user
	maxConcurrentPerUser  = 32   // requests at once: more are answered with a refusal
	requestsPerSecond     = 100  // refill of a user's bucket
	requestsBurst         = 200  // its size
	maxRunsPerUser        = 1000 // living cgroups of thole run

	// Of a client.
	connectPatience = 10 * time.Second // for a daemon to which others connect faster than it accepts
	connectRetry    = time.Millisecond

	// In total.
	maxConnections = 1024   // at once, of all users but root; fewer where file descriptors lack (fileLimits)
	maxLingering   = 16_384 // connections that were evicted or refused, and are closed within silentTimeout
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

	// Of a look at all sockets, for a status.
	maxSockets   = 65_536                 // that are looked at
	socketsTime  = 200 * time.Millisecond // that it may take
	socketsPause = 9                      // times what the last look took, until the next: a tenth of one CPU at most
	socketsShown = 8                      // in the text of a condition

	// Of the daemon itself.
	wantFiles        = 65_536               // file descriptors that the daemon asks the kernel for
	filesPerRequest  = 2                    // the connection, and the pidfd of the process that asks
	reservedFiles    = 512                  // that the connections of users never take: for root and the daemon itself
	lingerPeriod     = 5 * time.Millisecond // between two rounds of closing
	lingerLeast      = 5                    // connections in each
	acceptRetryFirst = time.Millisecond     // after an accept that failed for a lack of something; doubles
	acceptRetryLast  = 100 * time.Millisecond
	leastConnections = 16 // of all users but root, however few file descriptors there are
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
