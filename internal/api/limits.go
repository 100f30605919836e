package api

import "time"

// The limits of requests, all of them. None is meant to be met in normal use; each bounds what one user, one request
// or one mistake can cost.
const (
	// Of one request.
	maxRunBody     = 64 << 10 // bytes: 64 labels of the longest key and value fit
	maxApplyBody   = 32 << 20 // bytes: twice what a policy directory may hold, for JSON's escapes
	maxOwnerBody   = 64 << 10 // bytes: the inodes of 4096 sockets fit
	maxAnswerError = 4 << 20  // bytes of an error that a client reads
	maxLabels      = 64       // labels of one workload

	silentTimeout  = 5 * time.Second  // from the connect until the request was read completely
	requestTimeout = 30 * time.Second // reading, deciding and answering
	maxHeaderBytes = 16 << 10

	// A request that is too much is refused after a while, so that who asks again at once does not cost all CPUs.
	refusalDelay = 250 * time.Millisecond

	// Of one user, with the subordinate uids that it holds (package account). Root has only the first limit, and those
	// in total.
	maxConnectionsOfRoot  = 128  // at once; see connections for what happens to more
	maxConnectionsPerUser = 128  // at once, of every other user
	maxConcurrentPerUser  = 32   // requests at once: more are answered with a refusal
	requestsPerSecond     = 100  // refill of a user's bucket
	requestsBurst         = 200  // its size
	maxRunsPerUser        = 1000 // cgroups of thole run that live, or that ended and left a socket
	maxLabelSetsPerUser   = 256  // distinct label sets of these: each may be a class of the table
	answerBytesPerSecond  = 8 << 20
	answerBurst           = 32 << 20 // bytes that a user may receive at once
	maxAnswering          = 16 << 20 // bytes of answers that a user has not read yet; one answer always fits

	// Of a client.
	connectPatience = 10 * time.Second // for a daemon to which others connect faster than it accepts
	connectRetry    = time.Millisecond

	// In total.
	maxConnections = 1024   // at once, of all users but root; fewer where file descriptors lack (fileLimits)
	maxLingering   = 16_384 // connections that were evicted or refused, and are closed within silentTimeout
	maxRuns        = 20_000
	maxUserBuckets = 10_000 // users whose rate is known; the idle ones are forgotten first

	// Of the process.
	wantFiles        = 65_536               // file descriptors that the kernel is asked for
	filesPerRequest  = 2                    // the connection, and the pidfd of the process that asks
	reservedFiles    = 512                  // that the connections of users never take: for root and the daemon itself
	lingerPeriod     = 5 * time.Millisecond // between two rounds of closing
	lingerLeast      = 5                    // connections in each
	acceptRetryFirst = time.Millisecond     // after an accept that failed for a lack of something; doubles
	acceptRetryLast  = 100 * time.Millisecond
	leastConnections = 16 // of all users but root, however few file descriptors there are
	shutdownTimeout  = 5 * time.Second
)
