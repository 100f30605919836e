package remotes

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/datapath/refusal"
)

func remote(node string, label int) policy.Remote {
	return policy.Remote{Node: node, Labels: policy.Labels{"app": fmt.Sprint(label)},
		Address: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Certificate: "ca/" + node}
}

// The difference between the loaded table and the known remotes is a list of new ones and a list of removed ones. Where
// these cannot express it, the whole list is compiled anew.
func TestDifference(t *testing.T) {
	a, b, c := remote("a", 1), remote("b", 2), remote("c", 3)
	ended := b
	ended.Ended = true
	for _, tt := range []struct {
		name               string
		loaded, proven     []policy.Remote
		learned, forgotten int
		all                bool
	}{
		{"nothing", []policy.Remote{a, b}, []policy.Remote{a, b}, 0, 0, false},
		{"a new one", []policy.Remote{a}, []policy.Remote{a, b}, 1, 0, false},
		{"a removed one", []policy.Remote{a, b, c}, []policy.Remote{a, c}, 0, 1, false},
		{"a removed one and a new one", []policy.Remote{a, b}, []policy.Remote{b, c}, 1, 1, false},
		{"one is believed no more", []policy.Remote{a, b}, []policy.Remote{a, ended}, 0, 0, true},
		{"one is believed again", []policy.Remote{a, ended}, []policy.Remote{a, b}, 0, 0, true},
	} {
		s := &Set{Loaded: tt.loaded, Proven: tt.proven}
		learned, forgotten, all := s.Difference()
		if len(learned) != tt.learned || len(forgotten) != tt.forgotten || all != tt.all {
			t.Errorf("%s: learned %v, forgotten %v, all %t", tt.name, learned, forgotten, all)
		}
	}
}

// What is added is bounded: one more of a node takes the place of one that has no connection, and is refused where all
// have one. A revoked certificate adds nothing.
func TestAdd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := &Set{Trusts: func(certificate string) bool { return certificate != "ca/revoked" }}
	classes := make([]uint32, MaxPerNode)
	live := map[uint32]bool{}
	for i := range MaxPerNode {
		if _, err := s.Add(remote("a", i), now, nil); err != nil {
			t.Fatal(err)
		}
		s.Note(remote("a", i), now)
		classes[i], live[uint32(i+1)] = uint32(i+1), true
	}
	s.SetLoaded(Table{Remotes: s.Proven, Classes: classes})
	connections := func() (map[uint32]bool, error) { return live, nil }
	now = now.Add(Grace)
	if _, err := s.Add(remote("a", MaxPerNode), now, connections); !errors.Is(err, refusal.TooMany) {
		t.Errorf("all have connections: %v", err)
	}
	delete(live, 8)
	before, err := s.Add(remote("a", MaxPerNode), now, connections)
	if err != nil || len(before) != MaxPerNode-1 || len(s.Proven) != MaxPerNode || s.Has(remote("a", 7)) {
		t.Errorf("one has none: %v, %d before, %d now", err, len(before), len(s.Proven))
	}
	if _, err := s.Add(remote("revoked", 0), now, connections); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
}

// No two Remotes have one key.
func TestKey(t *testing.T) {
	a, b := remote("a", 1), remote("a", 1)
	a.Labels, b.Labels = policy.Labels{"x": "1", "y": "2"}, policy.Labels{"x": "1 1:y 1:2"}
	if Key(a) == Key(b) {
		t.Errorf("%v and %v have one key", a.Labels, b.Labels)
	}
	b = a
	b.Labels, b.Unsaid = policy.Labels{"x": "1"}, []string{"y"}
	if Key(a) == Key(b) {
		t.Error("a label that was not sent is as one that was")
	}
}
