package handshake

import "strconv"

// A Reason is why a packet was refused, or only passed on as nothing proven, though its
// bytes were in order. It is an error, made without allocating. Errors of an Action are
// of this type, token.Reason or packet.Reason, or wrap one.
type Reason uint8

// The reasons.
const (
	Misplaced    Reason = iota + 1 // a token on a packet of another kind
	Unexpected                     // no such packet belongs into this state
	Simultaneous                   // two connects that meet
	Busy                           // T1, while another connection of these ports is pending
	Stale                          // it is for another connection of these ports
	Forgotten                      // nothing is known of its connection: a restart, or too late
	Unproven                       // data before its proof
	Denied                         // by this node's policy
	NotWanted                      // T1 for a socket without labels
	NoThole                        // the peer answered as a machine without Thole
	Full                           // a pool of the table
	OverQuota                      // a node, an address or a workload has too many pending
	endOfReasons
)

var reasons = [endOfReasons]string{
	Misplaced: "misplaced", Unexpected: "unexpected", Simultaneous: "simultaneous", Busy: "busy", Stale: "stale",
	Forgotten: "forgotten", Unproven: "unproven", Denied: "denied", NotWanted: "not-wanted", NoThole: "no-thole",
	Full: "full", OverQuota: "over-quota",
}

// String names r as metrics do.
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func (r Reason) Error() string { return "handshake: " + r.String() }
