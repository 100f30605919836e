package e2e

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/internal/nstest"
	"thole/policies"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// What netlink loads and what nft loads of the dry run's text are the same table,
// for every example.
func TestNetlinkAndTextLoadTheSame(t *testing.T) {
	files, err := fs.ReadDir(policies.Files, ".")
	must(t, err)
	for _, f := range files {
		t.Run(f.Name(), func(t *testing.T) {
			docs, err := policy.Parse([]policy.File{{Name: f.Name(), Data: example(t, f.Name())}})
			must(t, err)
			host := nstest.New(t)
			var workloads []policy.Workload
			for i, labels := range []policy.Labels{app("web"), app("database"), app("dns"), app("proxy"),
				{"app": "web", "env": "dev"}} {
				path := fmt.Sprintf("thole.slice/w%d.scope", i)
				workloads = append(workloads, policy.Workload{
					Name: path, Kind: policy.KindRun, Labels: labels,
					Cgroup: policy.Cgroup{Path: path, ID: host.MkCgroup(path)},
				})
			}
			loadsTheSame(t, host, compiler.Input{Policies: docs.Policies, Workloads: workloads})
		})
	}
}

// The same for random policies. The cgroups that they name exist.
func TestNetlinkAndTextLoadTheSameRandom(t *testing.T) {
	start := rand.Uint64()
	t.Logf("seed %d", start)
	host := nstest.New(t)
	made := map[string]bool{}
	for n := range uint64(60) {
		c := reference.Random(rand.New(rand.NewPCG(start, n)), 6)
		in := compiler.Input{Policies: c.Policies, Options: compiler.Options{Epoch: uint16(1 + n)}}
		for _, w := range c.Workloads {
			copied := *w
			if w.Kind != policy.KindAddress {
				copied.Cgroup.ID = host.MkCgroup(w.Cgroup.Path)
				made[w.Cgroup.Path] = true
			}
			in.Workloads = append(in.Workloads, copied)
		}
		if !loadsTheSame(t, host, in) {
			t.Fatalf("case %d:\n%s", n, c)
		}
	}
}

// loadsTheSame loads the table of in by netlink and by nft, and compares what the
// kernel has with each other and with what was wanted.
func loadsTheSame(t *testing.T, host *nstest.Host, in compiler.Input) bool {
	t.Helper()
	result, err := compiler.Compile(in)
	must(t, err)
	want := result.Table
	read := func(load func(*kernel.Conn) error) (table *ruleset.Table) {
		must(t, host.Do(func() {
			conn, err := kernel.Open(kernel.Options{})
			must(t, err)
			defer conn.Close()
			must(t, conn.Delete(want.Name))
			must(t, load(conn))
			table, err = conn.Read(want.Name)
			must(t, err)
		}))
		return table
	}
	byNetlink := read(func(c *kernel.Conn) error { return c.Apply(ruleset.Diff(nil, &want)) })
	byText := read(func(*kernel.Conn) error { return host.Nft(want.Text()) })
	same := true
	for _, pair := range []struct {
		what string
		a, b *ruleset.Table
	}{{"wanted and loaded by netlink", &want, byNetlink}, {"wanted and loaded by nft", &want, byText},
		{"loaded by netlink and by nft", byNetlink, byText}} {
		if change := ruleset.Diff(pair.a, pair.b); !change.Empty() {
			same = false
			t.Errorf("%s differ:\n%s", pair.what, change)
		}
	}
	return same
}
