package compiler

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
)

const growing = `apiVersion: thole/v1
kind: Policy
metadata: {name: closed}
spec:
  selector: {}
  ingress:
    - {from: [{sameLabels: [app]}], ports: ["80/tcp"]}
    - {from: [{workloads: {matchLabels: {k0: "1"}}}]}
`

// growingPolicies lets peers with one of so many labels in, each on a port of its own: there is another row for each
// set of labels.
func growingPolicies(t *testing.T, labels int) []policy.Policy {
	t.Helper()
	text := strings.Builder{}
	text.WriteString(growing)
	for i := range labels {
		fmt.Fprintf(&text, "    - {from: [{workloads: {matchLabels: {k%d: \"1\"}}}], ports: [\"%d/tcp\"]}\n", i, 1000+i)
	}
	text.WriteString("---\napiVersion: thole/v1\nkind: Policy\nmetadata: {name: audit}\n" +
		"spec: {enforcement: audit, selector: {matchLabels: {k1: \"1\"}}, egress: [{to: [{sameLabels: all}]}]}\n")
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(text.String())}})
	if err != nil {
		t.Fatal(err)
	}
	return docs.Policies
}

// growingWorkload is one whose labels are the bits of n.
func growingWorkload(n int) policy.Workload {
	w := policy.Workload{Name: fmt.Sprint("w", n), Kind: policy.KindRun, Labels: policy.Labels{"app": fmt.Sprint(n)},
		Cgroup: policy.Cgroup{Path: fmt.Sprint("thole.slice/", n), ID: uint64(1000 + n)}}
	for bit := range 12 {
		if n>>bit&1 != 0 {
			w.Labels[fmt.Sprint("k", bit)] = "1"
		}
	}
	return w
}

// kept is how much there is of all that grows with classes.
func (r *Result) kept() map[string]int {
	l := r.lowering
	kept := map[string]int{
		"peers": len(l.peers) - len(l.free), "classes": len(l.workloads), "remotes": len(l.remotes),
		"views": len(l.byLabelKey), "answers": len(l.byMatchKey), "bound": len(l.bound), "networked": len(l.networked),
		"pairs": len(l.pairs), "chains of ports": len(l.rows), "uses": len(l.uses), "destinations": len(l.destinations),
		"audits": len(l.audits), "above": len(l.containers.above), "levels": len(l.levels), "taken": len(r.taken),
		"taken remotes": len(r.takenRemotes), "indexes": len(l.labelIndexes), "matchers": len(l.matchers),
	}
	for d := range l.ruleLists {
		kept["ruleLists"] += len(l.ruleLists[d])
		for _, rl := range l.ruleLists[d] {
			kept["named"] += len(rl.named)
		}
	}
	for _, x := range l.labelIndexes {
		kept["indexed"] += len(x.byKey) + len(x.byLabel)
	}
	for _, m := range l.matchers {
		kept["matched"] += len(m.peers)
		kept["entries"] += len(m.in)
	}
	for u := range l.matched {
		for _, ids := range l.matched[u] {
			kept["selected"] += len(ids)
		}
	}
	return kept
}

// After hundreds of classes that came and went, a result keeps as much as a new one of what there is.
func TestChangeKeepsNothing(t *testing.T) {
	in := Input{Policies: growingPolicies(t, 12), Fleet: &Fleet{}, Options: Options{Epoch: 1}}
	for n := range 3 {
		in.Workloads = append(in.Workloads, growingWorkload(n))
	}
	r, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	step := func(c Change) {
		t.Helper()
		s, ok := r.Change(c)
		if !ok {
			t.Fatalf("only Compile can tell: %+v", c)
		}
		r.Table.Patch(s.Patch(1))
	}
	most := 0
	for n := 3; n < 700; n++ {
		w := growingWorkload(n)
		remote := policy.Remote{Labels: w.Labels, Node: fmt.Sprint("node", n)}
		step(Change{Began: []policy.Workload{w}, Met: []policy.Remote{remote}})
		step(Change{Ended: []policy.Workload{w}, Forgotten: []policy.Remote{remote}})
		for d := range r.lowering.ruleLists {
			for _, rl := range r.lowering.ruleLists[d] {
				most = max(most, len(rl.rows)-2*len(rl.named))
			}
		}
	}
	if most > spareRows {
		t.Errorf("a ruleList kept %d rows beside those that it needs; want at most %d", most, spareRows)
	}
	in.Numbers = r.Numbers
	fresh, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	if differs := cmp.Diff(fresh.kept(), r.kept()); differs != "" {
		t.Errorf("a new result (-) keeps less than one that was changed (+):\n%s", differs)
	}
	if !maps.Equal(fresh.lowering.uses, r.lowering.uses) || !maps.Equal(fresh.lowering.pairs, r.lowering.pairs) {
		t.Error("what is counted differs")
	}
}

// A member of a divided class keeps its number where its labels change and its class does not. When it ends, its
// number is free, and is not given again in this epoch.
func TestNumbersOfMembers(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte("apiVersion: thole/v1\nkind: Policy\n" +
		"metadata: {name: closed}\nspec: {selector: {}, ingress: []}\n")}})
	if err != nil {
		t.Fatal(err)
	}
	w := growingWorkload(1)
	r, err := Compile(Input{Policies: docs.Policies, Workloads: []policy.Workload{w}, Options: Options{Epoch: 1}})
	if err != nil {
		t.Fatal(err)
	}
	number := r.Numbers.Workloads[memberKeys(&w)[0]]
	other := growingWorkload(1)
	other.Labels = policy.Labels{"other": "1"}
	began := growingWorkload(2)
	s, ok := r.Change(Change{Ended: []policy.Workload{w}, Began: []policy.Workload{began, other}})
	if !ok || r.Numbers.Workloads[memberKeys(&other)[0]] != number || len(r.Numbers.Freed) != 0 {
		t.Fatalf("it had number %d, and then: %+v", number, r.Numbers)
	}
	r.Table.Patch(s.Patch(1))
	s, ok = r.Change(Change{Ended: []policy.Workload{other}})
	if !ok || !slices.Equal(r.Numbers.Freed, []uint32{number}) {
		t.Errorf("number %d is free: %+v", number, r.Numbers)
	}
	r.Table.Patch(s.Patch(1))
}
