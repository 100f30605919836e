package enforce

import (
	"context"
	"errors"
	"net/netip"
	"reflect"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/internal/state"
)

// This file answers the questions of package fleet about the loaded table (fleet.Table, fleet.Node).

// Class is a method of fleet.Table.
func (e *Enforcer) Class(r policy.Remote) (class uint32, ok bool) {
	if class, ok = e.remotes.ClassOf(r); ok {
		e.remotes.Note(r, e.now())
	}
	return class, ok
}

// Learn is a method of fleet.Table. The error is datapath.TooMany where there is no more room.
func (e *Enforcer) Learn(ctx context.Context, r policy.Remote) (err error) {
	e.remotes.Note(r, e.now())
	ordered := e.order(ctx, func() { err = e.learnRemote(r) })
	return errors.Join(ordered, err)
}

// Believe is a method of fleet.Table. What is not known (nil) stays as it was.
func (e *Enforcer) Believe(ctx context.Context, node *pki.Node, trust *pki.Trust) error {
	return e.SetCredentials(ctx, CredentialsOf(node, trust))
}

// Credentials are what this node's certificate says of its workloads, and whom this node trusts.
type Credentials struct {
	Identity *state.Identity               // nil: as it was
	Trusts   func(certificate string) bool // nil: as it was
}

// CredentialsOf returns the credentials of files that were read; nil: they could not be.
func CredentialsOf(node *pki.Node, trust *pki.Trust) (c Credentials) {
	if node != nil {
		c.Identity = identityOf(node)
	}
	if trust != nil {
		c.Trusts = trust.Vouches
	}
	return c
}

// SetCredentials has the table follow credentials. A certificate that requires other labels changes every workload of
// this node, so all that runs is looked at again.
func (e *Enforcer) SetCredentials(ctx context.Context, c Credentials) (err error) {
	ordered := e.order(ctx, func() {
		before := e.identity
		e.UseCredentials(c)
		if !reflect.DeepEqual(before, e.identity) {
			e.state.Close() // the next change is stored together with it
		}
		e.endRevoked()
		if err = e.reconcile(); err == nil && !reflect.DeepEqual(before, e.identity) {
			e.storeTable() // where the table stays as it is, nobody else does
		}
	})
	return errors.Join(ordered, err)
}

// UseCredentials is SetCredentials before Start.
func (e *Enforcer) UseCredentials(c Credentials) {
	if c.Identity != nil {
		e.identity = c.Identity
	}
	if c.Trusts != nil {
		e.remotes.Trusts = c.Trusts
	}
}

// Forget is a method of fleet.Table. It fails when the daemon stops.
func (e *Enforcer) Forget(ctx context.Context) { _ = e.order(ctx, e.removeIdleRemotes) }

// learnRemote has the table contain what another node's workload proved.
func (e *Enforcer) learnRemote(r policy.Remote) error {
	if e.remotes.Has(r) {
		return e.catchUp() // it was not loaded the last time
	}
	before, err := e.remotes.Add(r, e.now(), e.liveRemotes)
	if err != nil {
		return err
	}
	if err = e.catchUp(); err != nil {
		e.remotes.Proven = before
	}
	return err
}

// liveRemotes returns the classes of other nodes' workloads that connections have.
func (e *Enforcer) liveRemotes() (map[uint32]bool, error) {
	live := map[uint32]bool{}
	mask, bits := mark.RemoteMarks()
	_, err := e.conntrack.Remark(mask, bits, func(ctMark uint32) uint32 {
		if class, ok := mark.IsRemote(ctMark); ok {
			live[class] = true
		}
		return ctMark // nothing changes
	})
	return live, err
}

// removeIdleRemotes removes what nobody uses.
func (e *Enforcer) removeIdleRemotes() {
	n, err := e.remotes.RemoveIdle(e.now(), e.liveRemotes)
	if err != nil {
		e.log.Warn("unused classes of other nodes cannot be removed", "error", err)
	}
	if n > 0 {
		e.log.Info("unused classes of other nodes are removed", "classes", n)
		e.attempt(e.reconcile)
	}
}

// endRevoked ends what was proven with certificates that are not trusted any more.
func (e *Enforcer) endRevoked() {
	for _, r := range e.remotes.EndRevoked() {
		e.log.Info("labels that a node proved are no longer believed",
			"node", r.Node, "address", r.Address, "labels", r.Labels.String())
	}
}

// A Node is this node, as the engine of a fleet asks for it (fleet.Node).
type Node struct {
	enforcer *Enforcer
	cgroups  Namer
}

// Node returns this node. cgroups is its cgroup tree.
func (e *Enforcer) Node(cgroups Namer) Node { return Node{e, cgroups} }

// Remotes returns how many classes of other nodes' workloads the loaded table has.
func (n Node) Remotes() int { return n.enforcer.remotes.Len() }

// Workload is a method of datapath.Daemon. As in the table, the deepest cgroup that says
// something counts.
func (n Node) Workload(cgroup uint64) (datapath.Workload, bool) {
	v := n.enforcer.View()
	if w, ok := v.local(cgroup); ok {
		return w, true
	}
	id, _ := v.roster.above(n.cgroups, cgroup)
	return v.local(id)
}

// Allows is a method of datapath.Daemon.
func (n Node) Allows(from, to uint32, port uint16) bool {
	return n.enforcer.View().result.Allows(from, to, policy.TCP, port)
}

// AllowsAddress is a method of datapath.Daemon.
func (n Node) AllowsAddress(from uint32, to netip.AddrPort) bool {
	return n.enforcer.View().result.AllowsAddress(from, to, policy.TCP)
}
