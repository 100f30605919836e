package daemon

import (
	"net/netip"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/watch/cgroupfs"
)

// A fleetNode is this node, as the engine of a fleet asks for it (fleet.Node).
type fleetNode struct {
	*enforcer
	root cgroupfs.Root
}

// Workload is a method of datapath.Daemon. As in the table, the deepest cgroup that says
// something counts.
func (n fleetNode) Workload(cgroup uint64) (datapath.Workload, bool) {
	v := n.view.Load()
	if w, ok := v.local(cgroup); ok {
		return w, true
	}
	id, _ := v.roster.above(n.root, cgroup)
	return v.local(id)
}

// Allows is a method of datapath.Daemon.
func (n fleetNode) Allows(from, to uint32, port uint16) bool {
	return n.view.Load().result.Allows(from, to, policy.TCP, port)
}

// AllowsAddress is a method of datapath.Daemon.
func (n fleetNode) AllowsAddress(from uint32, to netip.AddrPort) bool {
	return n.view.Load().result.AllowsAddress(from, to, policy.TCP)
}
