package compiler_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/inventory"
	"thole/compiler/policy"
	"thole/policies"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The inventory of the golden files: one of everything that policies/ speaks of.
const goldenInventory = `
{apiVersion: thole/v1, kind: Workload, metadata: {name: proxy, labels: {tier: proxy}}, spec: {unit: haproxy.service}}
---
{apiVersion: thole/v1, kind: Workload, metadata: {name: web-1, labels: {tier: web, app: shop, metrics: "on"}},
 spec: {container: web-1}}
---
{apiVersion: thole/v1, kind: Workload, metadata: {name: web-2, labels: {tier: web, app: shop, metrics: "on"}},
 spec: {container: web-2}}
---
{apiVersion: thole/v1, kind: Workload, metadata: {name: database, labels: {tier: database, app: shop}},
 spec: {unit: postgresql.service}}
---
{apiVersion: thole/v1, kind: Workload, metadata: {name: dns, labels: {app: dns}}, spec: {cgroup: dns.slice}}
---
{apiVersion: thole/v1, kind: Workload, metadata: {name: alice, labels: {app: shell, user: alice}}, spec: {user: "1000"}}
`

// Each example compiles to the script in testdata/golden, byte for byte.
func TestGolden(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "inventory.yaml", Data: []byte(goldenInventory)}})
	if err != nil {
		t.Fatal(err)
	}
	workloads, err := inventory.Workloads(docs.Bindings)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Glob(policies.Files, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(name, func(t *testing.T) {
			data, err := policies.Files.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			docs, err := policy.Parse([]policy.File{{Name: name, Data: data}})
			if err != nil {
				t.Fatal(err)
			}
			got := compile(t, compiler.Input{Policies: docs.Policies, Workloads: workloads}).Table.Text()
			path := filepath.Join("testdata", "golden", name[:len(name)-len(".yaml")]+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("go test ./compiler -update, if this is meant:\n%s", diff)
			}
		})
	}
}
