package e2e

import (
	"fmt"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/policies"
)

// A node is a host with labelled cgroups and a table made of policies, without
// a daemon.
type node struct {
	*nstest.Host
	t         testing.TB
	workloads []policy.Workload
	more      compiler.Input // what else the table is made of
	numbers   compiler.Numbers
	epoch     uint16
}

func newNode(t *testing.T) *node { return &node{t: t, Host: nstest.New(t)} }

// label makes a cgroup a workload, from the next enforce on.
func (n *node) label(path string, labels policy.Labels) *nstest.Cgroup {
	n.t.Helper()
	cg := n.In(path)
	n.workloads = append(n.workloads, policy.Workload{
		Name: path, Kind: policy.KindRun, Labels: labels, Cgroup: policy.Cgroup{Path: path, ID: cg.ID()},
	})
	return cg
}

// enforce loads the table that policies make of the workloads. Connections that
// are open are decided again.
func (n *node) enforce(yaml []byte) {
	n.t.Helper()
	n.epoch++
	docs, err := policy.Parse([]policy.File{{Name: "policies.yaml", Data: yaml}})
	if err != nil {
		n.t.Fatal(err)
	}
	in := n.more
	in.Policies, in.Workloads, in.Numbers, in.Options.Epoch = docs.Policies, n.workloads, n.numbers, n.epoch
	result, err := compiler.Compile(in)
	if err != nil {
		n.t.Fatal(err)
	}
	n.numbers = result.Numbers
	if err := n.Nft(result.Table.Text()); err != nil {
		n.t.Fatal(err)
	}
}

// example returns one of policies/.
func example(t testing.TB, name string) []byte {
	t.Helper()
	data, err := policies.Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// counter returns how many packets a counter of our table has counted.
func (n *node) counter(name string) int {
	n.t.Helper()
	var packets int
	out := n.Shell("nft list counter inet thole " + name + " | grep packets")
	if _, err := fmt.Sscanf(out, " packets %d", &packets); err != nil {
		n.t.Fatalf("counter %s: %q: %v", name, out, err)
	}
	return packets
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
