package compiler

// The conntrack mark is ours, whole:
//
//	 31  30   29   28  27       16 15            0
//	┌───┬────┬────┬────┬──────────┬──────────────┐
//	│out│pend│dead│seen│  epoch   │    class     │
//	└───┴────┴────┴────┴──────────┴──────────────┘
//
//	class  of who opened the connection; 0: unlabelled, on this node
//	epoch  in which it was allowed; 0: never. Raised by every change that takes
//	       an allowance away, so that what was allowed before is decided again
//	seen   a socket without labels sent its first packet: nobody injected it on lo
//	dead   it was denied after it had been allowed
//	out    it was allowed at OUTPUT, as one that leaves; that says nothing to INPUT
//	pend   between nodes: the handshake goes on, and nothing but it passes
const (
	markClass   = 0x0000ffff
	markEpoch   = 0x0fff0000
	markSeen    = 1 << 28
	markDead    = 1 << 29
	markPending = 1 << 30
	markOut     = 1 << 31
	epochShift  = 16
	allOnes     = 0xffffffff

	// The classes of other nodes' workloads: firstRemoteClass to lastRemoteClass.
	remoteMask  = 0xc000
	remoteClass = 0x4000
)

// MaxEpoch is the last epoch; the next one is 1 again.
const MaxEpoch = markEpoch >> epochShift
