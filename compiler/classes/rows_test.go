package classes

import (
	"fmt"
	"strings"
	"testing"

	"thole/compiler/policy"
)

// A rule list keeps a bounded number of rows beside those that it needs, however many classes come and go.
func TestRowsAreBounded(t *testing.T) {
	text := strings.Builder{}
	text.WriteString("apiVersion: thole/v1\nkind: Policy\nmetadata: {name: open}\nspec:\n  selector: {}\n  ingress:\n")
	for i := range 12 {
		fmt.Fprintf(&text, "    - {from: [{workloads: {matchLabels: {k%d: \"1\"}}}], ports: [\"%d/tcp\"]}\n", i, 1000+i)
	}
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(text.String())}})
	if err != nil {
		t.Fatal(err)
	}
	first := policy.Workload{Name: "first", Kind: policy.KindRun, Labels: policy.Labels{"k0": "1"}}
	set, of := New(docs.Policies, &policy.Settings{}, []*policy.Workload{&first}, nil)
	rl := of[0].RuleLists[Ingress]
	most := 0
	for n := 2; n < 1<<12; n++ {
		w := policy.Workload{Name: fmt.Sprint("w", n), Kind: policy.KindRun, Labels: policy.Labels{}}
		for bit := range 12 {
			if n>>bit&1 != 0 {
				w.Labels[fmt.Sprint("k", bit)] = "1"
			}
		}
		c, made := set.ClassFor(&w)
		if !made {
			t.Fatalf("%v are in the class of %v", w.Labels, c)
		}
		naming := set.Naming(c)
		set.Enter(c, naming)
		most = max(most, len(rl.rows)-2*len(rl.Named))
		set.Leave(c, naming)
	}
	if most > spareRows || most < spareRows/2 {
		t.Errorf("beside those that it needs, the rule list kept %d rows; want about %d, and no more", most, spareRows)
	}
	if len(rl.Named) != 1 || len(set.Workloads) != 1 || len(set.Peers) > 4 {
		t.Errorf("after all left: %d named peers, %d classes, %d peers", len(rl.Named), len(set.Workloads),
			len(set.Peers))
	}
}
