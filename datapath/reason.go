package datapath

import "strconv"

// A Reason is why a Daemon has no class for what was proven. It is an error.
type Reason uint8

// The reasons.
const (
	TooMany  Reason = iota + 1 // as many classes are in use as there may be, in all or of one node
	TooOften                   // the node makes the table change too often
	endOfReasons
)

var reasons = [endOfReasons]string{TooMany: "too-many", TooOften: "too-often"}

// String names r as metrics do.
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func (r Reason) Error() string { return "classes of other nodes' workloads: " + r.String() }
