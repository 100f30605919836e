package chains

import (
	"fmt"
	"slices"
	"strconv"
)

// Chains to which elements of verdict maps lead. Those for ports have names of their own (PortChain), and those for
// audit policies, too (Audit).
const (
	Settle                  = "settle"
	Refuse                  = "refuse"
	EgressUnsaid            = "egress_unsaid"
	CalledAllowed           = "called_allowed"
	CalledAllowedButAudited = "called_allowed_but_audited"
)

// SenderMap names the map from a cgroup at a depth to the number of what it sends.
func SenderMap(depth uint8) string { return "sender" + strconv.Itoa(int(depth)) }

// ListenerMap names the map from a cgroup at a depth to the number of what listens there.
func ListenerMap(depth uint8) string { return "listener" + strconv.Itoa(int(depth)) }

// SameSet names the set of the cgroups at a depth, each with its numbers.
func SameSet(depth uint8) string { return "same" + strconv.Itoa(int(depth)) }

// FreeSet names the set of the containers at a depth that are known to be unlabelled.
func FreeSet(depth uint8) string { return "free" + strconv.Itoa(int(depth)) }

// UnknownSet names the set of the parents of containers at a depth.
func UnknownSet(depth uint8) string { return "unknown" + strconv.Itoa(int(depth)) }

// judgedSet names the set of what was allowed in an epoch. The next epoch has a set of its own: a packet that still
// runs the rules of the last one may add to it after it was emptied.
func judgedSet(epoch uint16) string { return fmt.Sprintf("judged_%d", epoch) }

const (
	// JudgedCounter counts what is not remembered, because too much is: it is judged every time.
	JudgedCounter = "judged_full"

	// WireGuardCounter counts handshakes of WireGuard that are not remembered, because too many are.
	WireGuardCounter = "wireguard_full"

	// floodCounter counts packets that might begin a handshake between nodes, and are over a limit.
	floodCounter = "flooded"
)

// AuditCounter names the counter of connections that an audit policy would have denied.
func AuditCounter(policy string) string { return "would_deny_" + policy }

// Counters returns the names of the counters that the rules of Build add to.
func Counters(in Input) []string {
	list := []string{"allowed", "denied", "discarded", "injected", "unlabelled", JudgedCounter, WireGuardCounter}
	for _, a := range in.Audits {
		if c := AuditCounter(a.Policy); !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	if in.Fleet {
		list = append(list, floodCounter)
	}
	return list
}
