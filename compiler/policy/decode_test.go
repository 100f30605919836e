package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sayTheSame compares what documents say, not where they say it.
var sayTheSame = cmp.Options{cmpopts.IgnoreTypes(Position{}), sameAddress}

// sameAddress compares addresses, whose fields go-cmp may not see.
var sameAddress = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

// in is a selector of one label.
func in(key string, values ...string) Selector {
	return Selector{Requirements: []Requirement{{Key: key, Operator: In, Values: values}}}
}

func TestGoodPolicies(t *testing.T) {
	web, everything := in("app", "web"), Selector{}
	anyone := []Peer{{Any: true}}
	for _, c := range []struct {
		name, spec string
		want       Policy // but its name
	}{
		{"isolate", "{selector: {}, ingress: [], egress: []}", Policy{
			Ingress: Side{Isolates: true}, Egress: Side{Isolates: true},
		}},
		{"allow everything", "{selector: {}, ingress: [{}]}", Policy{
			Ingress: Side{Isolates: true, Allow: []Rule{{}}},
		}},
		{"deny everything", "{selector: {}, deny: {egress: [{}]}}", Policy{
			Egress: Side{Deny: []Rule{{}}},
		}},
		{"deny and allow", "{selector: {}, ingress: [{from: [{any: true}]}], deny: {ingress: [{ports: [22/tcp]}]}}",
			Policy{
				Ingress: Side{Isolates: true, Allow: []Rule{{Peers: anyone}},
					Deny: []Rule{{Ports: []Port{{TCP, 22, 22, ""}}}}},
			}},
		{"enforce", "{selector: {}, enforcement: enforce, egress: []}", Policy{Egress: Side{Isolates: true}}},
		{"audit", "{selector: {}, enforcement: audit, egress: []}", Policy{Egress: Side{Isolates: true}, Audit: true}},
		{"peers", `
      selector: {}
      egress:
      - to:
        - workloads: {matchLabels: {app: web}}
        - workloads: {}
        - sameLabels: all
        - sameLabels: [tier, app]
        - unlabelled: true
        - cidr: 10.0.0.0/8
          except: [10.2.0.0/16, 10.1.0.1/32]
        - {cidr: "::/0"}
        - cidr: FD00::/8
        - any: true`, Policy{
			Egress: Side{Isolates: true, Allow: []Rule{{Peers: []Peer{
				{Workloads: &web},
				{Workloads: &everything},
				{SameLabels: &SameLabels{All: true}},
				{SameLabels: &SameLabels{Keys: []string{"app", "tier"}}},
				{Unlabelled: true},
				{CIDR: &CIDR{netip.MustParsePrefix("10.0.0.0/8"), []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"),
					netip.MustParsePrefix("10.1.0.1/32")}}},
				{CIDR: &CIDR{Prefix: netip.MustParsePrefix("::/0")}},
				{CIDR: &CIDR{Prefix: netip.MustParsePrefix("fd00::/8")}},
				{Any: true},
			}}}},
		}},
		{"ports", "{selector: {}, ingress: [{ports: [80/tcp, \"8000-8100/udp\", tcp, udp, sctp, icmp, " +
			"icmp/echo-request]}]}", Policy{
			Ingress: Side{Isolates: true, Allow: []Rule{{Ports: []Port{
				{TCP, 80, 80, ""},
				{UDP, 8000, 8100, ""},
				{TCP, 1, 65535, ""},
				{UDP, 1, 65535, ""},
				{Protocol: SCTP},
				{Protocol: ICMP},
				{Protocol: ICMP, ICMPType: "echo-request"},
			}}}},
		}},
		{"selector", `
      ingress: []
      selector:
        matchExpressions:
        - {key: tier, operator: In, values: [web, db]}
        - {operator: NotIn, key: app, values: [""]}
        - {key: app, operator: Exists}
        - {key: zone, operator: DoesNotExist}
        - {key: app, operator: In, values: [x]}
        matchLabels: {app: x, example.com/Some_Key: "1.0", app2: yes}`, Policy{
			Selector: Selector{Requirements: []Requirement{
				{"app", Exists, nil},
				{"app", In, []string{"x"}},
				{"app", NotIn, []string{""}},
				{"app2", In, []string{"yes"}},
				{"example.com/Some_Key", In, []string{"1.0"}},
				{"tier", In, []string{"db", "web"}},
				{"zone", DoesNotExist, nil},
			}},
			Ingress: Side{Isolates: true},
		}},
		{"labels that tools set", `{ingress: [],
  selector: {matchLabels: {thole/exe: /usr/bin/curl, com.docker.compose.service: "a b"}}}`, Policy{
			Selector: Selector{Requirements: []Requirement{
				{"com.docker.compose.service", In, []string{"a b"}},
				{"thole/exe", In, []string{"/usr/bin/curl"}},
			}},
			Ingress: Side{Isolates: true},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse([]File{{"f.yaml",
				[]byte("apiVersion: thole/v1\nkind: Policy\nmetadata: {name: p.1-x}\nspec: " + c.spec + "\n")}})
			if err != nil {
				t.Fatal(err)
			}
			c.want.Name = "p.1-x"
			if diff := cmp.Diff(Documents{Policies: []Policy{c.want}}, got, sayTheSame); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoodGrants(t *testing.T) {
	got, err := Parse([]File{{"g.yaml", []byte(`
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: developers}
spec:
  users: [alice, 1000, bob@example.com, machine$]
  groups: ["1001"]
  labels: {app: [web, db, ""], env: ["*"]}
  require: {team: a}
---
# The form of the definition: nobody is in it yet.
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: a}
spec: {users: [], groups: [], labels: {app: [web, db], env: ["*"]}, require: {team: a}}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	want := Documents{Grants: []LabelGrant{
		{Name: "a", Labels: map[string][]string{"app": {"web", "db"}, "env": {"*"}}, Require: Labels{"team": "a"}},
		{
			Name:    "developers",
			Users:   []string{"alice", "1000", "bob@example.com", "machine$"},
			Groups:  []string{"1001"},
			Labels:  map[string][]string{"app": {"web", "db", ""}, "env": {"*"}},
			Require: Labels{"team": "a"},
		},
	}}
	if diff := cmp.Diff(want, got, sayTheSame); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// inventory has one Workload of each sort.
const inventory = `
- unit: nginx.service
- unit: getty@tty1.service
- unit: a-b.slice
- unit: my-app@1.service
- unit: worker@*.service
- unit: "worker@a?.service"
- user: 1000
- user: alice
- cgroup: machine.slice/*.scope
- container: db-1
- address: 192.0.2.1
- address: "2001:DB8::1"
`

// inventoryFile makes a Workload document of each item of inventory.
func inventoryFile() File {
	var b strings.Builder
	for i, spec := range strings.Split(strings.TrimSpace(inventory), "\n") {
		name := string(rune('a' + i))
		b.WriteString("---\napiVersion: thole/v1\nkind: Workload\nmetadata: {name: " + name +
			", namespace: n, labels: {app: x, empty: \"\"}}\n")
		b.WriteString("spec: {" + strings.TrimPrefix(spec, "- ") + "}\n")
	}
	return File{"inventory.yaml", []byte(b.String())}
}

func TestGoodWorkloads(t *testing.T) {
	docs, err := Parse([]File{inventoryFile()})
	if err != nil {
		t.Fatal(err)
	}
	labels := Labels{"app": "x", "empty": ""}
	want := []Binding{
		{Unit: "nginx.service"},
		{Unit: "getty@tty1.service"},
		{Unit: "a-b.slice"},
		{Unit: "my-app@1.service"},
		{Unit: "worker@*.service"},
		{Unit: "worker@a?.service"},
		{User: "1000"},
		{User: "alice"},
		{Cgroup: "machine.slice/*.scope"},
		{Container: "db-1"},
		{Address: netip.MustParseAddr("192.0.2.1")},
		{Address: netip.MustParseAddr("2001:db8::1")},
	}
	for i := range want {
		want[i].Name, want[i].Namespace, want[i].Labels = string(rune('a'+i)), "n", labels
	}
	if diff := cmp.Diff(Documents{Bindings: want}, docs, sayTheSame); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPositions: warnings of later passes point to the name, the rule, the peer.
func TestPositions(t *testing.T) {
	docs, err := Parse([]File{{"f.yaml", []byte(`# comment
---
kind: Policy
apiVersion: thole/v1
metadata:
  name: p
spec:
  selector: {}
  ingress:
  - ports: [80/tcp]
    from:
    - any: true
  - {from: [{unlabelled: true}]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	at := func(line, column int) Position { return Position{File: "f.yaml", Line: line, Column: column} }
	want := Documents{Policies: []Policy{{
		Name:     "p",
		Position: at(6, 9),
		Ingress: Side{Isolates: true, Allow: []Rule{
			{Position: at(10, 5), Ports: []Port{{TCP, 80, 80, ""}}, Peers: []Peer{{Any: true, Position: at(12, 7)}}},
			{Position: at(13, 5), Peers: []Peer{{Unlabelled: true, Position: at(13, 13)}}},
		}},
	}}}
	if diff := cmp.Diff(want, docs, sameAddress); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestEmpty has files that hold no document, which is no mistake.
func TestEmpty(t *testing.T) {
	for _, text := range []string{"", "\n", "# comment", "---", "---\n---\n", "---\n# c\n...\n---\n", "# c\r\n\r\n"} {
		docs, err := Parse([]File{{"f.yaml", []byte(text)}, {"g.yaml", nil}})
		if diff := cmp.Diff(Documents{}, docs); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", text, err, diff)
		}
	}
}

// TestLayout has one policy in all the ways of YAML.
func TestLayout(t *testing.T) {
	const plain = "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: p}\nspec: {selector: {}, egress: []}\n"
	want, err := Parse([]File{{"f.yaml", []byte(plain)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"windows lines": strings.ReplaceAll(plain, "\n", "\r\n"),
		"no last line":  strings.TrimSuffix(plain, "\n"),
		"json": `{"apiVersion": "thole/v1", "kind": "Policy", "metadata": {"name": "p"}, ` +
			`"spec": {"selector": {}, "egress": []}}`,
		"on the marker": "--- {apiVersion: thole/v1, kind: Policy, metadata: {name: p}, spec: {selector: {}, " +
			"egress: []}}",
		"other order": "spec:\n  egress: []\n  selector: {}\nmetadata:\n    name: 'p'\nkind: " +
			"\"Policy\"\napiVersion: thole/v1",
		"comments":   "# a\ttab\n" + strings.ReplaceAll(plain, "\n", " # –\n"),
		"end marker": plain + "...\n",
		"folded": "apiVersion: >-\n  thole/v1\nkind: |-\n  Policy\nmetadata: {name: p}\nspec: {selector: " +
			"{}, egress: []}\n",
		"empty documents": "---\n---\n" + plain + "---\n# nothing\n---\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]File{{"f.yaml", []byte(text)}})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, sayTheSame); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
