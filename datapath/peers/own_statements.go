package peers

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"thole/datapath/pki"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// The life of an own statement.
const (
	Lifetime  = 75 * time.Second // as it says
	TurnAfter = 45 * time.Second // from then on another takes its place at the next use …
	TurnIn    = 15 * time.Second // … but for a random part of this
	KeepFor   = 15 * time.Second // its key, after it has expired
)

// ownStatements are what this node says for the workloads with one set of labels.
type ownStatements struct{ current, previous *ownStatement }

type ownStatement struct {
	*token.OwnStatement
	node *pki.Node // that signed it
	turn time.Time // of the wall clock, like what follows
	drop time.Time
}

// Own returns the statement of workloads with these labels on this node, and makes one
// if there is none, or if it has been used for long enough. The labels are all that the
// workload has, but for those that tools set: to leave out what the certificate does not
// grant would let the others conclude that the workload has no such label, so nothing is
// said of it then (token.NotGranted).
func (p *Peers) Own(labels map[string]string, now time.Time) (*token.OwnStatement, error) {
	key := setKey(labels)
	p.mu.Lock()
	node := p.node
	set, _ := p.own.get(key, now)
	p.mu.Unlock()
	if set != nil && set.current.usable(node, now) {
		return set.current.OwnStatement, nil
	}
	if err := node.Identity.ValidAt(now); err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.BadCertificate, err)
	}
	if _, err := node.Identity.MayAssert(labels); err != nil {
		return nil, fmt.Errorf("%w: %w", refusal.NotGranted, err)
	}
	fresh, err := newOwn(node, labels, now)
	if err != nil {
		return nil, err
	}
	return p.install(key, fresh, now).OwnStatement, nil
}

func newOwn(node *pki.Node, labels map[string]string, now time.Time) (*ownStatement, error) {
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making an ephemeral key: %v", err)
	}
	own, err := token.Sign(token.Content{
		NotBefore: now, Lifetime: Lifetime, Certificate: node.Identity.Certificate, Labels: labels,
	}, node.Key, ephemeral)
	if err != nil {
		return nil, err
	}
	begin := own.Statement.NotBefore
	return &ownStatement{
		OwnStatement: own, node: node,
		turn: begin.Add(TurnAfter + mathrand.N(TurnIn)),
		drop: begin.Add(Lifetime + KeepFor),
	}, nil
}

// usable reports whether s is used in new handshakes of the node: it is by its present
// certificate, and not too old. A clock that was set back makes a statement of the future,
// which others may refuse.
func (s *ownStatement) usable(node *pki.Node, now time.Time) bool {
	return bytes.Equal(s.node.Identity.Certificate, node.Identity.Certificate) &&
		now.Before(s.turn) && !now.Before(s.Statement.NotBefore)
}

// install makes s the current statement, unless somebody else was faster.
func (p *Peers) install(key string, s *ownStatement, now time.Time) *ownStatement {
	p.mu.Lock()
	defer p.mu.Unlock()
	set, _ := p.own.get(key, now)
	if set == nil {
		set = &ownStatements{}
	}
	if c := set.current; c != nil && c.usable(p.node, now) {
		return c
	}
	p.own.put(key, &ownStatements{current: s, previous: set.current}, s.drop)
	return s
}

// named returns the statement of a label set that a short token names, or nil: the
// current one, or the one before.
func (p *Peers) named(labels map[string]string, fingerprint token.Fingerprint, now time.Time) *token.OwnStatement {
	p.mu.Lock()
	defer p.mu.Unlock()
	set, _ := p.own.get(setKey(labels), now)
	if set == nil {
		return nil
	}
	for _, s := range []*ownStatement{set.current, set.previous} {
		if s != nil && s.Statement.Fingerprint() == fingerprint && !now.After(s.drop) {
			return s.OwnStatement
		}
	}
	return nil
}

// sweepOwn drops keys whose time is over.
func (p *Peers) sweepOwn(now time.Time) {
	p.own.sweep(now)
	for _, e := range p.own.entries {
		u := e.Value.(*used[string, *ownStatements])
		if s := u.value.previous; s != nil && now.After(s.drop) {
			u.value = &ownStatements{current: u.value.current}
		}
	}
}

// keepOwn keeps, of the own statements, those that others may go on to believe: whose
// certificate is still one that this node would believe itself.
func (p *Peers) keepOwn(trust *pki.Trust, now time.Time) {
	valid := make(map[*pki.Node]bool)
	keep := func(s *ownStatement) bool {
		if s == nil {
			return false
		}
		if _, known := valid[s.node]; !known {
			_, err := trust.Verify(s.node.Identity.Certificate, now)
			valid[s.node] = err == nil
		}
		return valid[s.node]
	}
	for key, e := range p.own.entries {
		u := e.Value.(*used[string, *ownStatements])
		set := *u.value
		if !keep(set.previous) {
			set.previous = nil
		}
		if !keep(set.current) {
			p.own.drop(key)
			continue
		}
		u.value = &set
	}
}

// setKey names a label set.
func setKey(labels map[string]string) string {
	var b []byte
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		for _, s := range []string{key, labels[key]} {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	return string(b)
}
