package docker

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/watch"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// Docker is what watch expects of an engine.
var _ watch.Engine = (*Docker)(nil)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// tree is a cgroup root of its own, with the containers of a fake engine.
type tree struct {
	t       *testing.T
	host    *nstest.Host
	base    string // the root's path in the host
	root    cgroupfs.Root
	cgroups *watch.Cgroups
	docker  *Docker
}

func newTree(t *testing.T) *tree {
	t.Helper()
	host := nstest.New(t)
	base := "tree-of-" + strings.ReplaceAll(t.Name(), "/", "-")
	host.MkCgroup(base)
	root, err := cgroupfs.RootAt(host.CgroupDir(base))
	if err != nil {
		t.Fatal(err)
	}
	return &tree{t: t, host: host, base: base, root: root}
}

// in returns a cgroup of the tree; it is made if there is none.
func (tr *tree) in(path string) *nstest.Cgroup { return tr.host.In(tr.base + "/" + path) }

// id returns the id of a cgroup of the tree, 0 if there is none.
func (tr *tree) id(path string) uint64 { return tr.host.CgroupID(tr.base + "/" + path) }

func (tr *tree) remove(path string) { tr.host.Rmdir(tr.base + "/" + path) }

// start runs tr.docker and what watches the tree, as a new daemon would, until the test ends.
func (tr *tree) start() {
	tr.t.Helper()
	scopes, err := watch.NewScopes(tr.root, []byte("0123456789abcdef0123456789abcdef"), nil)
	if err != nil {
		tr.t.Fatal(err)
	}
	if tr.cgroups, err = watch.NewCgroups(tr.root, scopes, tr.docker); err != nil {
		tr.t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{tr.cgroups.Run, tr.docker.Run} {
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
}

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
