package enforce

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/datapath/pki/pkitest"
	"thole/datapath/refusal"
	"thole/internal/enforce/enforcetest"
	"thole/internal/policyset"
	"thole/internal/remotes"
	"thole/internal/state"
	"thole/ruleset"
	"thole/watch/workload"
)

// marks are the conntrack marks of living connections.
type marks []uint32

func (m marks) Remark(mask, bits uint32, change func(uint32) uint32) (int, error) {
	for _, mark := range m {
		if mark&mask == bits && change(mark) != mark {
			return 0, errors.New("a mark was to be changed")
		}
	}
	return 0, nil
}

// idle is a scanner that finds nothing.
type idle struct{}

func (idle) Scan([]policy.Binding) workload.Snapshot    { return workload.Snapshot{} }
func (idle) Changes([]policy.Binding) workload.Snapshot { return workload.Snapshot{Partial: true} }
func (idle) Runs([]policy.Binding) workload.Snapshot    { return workload.Snapshot{Partial: true} }
func (idle) Recall(workload.Snapshot)                   {}

// A remotesBench is an enforcer over a fake kernel, without goroutines.
type remotesBench struct {
	*Enforcer
	t     *testing.T
	clock time.Time
}

func newRemotesBench(t *testing.T) *remotesBench {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &remotesBench{t: t, clock: time.Unix(1_800_000_000, 0)}
	b.Enforcer = &Enforcer{
		kernel: &enforcetest.Kernel{}, conntrack: marks{}, scanner: idle{}, cgroups: fakeCgroups{},
		state: dir, log: slog.New(slog.DiscardHandler), now: func() time.Time { return b.clock },
		fleet: &compiler.Fleet{}, set: policyset.Default(), loaded: loaded{epoch: 1, workloads: newRoster(nil, nil)},
	}
	if err := b.reconcile(); err != nil {
		t.Fatal(err)
	}
	return b
}

func remote(node, label int) policy.Remote {
	return policy.Remote{
		Node: fmt.Sprint("node-", node), Labels: policy.Labels{"app": fmt.Sprint(label)},
		Address: netip.AddrFrom4([4]byte{10, 0, byte(node >> 8), byte(node)}), Certificate: fmt.Sprint("ca/", node),
	}
}

// fill has so many Remotes of each of the nodes, by one change of the table.
func (b *remotesBench) fill(nodes, each int) {
	b.t.Helper()
	for node := range nodes {
		for label := range each {
			b.remotes.Proven = append(b.remotes.Proven, remote(node, label))
		}
	}
	b.note()
	if err := b.reconcile(); err != nil {
		b.t.Fatal(err)
	}
}

// connect has connections of all classes that are known.
func (b *remotesBench) connect() {
	var live marks
	for _, class := range b.loaded.result.Remotes {
		live = append(live, class)
	}
	b.conntrack = live
}

func (b *remotesBench) known(r policy.Remote) bool {
	_, ok := b.remotes.ClassOf(r)
	return ok
}

// number returns the class of a Remote in the loaded table.
func (b *remotesBench) number(r policy.Remote) uint32 {
	class, _ := b.remotes.ClassOf(r)
	return class
}

// note notes that all that are known were proven just now.
func (b *remotesBench) note() {
	for _, r := range b.remotes.Proven {
		b.remotes.Note(r, b.clock)
	}
}

// A node has its share of classes, and no more; those that its connections have stay.
func TestRemotesOfANode(t *testing.T) {
	b := newRemotesBench(t)
	b.fill(1, remotes.MaxPerNode)
	more := remote(0, remotes.MaxPerNode)
	b.clock = b.clock.Add(remotes.Grace - 1)
	if err := b.learnRemote(more); !errors.Is(err, refusal.TooMany) {
		t.Errorf("while handshakes may go on: %v", err)
	}
	b.clock = b.clock.Add(1)
	b.connect()
	err := b.learnRemote(more)
	if n := len(b.remotes.Proven); !errors.Is(err, refusal.TooMany) || b.known(more) || n != remotes.MaxPerNode {
		t.Errorf("while connections have them all: %v, %d known", err, len(b.remotes.Proven))
	}
	other := remote(1, 0)
	if err := b.learnRemote(other); err != nil || !b.known(other) {
		t.Errorf("another node: %v", err)
	}
	b.conntrack = slices.DeleteFunc(b.conntrack.(marks), func(m uint32) bool { return m == b.loaded.result.Remotes[7] })
	err = b.learnRemote(more)
	if err != nil || !b.known(more) || b.known(remote(0, 7)) || !b.known(remote(0, 8)) || !b.known(other) {
		t.Errorf("in the place of one that no connection has: %v", err)
	}
}

// Where there is no more room, who has most loses what he does not use.
func TestRemotesOfAll(t *testing.T) {
	b := newRemotesBench(t)
	const nodes = remotes.Max/remotes.MaxPerNode + 1
	b.fill(nodes-2, remotes.MaxPerNode)
	for node := nodes - 2; node < nodes; node++ {
		for label := range remotes.MaxPerNode / 2 {
			b.remotes.Proven = append(b.remotes.Proven, remote(node, label))
		}
	}
	b.note()
	if err := b.reconcile(); err != nil || len(b.loaded.result.Remotes) != remotes.Max {
		t.Fatal(len(b.loaded.result.Remotes), err)
	}
	first := b.loaded.result.Remotes[0]
	b.clock = b.clock.Add(remotes.Grace)
	b.connect()
	err := b.learnRemote(remote(nodes, 0))
	if !errors.Is(err, refusal.TooMany) || len(b.remotes.Proven) != remotes.Max {
		t.Errorf("while connections have them all: %v", err)
	}
	b.conntrack = marks{first}
	if err := b.learnRemote(remote(nodes, 0)); err != nil || !b.known(remote(nodes, 0)) {
		t.Errorf("one more node: %v", err)
	}
	if !b.known(remote(0, 0)) {
		t.Error("one that a connection has is gone")
	}
	of := map[string]int{}
	for _, r := range b.remotes.Proven {
		of[r.Node]++
	}
	for node := nodes - 2; node < nodes; node++ {
		if n := of[fmt.Sprint("node-", node)]; n != remotes.MaxPerNode/2 {
			t.Errorf("node %d, which had less than the others, has %d now", node, n)
		}
	}
}

// What a revoked certificate proved is believed no more, and its number is nobody else's
// as long as a connection has it.
func TestRemotesEnd(t *testing.T) {
	b := newRemotesBench(t)
	b.fill(2, 2)
	class, epoch := b.number(remote(0, 1)), b.loaded.epoch
	believed := func() []uint32 {
		table := b.kernel.(*enforcetest.Kernel).Loaded()
		at := slices.IndexFunc(table.Sets, func(s ruleset.Set) bool { return s.Name == "remotes" })
		var list []uint32
		for _, e := range table.Sets[at].Elements {
			list = append(list, uint32(e.Key[0].From.Uint64()))
		}
		return list
	}
	if !slices.Contains(believed(), class) {
		t.Fatalf("class %#x is not in %#x", class, believed())
	}
	b.conntrack = marks{class}
	b.remotes.Trusts = func(certificate string) bool { return certificate != "ca/0" }
	b.endRevoked()
	if err := b.reconcile(); err != nil {
		t.Fatal(err)
	}
	kept := b.known(remote(0, 1)) || slices.Contains(believed(), class)
	if kept || !b.known(remote(1, 1)) || len(believed()) != 2 || b.loaded.epoch == epoch {
		t.Errorf("believed: %#x, epoch %d", believed(), b.loaded.epoch)
	}
	if err := b.learnRemote(remote(0, 1)); err == nil {
		t.Error("a proof that was on its way when its certificate was revoked is taken")
	}
	again := remote(0, 1)
	again.Certificate = "ca/2" // its node has another by now
	if err := b.learnRemote(again); err != nil || b.number(again) == class {
		t.Errorf("the same labels, proven anew: %v", err)
	}
	b.removeIdleRemotes()
	if n := len(b.remotes.Proven); n != 4 { // but for 0/0, which nobody has
		t.Errorf("%d are kept", n)
	}
	b.conntrack = marks{}
	b.removeIdleRemotes()
	if n := len(b.remotes.Proven); n != 3 {
		t.Errorf("%d are kept after the last connection has ended", n)
	}
	if got := b.number(again); got == class || got == 0 {
		t.Errorf("the other one has class %#x now", got)
	}
	epoch = b.loaded.epoch
	b.clock = b.clock.Add(remotes.Idle)
	b.removeIdleRemotes()
	if len(b.remotes.Proven) != 0 || b.loaded.epoch != epoch {
		t.Errorf("%d are known after they were idle, epoch %d, before %d", len(b.remotes.Proven), b.loaded.epoch, epoch)
	}
}

// A change that failed leaves what is known of other nodes' classes, and of numbers, as it was.
func TestRemotesAfterAFailure(t *testing.T) {
	b := newRemotesBench(t)
	b.fill(1, 3)
	b.connect()
	b.clock = b.clock.Add(remotes.Idle)
	kept, gone := remote(0, 0), remote(0, 1)
	b.conntrack = slices.DeleteFunc(b.conntrack.(marks), func(m uint32) bool {
		return m == b.number(gone)
	})
	had := maps.Clone(b.loaded.numbers.Remotes)
	fake := b.kernel.(*enforcetest.Kernel)
	fake.Change(func() { fake.Seen, fake.Fail = fake.Seen-1, errors.New("no buffer space available") })
	b.remotes.Proven = b.remotes.Proven[1:] // and one is met in the same change
	if err := b.learnRemote(remote(1, 0)); err == nil || b.known(remote(1, 0)) || !b.known(kept) {
		t.Fatalf("the kernel refused the change: %v", err)
	}
	if !maps.Equal(b.loaded.numbers.Remotes, had) {
		t.Errorf("numbers %v; want %v", b.loaded.numbers.Remotes, had)
	}
	fake.Change(func() { fake.Seen, fake.Fail = fake.Seen-1, nil })
	b.removeIdleRemotes()
	if b.known(gone) || !b.known(remote(0, 2)) {
		t.Errorf("one that no connection has is known: %t; one that has: %t", b.known(gone), b.known(remote(0, 2)))
	}
	if err := b.learnRemote(remote(1, 0)); err != nil || !b.known(remote(1, 0)) {
		t.Errorf("it is met again: %v", err)
	}
}

// Where a certificate is believed again, what it proves then has the number that it had.
func TestRemotesBelievedAgain(t *testing.T) {
	b := newRemotesBench(t)
	b.fill(2, 2)
	r := remote(0, 1)
	class := b.number(r)
	b.connect()
	b.remotes.Trusts = func(certificate string) bool { return certificate != "ca/0" }
	b.endRevoked()
	if err := b.reconcile(); err != nil || b.known(r) || b.remotes.Len() != 2 {
		t.Fatalf("known %t, %d are believed: %v", b.known(r), b.remotes.Len(), err)
	}
	b.remotes.Trusts = func(string) bool { return true }
	if err := b.learnRemote(r); err != nil || len(b.remotes.Proven) != 4 || b.remotes.Len() != 3 {
		t.Fatalf("%d are there, %d believed: %v", len(b.remotes.Proven), b.remotes.Len(), err)
	}
	if got, ok := b.remotes.ClassOf(r); !ok || got != class {
		t.Errorf("class %#x, %t; want %#x", got, ok, class)
	}
}

// Only with the trust, what was proven with a revoked certificate ends; the certificate's labels stay unknown.
func TestTrustWithoutACertificate(t *testing.T) {
	a, dir := pkitest.New(t), filepath.Join(t.TempDir(), "pki")
	serial := a.Install(dir, nil)
	a.Must(os.Remove(filepath.Join(dir, "node.key")))
	_, trust, err := pki.LoadPart(dir, time.Now())
	if trust == nil || err == nil {
		t.Fatalf("trust %v, error %v", trust, err)
	}
	e := &Enforcer{}
	e.UseCredentials(CredentialsOf(nil, trust))
	if e.identity != nil || e.remotes.Trusts == nil || e.remotes.Trusts("other/"+serial.String()) {
		t.Error("the trust is not in force")
	}
}
