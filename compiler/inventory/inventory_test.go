package inventory

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
)

func TestWorkloads(t *testing.T) {
	const header = "apiVersion: thole/v1\nkind: Workload\n" +
		"metadata: {name: a, namespace: n, labels: {app: x, empty: \"\"}}\n"
	at := func(kind policy.Kind, path string) policy.Workload {
		return policy.Workload{Kind: kind, Cgroup: policy.Cgroup{Path: path}}
	}
	for spec, want := range map[string]policy.Workload{
		"unit: nginx.service":           at(policy.KindUnit, "system.slice/nginx.service"),
		"unit: getty@tty1.service":      at(policy.KindUnit, "system.slice/system-getty.slice/getty@tty1.service"),
		"unit: a-b.slice":               at(policy.KindUnit, "a.slice/a-b.slice"),
		"unit: my-app@1.service":        at(policy.KindUnit, `system.slice/system-my\x2dapp.slice/my-app@1.service`),
		`user: "1000"`:                  at(policy.KindUser, "user.slice/user-1000.slice"),
		"user: alice":                   at(policy.KindUser, "user.slice/user-alice.slice"),
		"cgroup: machine.slice/*.scope": at(policy.KindCgroup, "machine.slice/*.scope"),
		"container: db-1":               at(policy.KindContainer, "docker/db-1"),
		"address: 192.0.2.1":            {Kind: policy.KindAddress, Address: netip.MustParseAddr("192.0.2.1")},
		"address: 2001:db8::1":          {Kind: policy.KindAddress, Address: netip.MustParseAddr("2001:db8::1")},
	} {
		docs, err := policy.ParseInventory(policy.File{Data: []byte(header + "spec: {" + spec + "}\n")})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Workloads(docs.Bindings)
		if err != nil {
			t.Fatal(err)
		}
		want.Name, want.Namespace, want.Labels = "a", "n", policy.Labels{"app": "x", "empty": ""}
		want.Position = docs.Bindings[0].Position
		if diff := cmp.Diff([]policy.Workload{want}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", spec, diff)
		}
	}
}

// TestMeets has two documents that differ and mean one cgroup.
func TestMeets(t *testing.T) {
	_, err := Workloads([]policy.Binding{
		{Name: "a", Unit: "x.service", Position: policy.Position{File: "f.yaml", Line: 3, Column: 18}},
		{Name: "b", Cgroup: "system.slice/x.service", Position: policy.Position{File: "f.yaml", Line: 8, Column: 18}},
	})
	want := "f.yaml:8:18: system.slice/x.service is the cgroup of a, at f.yaml:3:18; allowed: one Workload for each"
	if err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

// What runs may have names, labels and cgroups that no document could give: they are written so that they can be read,
// and the labels are the same.
func TestWriteHostile(t *testing.T) {
	long := strings.Repeat("é", policy.MaxLabelText/2)
	const odd = "\u202e\U000e0041\"\\#: é"
	const evil = "e\x1b[31m\u202e\U000e0041\"\\#: é"
	entries := []Entry{
		{Name: "Web_1", Kind: "container", Cgroup: "docker/1", Labels: policy.Labels{
			"app": "1.10", "no": "yes", "My Key": odd, "com.docker.x": "a\u2028b", "note": policy.UnusableValue,
			"a\nb": policy.UnusableValue, "\t": "tab", "thole/image": odd, long: long,
		}, Sources: map[string]policy.Source{
			"app": "image", "no": "person", "My Key": "person", "com.docker.x": "tool", "note": "person",
			"a\nb": "person", "\t": "image", "thole/image": "daemon", long: "image",
		}, Remarks: map[string]string{"app": "doubtful"}},
		{Name: "web-1", Namespace: "shop", Kind: "run", Cgroup: "thole.slice/x.scope"},
		{Name: "web-1:" + evil, Kind: "cgroup", Cgroup: "a**b/" + evil},
		{Name: evil, Kind: "unit", Cgroup: "system.slice/nginx.service"},
		{Name: "u", Kind: "unit", Cgroup: "my.slice/nginx2.service"},
		{Name: "u", Kind: "user", Cgroup: "user.slice/user-1000.slice"},
	}
	for i := range entries {
		e := &entries[i]
		if e.Labels == nil {
			e.Labels, e.Sources = policy.Labels{"app": "web"}, map[string]policy.Source{"app": "document"}
		}
	}
	var b strings.Builder
	if err := Write(&b, entries); err != nil {
		t.Fatal(err)
	}
	docs, err := policy.ParseInventory(policy.File{Data: []byte(b.String())})
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	var got, want []string
	for _, d := range docs.Bindings {
		got = append(got, d.Name+" "+d.Container+d.Cgroup+d.Unit+d.User)
		if d.Container != "" && !cmp.Equal(d.Labels, entries[0].Labels) {
			t.Errorf("labels (-want +got):\n%s", cmp.Diff(entries[0].Labels, d.Labels))
		}
	}
	want = []string{"e-31m nginx.service", "u my.slice/nginx2.service", "u-2 1000", "web-1 Web_1",
		"web-1-2 thole.slice/x.scope", "web-1-e-31m a*?b/e?[31m\u202e\U000e0041\"\\#: é"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, b.String())
	}
	if !strings.Contains(b.String(), `app: "1.10" # doubtful`) {
		t.Errorf("no remark:\n%s", b.String())
	}
}
