package peers

import "strconv"

// A Reason is why nothing is known of what was asked for. It is an error.
type Reason uint8

// The reasons.
const (
	Unknown      Reason = iota + 1 // a statement that is not known, or none of this workload
	OverBudget                     // to verify it would take more processor time than its source has
	TrustChanged                   // the trusted CAs or their lists changed while it was verified
	endOfReasons
)

var reasons = [endOfReasons]string{Unknown: "unknown", OverBudget: "over-budget", TrustChanged: "trust-changed"}

// String names r as metrics do.
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func (r Reason) Error() string { return "statement: " + r.String() }
