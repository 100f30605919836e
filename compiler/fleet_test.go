package compiler_test

import (
	"net/netip"
	"testing"

	"thole/compiler"
	"thole/compiler/policy"
)

const fleetPolicy = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  egress:
  - to: [{workloads: {matchLabels: {app: backup}}}]
    ports: ["22/tcp"]
  - to: [{workloads: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}], matchLabels: {app: cache}}}]
  - to: [{cidr: 10.9.0.0/16}]
    ports: ["80/tcp"]
  deny:
    egress: [{to: [{workloads: {matchLabels: {env: dev}}}]}]
`

// What another node's workload proved is a peer like any other, but that nothing is
// inferred from what its node did not say.
func TestRemotes(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(fleetPolicy)}})
	if err != nil {
		t.Fatal(err)
	}
	db := policy.Workload{Name: "db", Kind: policy.KindRun, Labels: policy.Labels{"app": "db"},
		Cgroup: policy.Cgroup{Path: "thole.slice/db", ID: 7}}
	near, far := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.9.0.2")
	for _, tt := range []struct {
		name   string
		remote policy.Remote
		port   uint16
		want   bool
	}{
		{"by its labels", policy.Remote{Labels: policy.Labels{"app": "backup"}, Address: near}, 22, true},
		{"another port", policy.Remote{Labels: policy.Labels{"app": "backup"}, Address: near}, 23, false},
		{"other labels", policy.Remote{Labels: policy.Labels{"app": "web"}, Address: near}, 22, false},
		{"by its address", policy.Remote{Labels: policy.Labels{"app": "web"}, Address: far}, 80, true},
		{"by its address, denied by its labels", policy.Remote{Labels: policy.Labels{"app": "web", "env": "dev"},
			Address: far}, 80, false},
		{"a label that it may not have", policy.Remote{Labels: policy.Labels{"app": "cache"}, Address: near}, 6379,
			true},
		{"a label that it has", policy.Remote{Labels: policy.Labels{"app": "cache", "tier": "front"}, Address: near},
			6379, false},
		{"a label that it may have and did not say", policy.Remote{Labels: policy.Labels{"app": "cache"},
			Unsaid: []string{"tier"}, Address: near}, 6379, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := compile(t, compiler.Input{
				Policies: docs.Policies, Workloads: []policy.Workload{db}, Remotes: []policy.Remote{tt.remote},
				Fleet: &compiler.Fleet{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
			})
			if got := r.Allows(r.ClassOf(&db).Number, r.Remotes[0], policy.TCP, tt.port); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

// An address at which nothing was proven is judged by cidr and any alone.
func TestAllowsAddress(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(fleetPolicy + `
---
apiVersion: thole/v1
kind: Policy
metadata: {name: never}
spec:
  selector: {matchLabels: {app: db}}
  deny:
    egress: [{to: [{cidr: 10.9.9.0/24}]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: later}
spec:
  enforcement: audit
  selector: {matchLabels: {app: db}}
  egress: []
`)}})
	if err != nil {
		t.Fatal(err)
	}
	db := policy.Workload{Name: "db", Kind: policy.KindRun, Labels: policy.Labels{"app": "db"},
		Cgroup: policy.Cgroup{Path: "thole.slice/db", ID: 7}}
	web := policy.Workload{Name: "web", Kind: policy.KindRun, Labels: policy.Labels{"app": "web"},
		Cgroup: policy.Cgroup{Path: "thole.slice/web", ID: 8}}
	r := compile(t, compiler.Input{Policies: docs.Policies, Workloads: []policy.Workload{db, web},
		Fleet: &compiler.Fleet{}})
	for to, want := range map[string]bool{
		"10.9.0.1:80": true, "10.9.0.1:81": false, "10.9.255.255:80": true, "10.10.0.0:80": false, "10.0.0.2:22": false,
		"10.9.9.255:80": false, "[fd00::2]:80": false,
	} {
		place := netip.MustParseAddrPort(to)
		if got := r.AllowsAddress(r.ClassOf(&db).Number, place, policy.TCP); got != want {
			t.Errorf("%s: got %t, want %t", to, got, want)
		}
		if !r.AllowsAddress(r.ClassOf(&web).Number, place, policy.TCP) || !r.AllowsAddress(9999, place, policy.TCP) {
			t.Errorf("%s: denied to who is not isolated, or not known", to)
		}
	}
}

// A remote keeps its class while others come and go, and policies change: the marks of
// its connections hold the number.
func TestRemotesKeepTheirClasses(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(fleetPolicy)}})
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.0.0.2")
	remotes := []policy.Remote{
		{Labels: policy.Labels{"app": "backup", "rack": "1"}, Address: address},
		{Labels: policy.Labels{"app": "backup", "rack": "2"}, Address: address},
		{Labels: policy.Labels{"app": "cache"}, Address: address},
	}
	before := compile(t, compiler.Input{Policies: docs.Policies, Fleet: &compiler.Fleet{}, Remotes: remotes})
	after := compile(t, compiler.Input{Fleet: &compiler.Fleet{}, Remotes: remotes[1:], Numbers: before.Numbers})
	if before.Remotes[0] != 0x4000 || before.Remotes[0] == before.Remotes[1] || before.Remotes[1] != after.Remotes[0] ||
		before.Remotes[2] != after.Remotes[1] {
		t.Errorf("classes %#x, then of all but the first %#x", before.Remotes, after.Remotes)
	}
}
