package daemon

import (
	"context"
	"errors"

	"thole/compiler"
	"thole/compiler/compilertest"
	"thole/compiler/policy"
	"thole/internal/enforce"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch/cgroupfs"
)

// unlike says how the loaded table differs from what a compiler makes of these policies
// and what runs, that knows nothing but the numbers in the table; "" if it does not.
func (m *machine) unlike(policies string) string {
	m.t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(policies)}})
	if err != nil {
		m.t.Fatal(err)
	}
	running, err := m.client.Workloads(context.Background())
	if err != nil {
		return err.Error()
	}
	in := compiler.Input{Policies: docs.Policies}
	parents := []string{cgroupfs.TholeSlice}
	if m.engine != nil {
		parents = append(parents, "docker")
	}
	for _, p := range parents {
		if id := m.host.CgroupID(p); id != 0 {
			in.Parents = append(in.Parents, policy.Cgroup{Path: p, ID: id})
		}
	}
	for _, w := range running {
		in.Workloads = append(in.Workloads, policy.Workload{
			Name: w.Name, Labels: w.Labels, Facts: w.Facts, Cgroup: policy.Cgroup{Path: w.Cgroup, ID: w.ID},
		})
	}
	table := m.read()
	if table == nil {
		return "there is no table"
	}
	in.Numbers, in.Options.Epoch = compilertest.Loaded(table)
	result, err := compiler.Compile(in)
	if err != nil {
		m.t.Fatal(err)
	}
	if change := ruleset.Diff(table, &result.Table); !change.Empty() {
		return change.String()
	}
	return ""
}

// read reads the table past the daemon.
func (m *machine) read() (table *ruleset.Table) {
	m.t.Helper()
	var err error
	doErr := m.host.Do(func() {
		var conn *kernel.Conn
		if conn, err = kernel.Open(kernel.Options{}); err != nil {
			return
		}
		table, err = conn.Read(enforce.TableName)
		err = errors.Join(err, conn.Close())
	})
	if err := errors.Join(doErr, err); err != nil {
		m.t.Fatal(err)
	}
	return table
}
