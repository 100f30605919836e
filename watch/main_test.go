package watch

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// tree is a cgroup root of its own, with what watches it.
type tree struct {
	t       *testing.T
	host    *nstest.Host
	base    string // the root's path in the host
	root    cgroupfs.Root
	scopes  *Scopes
	cgroups *Cgroups
}

func newTree(t *testing.T) *tree {
	t.Helper()
	return newTreeIn(t, nstest.New(t))
}

// newTreeIn makes one in a host that a test has already.
func newTreeIn(t *testing.T, host *nstest.Host) *tree {
	t.Helper()
	base := "tree-of-" + strings.ReplaceAll(t.Name(), "/", "-")
	host.MkCgroup(base)
	root, err := cgroupfs.RootAt(host.CgroupDir(base))
	if err != nil {
		t.Fatal(err)
	}
	tr := &tree{t: t, host: host, base: base, root: root}
	tr.restart()
	return tr
}

// in returns a cgroup of the tree; it is made if there is none.
func (tr *tree) in(path string) *nstest.Cgroup { return tr.host.In(tr.base + "/" + path) }

// id returns the id of a cgroup of the tree, 0 if there is none.
func (tr *tree) id(path string) uint64 { return tr.host.CgroupID(tr.base + "/" + path) }

func (tr *tree) remove(path string) { tr.host.Rmdir(tr.base + "/" + path) }

// restart replaces what watches the tree, as a new daemon with the same key would.
func (tr *tree) restart() {
	tr.t.Helper()
	scopes, err := NewScopes(tr.root, testKey, nil)
	if err != nil {
		tr.t.Fatal(err)
	}
	cgroups, err := NewCgroups(tr.root, scopes, nil)
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.scopes, tr.cgroups = scopes, cgroups
	tr.run(cgroups.Run)
}

// run runs what watches until the test ends.
func (tr *tree) run(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	tr.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tr.t.Errorf("Run: %v", err)
		}
	})
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

// until scans at each change until the snapshot is as wanted.
func (tr *tree) until(what string, bindings []policy.Binding, ok func(workload.Snapshot) bool) workload.Snapshot {
	tr.t.Helper()
	deadline := time.After(patience)
	for {
		s := tr.cgroups.Scan(bindings)
		if ok(s) {
			return s
		}
		select {
		case <-tr.cgroups.Changed():
		case <-deadline:
			tr.t.Fatalf("waited %v for %s; the snapshot is %+v", patience, what, s)
		}
	}
}

// byValue lets cmp compare workloads, which have addresses.
var byValue = cmpopts.EquateComparable(netip.Addr{})
