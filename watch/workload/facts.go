package workload

// FactPrefix is the prefix of the keys of all facts. No label of a person or tool may have it.
const FactPrefix = "thole/"

// The facts: labels that the daemon sets, and by which every policy can select.
const (
	FactKind      = "thole/kind"      // container, run, unit, user or cgroup
	FactUID       = "thole/uid"       // of the user whose processes these are, or who started them
	FactUser      = "thole/user"      // the name of that user
	FactContainer = "thole/container" // the container's name
	FactImage     = "thole/image"     // the reference by which the container was made
	FactNetwork   = "thole/network"   // host, bridge, none or the name of a network
)
