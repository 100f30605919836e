package datapath

import (
	"maps"
	"net/netip"
	"slices"

	"thole/compiler/policy"
	"thole/datapath/handshake"
	"thole/datapath/peers"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// An adapter is what the state machine asks, about the packet at hand.
type adapter struct{ *Engine }

// Own is a method of handshake.Statements.
func (k adapter) Own(w handshake.Workload) *token.OwnStatement {
	own, ok := k.daemon.Workload(uint64(w))
	if !ok || len(own.Labels) == 0 {
		return nil
	}
	statement, err := k.peers.Own(own.Labels, k.now)
	if err != nil {
		k.count(err)
		k.log.Debug("nothing is said of a workload", "labels", own.Labels, "error", err)
		return nil
	}
	return statement
}

// Remembered is a method of handshake.Statements.
func (k adapter) Remembered(own *token.OwnStatement, at netip.AddrPort) *token.Pair {
	return k.peers.Remembered(own, at, k.now)
}

// Named is a method of handshake.Statements.
func (k adapter) Named(side handshake.Side, w handshake.Workload, own, peer token.Fingerprint,
	from netip.Addr) (*token.Pair, error) {
	local, ok := k.daemon.Workload(uint64(w))
	if !ok {
		return nil, refusal.Unknown
	}
	return k.peers.Named(peers.Side(side), local.Labels, own, peer, from, k.now)
}

// Stated is a method of handshake.Statements.
func (k adapter) Stated(
	side handshake.Side, own *token.OwnStatement, statement []byte, from netip.Addr,
) (*token.Pair, error) {
	return k.peers.Stated(peers.Side(side), own, statement, from, k.now)
}

// Class is a method of handshake.Policy.
func (k adapter) Class(claim *token.Claim, from netip.Addr) (handshake.Class, error) {
	identity := peers.IdentityOf(claim)
	r := policy.Remote{Labels: policy.Labels{}, Node: identity.Node, Address: from, Certificate: identity.Reference}
	for key, value := range claim.Labels {
		if policy.IsUserLabel(key) {
			r.Labels[key] = value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(identity.Grants)) {
		if _, said := r.Labels[key]; !said {
			r.Unsaid = append(r.Unsaid, key)
		}
	}
	class, err := k.daemon.Class(r)
	return handshake.Class(class), err
}

// Allows is a method of handshake.Policy.
func (k adapter) Allows(w handshake.Workload, to handshake.Class, port uint16) bool {
	own, ok := k.daemon.Workload(uint64(w))
	return ok && k.daemon.Allows(own.Class, uint32(to), port)
}

// AllowsPlain is a method of handshake.Policy. Who has no labels is the kernel's to judge.
func (k adapter) AllowsPlain(w handshake.Workload, to netip.AddrPort) bool {
	own, ok := k.daemon.Workload(uint64(w))
	return !ok || k.daemon.AllowsAddress(own.Class, to)
}
