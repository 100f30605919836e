package compiler

// The conntrack mark is ours, whole:
//
//	 31  30   29   28  27       16 15            0
//	┌───┬────┬────┬────┬──────────┬──────────────┐
//	│out│    │dead│seen│  epoch   │    class     │
//	└───┴────┴────┴────┴──────────┴──────────────┘
//
//	class  of who opened the connection; 0: unlabelled, on this node
//	epoch  in which it was allowed; 0: never. Raised by every change that takes
//	       an allowance away, so that what was allowed before is decided again
//	seen   a socket without labels sent its first packet: nobody injected it on lo
//	dead   it was denied after it had been allowed
//	out    it was allowed at OUTPUT, as one that leaves; that says nothing to INPUT
//	30     kept for connections between nodes that are not proven yet
const (
	markClass  = 0x0000ffff
	markEpoch  = 0x0fff0000
	markSeen   = 1 << 28
	markDead   = 1 << 29
	markOut    = 1 << 31
	epochShift = 16
	allOnes    = 0xffffffff
)

// MaxEpoch is the last epoch; the next one is 1 again.
const MaxEpoch = markEpoch >> epochShift
