package mark

import "testing"

// All epochs in turn: whatever epoch a mark says when an epoch begins, it is either
// that of a recent one, or none that is used before it is swept.
func TestSweeps(t *testing.T) {
	const class = 0x9000_1234
	mark := func(epoch uint16) uint32 { return class | OfEpoch(epoch) }
	live := map[uint16]uint32{} // for the epoch in which a connection was allowed: its mark
	epoch, sweeps := uint16(1), 0
	for range 3 * MaxEpoch {
		live[epoch] = mark(epoch)
		epoch = NextEpoch(epoch)
		if epoch == 0 || epoch > MaxEpoch {
			t.Fatalf("epoch %d", epoch)
		}
		if sweep, ok := SweepBefore(epoch); ok {
			sweeps++
			for e, m := range live {
				live[e] = sweep.Of(m)
			}
		}
		for e, m := range live {
			if m == mark(epoch) {
				t.Fatalf("before epoch %d is used, a connection that was allowed in %d has mark %#x", epoch, e, m)
			}
			if m&^EpochMask != class || m&EpochMask == 0 {
				t.Fatalf("mark %#x: more than its epoch was changed", m)
			}
		}
	}
	if sweeps != 6 {
		t.Errorf("%d sweeps in three rounds; want 6", sweeps)
	}
	for _, s := range []Sweep{{}, {Mask: 1 << 27}, {Mask: 1 << 27, Bits: 1 << 27}} {
		if got := s.Of(class); got != class {
			t.Errorf("%+v of a mark without an epoch: %#x", s, got)
		}
		if m := mark(StaleEpoch); s.Of(m) != m {
			t.Errorf("%+v of a stale mark: %#x", s, s.Of(m))
		}
	}
	if EpochMask != 0x0fff0000 {
		t.Error("the place of the epoch changed: a daemon that takes over an older table would open what was revoked")
	}
}
