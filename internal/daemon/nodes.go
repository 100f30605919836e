package daemon

import (
	"context"
	"errors"
	"reflect"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/datapath/pki"
)

// What package fleet asks of the loaded table (fleet.Table, fleet.Node).

// Class is a method of fleet.Table.
func (e *enforcer) Class(r policy.Remote) (class uint32, ok bool) {
	if class, ok = e.remotes.ClassOf(r); ok {
		e.remotes.Note(r, e.now())
	}
	return class, ok
}

// Learn is a method of fleet.Table. The error is datapath.TooMany where there is no more room.
func (e *enforcer) Learn(ctx context.Context, r policy.Remote) (err error) {
	e.remotes.Note(r, e.now())
	ordered := e.order(ctx, func() { err = e.learnRemote(r) })
	return errors.Join(ordered, err)
}

// Believe is a method of fleet.Table. What is not known (nil) stays as it was.
func (e *enforcer) Believe(ctx context.Context, node *pki.Node, trust *pki.Trust) error {
	return e.SetCredentials(ctx, credentialsOf(node, trust))
}

// Credentials are what this node's certificate says of its workloads, and whom this node trusts.
type Credentials struct {
	Identity *identity                     // nil: as it was
	Trusts   func(certificate string) bool // nil: as it was
}

func credentialsOf(node *pki.Node, trust *pki.Trust) (c Credentials) {
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
func (e *enforcer) SetCredentials(ctx context.Context, c Credentials) (err error) {
	ordered := e.order(ctx, func() {
		before := e.identity
		e.adoptCredentials(c)
		if !reflect.DeepEqual(before, e.identity) {
			e.state.close() // the next change is stored together with it
		}
		e.endRevoked()
		if err = e.reconcile(); err == nil && !reflect.DeepEqual(before, e.identity) {
			e.storeTable() // where the table stays as it is, nobody else does
		}
	})
	return errors.Join(ordered, err)
}

func (e *enforcer) adoptCredentials(c Credentials) {
	if c.Identity != nil {
		e.identity = c.Identity
	}
	if c.Trusts != nil {
		e.remotes.Trusts = c.Trusts
	}
}

// Forget is a method of fleet.Table. It fails when the daemon stops.
func (e *enforcer) Forget(ctx context.Context) { _ = e.order(ctx, e.removeIdleRemotes) }

// Remotes is a method of fleet.Node.
func (e *enforcer) Remotes() int { return e.remotes.Len() }

// learnRemote has the table contain what another node's workload proved.
func (e *enforcer) learnRemote(r policy.Remote) error {
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
func (e *enforcer) liveRemotes() (map[uint32]bool, error) {
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
func (e *enforcer) removeIdleRemotes() {
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
func (e *enforcer) endRevoked() {
	for _, r := range e.remotes.EndRevoked() {
		e.log.Info("labels that a node proved are no longer believed",
			"node", r.Node, "address", r.Address, "labels", r.Labels.String())
	}
}

// userLabels are those that are sent.
func userLabels(w policy.Workload) map[string]string {
	labels := map[string]string{}
	for key, value := range w.Labels {
		if policy.IsUserLabel(key) {
			labels[key] = value
		}
	}
	return labels
}
