package compiler

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

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

// kept is how much is in each map and list that r keeps, by the field that has it.
func (r *Result) kept() map[string]int {
	k := keeping{much: map[string]int{}, seen: map[unsafe.Pointer]bool{}}
	k.add("", reflect.ValueOf(r))
	k.much["Set.Peers"] -= k.much["Set.free"]
	delete(k.much, "Set.free")
	return k.much
}

// keeping counts what is in maps and lists. It does not look into what other packages than the compiler's define.
type keeping struct {
	much map[string]int
	seen map[unsafe.Pointer]bool
}

var notCounted = []string{
	"Result.Table", "Result.Numbers", // other tests say what is in them
	"RuleList.rows",                    // bounded (package classes, TestRowsAreBounded)
	"lowering.leads", "lowering.ranks", // as many as Set.Peers
}

func (k *keeping) add(field string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && !k.seen[v.UnsafePointer()] {
			k.seen[v.UnsafePointer()] = true
			k.add(field, v.Elem())
		}
	case reflect.Struct:
		switch v.Type().PkgPath() {
		case "thole/compiler", "thole/compiler/classes":
			for i := range v.NumField() {
				name := v.Type().Name() + "." + v.Type().Field(i).Name
				if !slices.Contains(notCounted, name) {
					k.add(name, v.Field(i))
				}
			}
		}
	case reflect.Map:
		k.much[field] += v.Len()
		for each := v.MapRange(); each.Next(); {
			k.add(field, each.Key())
			k.add(field, each.Value())
		}
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice {
			k.much[field] += v.Len()
		}
		for i := range v.Len() {
			k.add(field, v.Index(i))
		}
	}
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
	for n := 3; n < 700; n++ {
		w := growingWorkload(n)
		remote := policy.Remote{Labels: w.Labels, Node: fmt.Sprint("node", n)}
		step(Change{Began: []policy.Workload{w}, Met: []policy.Remote{remote}})
		step(Change{Ended: []policy.Workload{w}, Forgotten: []policy.Remote{remote}})
	}
	in.Numbers = r.Numbers
	fresh, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	want := fresh.kept()
	for field, much := range r.kept() {
		if much > want[field] {
			t.Errorf("%s: a result that was changed keeps %d, a new one %d", field, much, want[field])
		}
	}
	if want["Set.Workloads"] != 3 || want["RuleList.Named"] == 0 || want["lowering.pairs"] == 0 {
		t.Errorf("the new result is not counted: %v", want)
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
