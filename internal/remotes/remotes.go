package remotes

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/datapath/refusal"
)

// The bounds of what other nodes prove. None is reached in normal use.
const (
	Max        = 16_384           // classes of their workloads: as many numbers as there are
	MaxPerNode = 1024             // of them
	Idle       = 10 * time.Minute // a workload that was not proven for so long, and has no connection, is removed
	Grace      = time.Minute      // to make room, only workloads are removed that were not proven for so long
)

// A Set are the workloads of other nodes that the table has or is to have. Its fields belong to one goroutine. ClassOf,
// Note and Len are safe for concurrent use.
type Set struct {
	Proven []policy.Remote // what other nodes' workloads proved: it is replaced, never written to
	Loaded []policy.Remote // those in the loaded table

	// Trusts says whether labels that were proven with a certificate are believed; nil: not known.
	Trusts func(certificate string) bool

	// RevocationPending says that the certificate of one of Proven was revoked, and the loaded table has it still.
	RevocationPending bool

	times   times
	classes classes
}

// A Live function returns the classes of other nodes' workloads that connections have.
type Live func() (map[uint32]bool, error)

// ClassOf returns the class that a Remote has in the loaded table, and whether it is believed; 0 and false where it has
// none.
func (s *Set) ClassOf(r policy.Remote) (class uint32, believed bool) { return s.classes.of(Key(r)) }

// Note notes that a Remote was proven just now.
func (s *Set) Note(r policy.Remote, now time.Time) { s.times.note(Key(r), now) }

// Len returns how many Remotes of the loaded table are believed.
func (s *Set) Len() int { return s.classes.len() }

// Has reports whether the same was proven before, and is believed.
func (s *Set) Has(r policy.Remote) bool {
	return slices.ContainsFunc(s.Proven, func(known policy.Remote) bool { return same(&known, &r) })
}

// Changed reports whether Proven was replaced since it was loaded.
func (s *Set) Changed() bool {
	return len(s.Proven) != len(s.Loaded) || len(s.Loaded) > 0 && &s.Proven[0] != &s.Loaded[0]
}

// Difference compares Proven with Loaded. all is true where the difference is more than new ones and removed ones: one
// of them is believed no more, or is believed again.
func (s *Set) Difference() (learned, forgotten []policy.Remote, all bool) {
	rest := s.Proven
	for _, r := range s.Loaded {
		switch {
		case len(rest) > 0 && same(&rest[0], &r):
			rest = rest[1:]
		case len(rest) > 0 && Key(rest[0]) == Key(r):
			all, rest = true, rest[1:]
		default:
			forgotten = append(forgotten, r)
		}
	}
	return rest, forgotten, all
}

// Add adds a Remote, or believes one again. before is Proven without it, for where the table cannot be changed. The
// error is refusal.TooMany where all that are known have connections, or pki.ErrRevoked where its certificate was
// revoked meanwhile.
func (s *Set) Add(r policy.Remote, now time.Time, live Live) (before []policy.Remote, err error) {
	if s.Trusts != nil && !s.Trusts(r.Certificate) {
		return s.Proven, fmt.Errorf("%w: the certificate of node %s, just now", pki.ErrRevoked, r.Node)
	}
	key := Key(r)
	at := slices.IndexFunc(s.Proven, func(known policy.Remote) bool { return Key(known) == key })
	if at < 0 {
		if err := s.makeRoom(r.Node, now, live); err != nil {
			return s.Proven, err
		}
	}
	before = s.Proven
	s.Proven = slices.Clone(before)
	if at >= 0 { // its certificate is believed again
		s.Proven[at] = r
	} else {
		s.Proven = append(s.Proven, r)
	}
	return before, nil
}

// makeRoom removes, where as many Remotes are known as there may be, some that have no connection: the node's own where
// it has its share, else of the node that has most.
func (s *Set) makeRoom(node string, now time.Time, live Live) error {
	of := map[string]int{}
	for _, r := range s.Proven {
		of[r.Node]++
	}
	loses := node
	switch {
	case of[node] >= MaxPerNode:
	case len(s.Proven) < Max:
		return nil
	default:
		for other, n := range of {
			if n > of[loses] {
				loses = other
			}
		}
	}
	removed, err := s.removeUnused(now, live, Grace, max(1, of[loses]/8), func(r policy.Remote) bool {
		return r.Node == loses
	})
	if err == nil && removed == 0 {
		err = fmt.Errorf("node %s: %w: %d are known, %d of node %s", node, refusal.TooMany, len(s.Proven), of[loses],
			loses)
	}
	return err
}

// RemoveIdle removes the Remotes that were not proven for Idle, or that have ended, and that have no connection.
func (s *Set) RemoveIdle(now time.Time, live Live) (removed int, err error) {
	return s.removeUnused(now, live, Idle, len(s.Proven), func(policy.Remote) bool { return true })
}

// removeUnused removes up to most of those Remotes that were not proven for a time, or that have ended, and whose class
// no connection has: those first that were not proven for longest. Numbers are not used again before all others were
// (compiler.Numbers).
func (s *Set) removeUnused(
	now time.Time, live Live, idle time.Duration, most int, which func(policy.Remote) bool,
) (int, error) {
	last := s.times.of(s.Proven, now)
	var unused []int
	for i, r := range s.Proven {
		if which(r) && (r.Ended || now.Sub(last[i]) >= idle) {
			unused = append(unused, i)
		}
	}
	if len(unused) == 0 {
		return 0, nil
	}
	used, err := live()
	if err != nil {
		return 0, err
	}
	unused = slices.DeleteFunc(unused, func(i int) bool {
		class, ok := s.classes.byKey[Key(s.Proven[i])]
		return !ok || used[class.number]
	})
	slices.SortStableFunc(unused, func(a, b int) int { return last[a].Compare(last[b]) })
	gone := map[int]bool{}
	for _, i := range unused[:min(most, len(unused))] {
		gone[i] = true
	}
	s.remove(gone)
	return len(gone), nil
}

// remove removes Remotes by their place in the list.
func (s *Set) remove(gone map[int]bool) {
	if len(gone) == 0 {
		return
	}
	var left []policy.Remote
	for i, r := range s.Proven {
		if !gone[i] {
			left = append(left, r)
		}
	}
	s.Proven = left
	s.times.keep(left)
}

// EndRevoked ends the Remotes that were proven with certificates that are not trusted any more, and returns them.
func (s *Set) EndRevoked() (ended []policy.Remote) {
	if s.Trusts == nil {
		return nil
	}
	s.Proven = slices.Clone(s.Proven)
	for i := range s.Proven {
		r := &s.Proven[i]
		if !r.Ended && !s.Trusts(r.Certificate) {
			r.Ended, s.RevocationPending = true, true
			ended = append(ended, *r)
		}
	}
	return ended
}

// A Table are the Remotes of a table that was loaded.
type Table struct {
	Remotes []policy.Remote
	Classes []uint32 // of Remotes; none without a fleet

	// Step says that the table differs from the one before only by these; else everything may differ.
	Step               bool
	Learned, Forgotten []policy.Remote // the first are the last of Remotes
}

// SetLoaded takes over the Remotes of the table that was loaded.
func (s *Set) SetLoaded(t Table) {
	s.Loaded = t.Remotes
	s.classes.set(t)
}

// Key names what was proven. A part has its length before it, so that no two Remotes have the same.
func Key(r policy.Remote) string {
	var space [256]byte
	b := append(space[:0], r.Address.String()...)
	part := func(s string) {
		b = strconv.AppendInt(append(b, ' '), int64(len(s)), 10)
		b = append(append(b, ':'), s...)
	}
	part(r.Node)
	part(r.Certificate)
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		part(key)
		part(r.Labels[key])
	}
	b = append(b, " unsaid"...)
	for _, key := range r.Unsaid {
		part(key)
	}
	return string(b)
}

// same reports whether the same was proven, and is believed or is not.
func same(a, b *policy.Remote) bool {
	return a.Address == b.Address && a.Node == b.Node && a.Certificate == b.Certificate && a.Ended == b.Ended &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Unsaid, b.Unsaid)
}

// Without returns a list without some of it.
func Without(list, some []policy.Remote) []policy.Remote {
	if len(some) == 0 {
		return list
	}
	gone := map[string]bool{}
	for _, r := range some {
		gone[Key(r)] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(r policy.Remote) bool { return gone[Key(r)] })
}
