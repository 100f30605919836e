package compiler_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
)

var changes = flag.Int("changes", 1000, "random steps of workloads that begin and end")

// What a Change makes of a Result is what Compile makes of all that there is then, and its patch of the table is what
// Diff finds.
func TestChange(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	made := map[string]int{} // what steps were made of, without Compile
	for n := uint64(0); n < uint64(*changes); n++ {
		r := rand.New(rand.NewPCG(*seed, n))
		m := newMoving(t, r)
		for range 8 {
			m.step(t, n, made)
			n++
		}
	}
	t.Logf("%v", made)
	for _, of := range []string{
		"began", "ended", "new class", "class ended", "unlabelled", "parents", "met", "forgotten", "epoch",
	} {
		if made[of] < *changes/50 {
			t.Errorf("only %d of %d steps had this, and were made without Compile: %s", made[of], *changes, of)
		}
	}
}

// What EnterEpoch makes of a Result is what Compile makes of the same input in another epoch.
func TestEnterEpoch(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	for n := uint64(0); n < 300; n++ {
		m := newMoving(t, rand.New(rand.NewPCG(*seed, n)))
		for range 3 {
			m.next()
			got := compiled(t, m.atPresent())
			m.in.Options.Epoch++
			want := compiled(t, m.atPresent())
			got.EnterEpoch(m.in.Options.Epoch)
			if differs := cmp.Diff(want.Numbers, got.Numbers); differs != "" {
				t.Fatalf("case %d: %s", n, differs)
			}
			if !reflect.DeepEqual(want.Table, got.Table) {
				t.Fatalf("case %d: %s", n, ruleset.Diff(&got.Table, &want.Table))
			}
			m.result = got
		}
	}
}

// moving are the workloads of a random case, which begin and end.
type moving struct {
	*rand.Rand
	in     compiler.Input // Workloads are those that run
	kinds  []policy.Workload
	made   int
	result compiler.Result
}

func newMoving(t *testing.T, r *rand.Rand) *moving {
	c := reference.Random(r, 1+r.IntN(5))
	kinds, _ := withContainers(c)
	for len(kinds) == 0 {
		c = reference.Random(r, 1+r.IntN(5))
		kinds, _ = withContainers(c)
	}
	m := &moving{Rand: r, in: compiler.Input{Policies: c.Policies, Parents: []policy.Cgroup{{Path: "docker", ID: 9}},
		Options: compiler.Options{Epoch: uint16(1 + r.IntN(50))}}}
	if r.IntN(2) == 0 {
		m.in.Bridges = []policy.Bridge{{Name: docker0}}
	}
	for i := range r.IntN(3) {
		m.in.Unlabelled = append(m.in.Unlabelled,
			policy.Unlabelled{Cgroup: policy.Cgroup{Path: fmt.Sprintf("docker/%d/free", r.IntN(20)),
				ID: uint64(20 + i)}})
	}
	m.kinds = kinds
	if r.IntN(2) == 0 {
		m.moreKinds()
	}
	if r.IntN(2) == 0 {
		m.in.Fleet = &compiler.Fleet{Queue: 7}
		for range r.IntN(4) {
			m.in.Remotes = append(m.in.Remotes, m.remote())
		}
	}
	for range r.IntN(20) {
		m.in.Workloads = append(m.in.Workloads, m.begin())
	}
	m.result = compiled(t, m.in)
	return m
}

// remote returns what another node proved: the labels of some in the case.
func (m *moving) remote() policy.Remote {
	m.made++
	addresses := []string{"10.0.0.1", "10.1.2.3", "192.0.2.7", "198.51.100.9", "fd00::5", "2001:db8::7"}
	r := policy.Remote{Labels: m.kinds[m.IntN(len(m.kinds))].Labels, Node: fmt.Sprint("node", m.made),
		Address:     netip.MustParseAddr(addresses[m.IntN(len(addresses))]),
		Certificate: fmt.Sprint("ca/", m.IntN(3)), Ended: m.IntN(6) == 0}
	for _, key := range []string{"app", "env", "ghost", "tier"} {
		if _, said := r.Labels[key]; !said && m.IntN(3) == 0 {
			r.Unsaid = append(r.Unsaid, key)
		}
	}
	return r
}

// moreKinds adds workloads with other labels than those in the case, so that there are many classes.
func (m *moving) moreKinds() {
	values := map[string][]string{"app": {"", "db", "web", "x"}, "env": {"dev", "prod"}, "tier": {"", "1", "true"}}
	for range m.IntN(40) {
		w := m.kinds[m.IntN(len(m.kinds))]
		w.Labels, w.Doubtful = maps.Clone(w.Labels), maps.Clone(w.Doubtful)
		for key, values := range values {
			if m.IntN(2) == 0 {
				continue
			}
			delete(w.Labels, key)
			delete(w.Doubtful, key)
			switch value := values[m.IntN(len(values))]; m.IntN(4) {
			case 0:
			case 1:
				if w.Doubtful == nil {
					w.Doubtful = policy.Labels{}
				}
				w.Doubtful[key] = value
			default:
				w.Labels[key] = value
			}
		}
		if len(w.Labels)+len(w.Doubtful) > 0 {
			m.kinds = append(m.kinds, w)
		}
	}
}

// begin returns a workload that no other has the cgroup of, with the labels of some in the case.
func (m *moving) begin() policy.Workload {
	w := m.kinds[m.IntN(len(m.kinds))]
	m.made++
	w.Name = fmt.Sprint("w", m.made)
	w.Cgroup = policy.Cgroup{Path: fmt.Sprintf("docker/%d", m.IntN(1000)), ID: 1<<40 + uint64(m.made)}
	if m.IntN(10) == 0 {
		w.Cgroup.Path += "/below"
	}
	if m.IntN(10) != 0 {
		w.Own = nil
	}
	if slices.ContainsFunc(m.in.Workloads, func(o policy.Workload) bool { return o.Cgroup.Path == w.Cgroup.Path }) {
		w.Cgroup.Path += fmt.Sprint("#", m.made)
	}
	return w
}

// next returns a random change, and makes it of the input.
func (m *moving) next() (c compiler.Change) {
	for range m.IntN(4) {
		if k := len(m.in.Workloads); k > 0 && m.IntN(2) == 0 {
			at := m.IntN(k)
			c.Ended = append(c.Ended, m.in.Workloads[at])
			m.in.Workloads = slices.Delete(slices.Clone(m.in.Workloads), at, at+1)
		} else {
			c.Began = append(c.Began, m.begin())
		}
	}
	for at, w := range c.Began { // two that begin at once
		if slices.ContainsFunc(c.Began[:at], func(o policy.Workload) bool { return o.Cgroup.Path == w.Cgroup.Path }) {
			c.Began[at].Cgroup.Path += "#again"
		}
	}
	if k := len(m.in.Workloads); k > 0 && m.IntN(5) == 0 { // one becomes another
		at := m.IntN(k)
		was := m.in.Workloads[at]
		c.Ended = append(c.Ended, was)
		m.in.Workloads = slices.Delete(slices.Clone(m.in.Workloads), at, at+1)
		is := m.begin()
		is.Cgroup = was.Cgroup
		c.Began = append(c.Began, is)
	}
	m.in.Workloads = append(slices.Clone(m.in.Workloads), c.Began...)
	if m.IntN(4) == 0 {
		m.made++
		left := m.in.Unlabelled[min(len(m.in.Unlabelled), m.IntN(2)):]
		m.in.Unlabelled = append(slices.Clone(left), policy.Unlabelled{Cgroup: policy.Cgroup{
			Path: fmt.Sprintf("docker/%d/free%d", m.IntN(1000), m.made), ID: 1<<50 + uint64(m.made)}})
		c.Unlabelled = &m.in.Unlabelled
	}
	if m.IntN(6) == 0 {
		m.made++
		m.in.Parents = append(slices.Clone(m.in.Parents[m.IntN(2)*(len(m.in.Parents)-1):]),
			policy.Cgroup{Path: fmt.Sprint("parent", m.made), ID: 1<<51 + uint64(m.made)})
		c.Parents = &m.in.Parents
	}
	if m.in.Fleet != nil && m.IntN(3) == 0 {
		for range m.IntN(min(3, len(m.in.Remotes)+1)) {
			at := m.IntN(len(m.in.Remotes))
			c.Forgotten = append(c.Forgotten, m.in.Remotes[at])
			m.in.Remotes = slices.Delete(slices.Clone(m.in.Remotes), at, at+1)
		}
		for range m.IntN(4) {
			c.Met = append(c.Met, m.remote())
		}
		if len(c.Forgotten) > 0 && m.IntN(4) == 0 { // it is met again
			c.Met = append(c.Met, c.Forgotten[0])
		}
		m.in.Remotes = append(slices.Clone(m.in.Remotes), c.Met...)
	}
	return c
}

// step makes a change, and counts what is in it if that needed no Compile.
func (m *moving) step(t *testing.T, n uint64, made map[string]int) {
	had, classes := compiled(t, m.atPresent()), m.result.Len()
	c, before, stored := m.next(), m.result.Numbers, withMaps(m.result.Numbers, m.result.Numbers)
	step, ok := m.result.Change(c)
	if !ok {
		if !reflect.DeepEqual(had.Table, m.result.Table) || !reflect.DeepEqual(had.Numbers, m.result.Numbers) {
			t.Fatalf("step %d: what only Compile can tell changed something", n)
		}
		m.result = compiled(t, m.atPresent())
		return
	}
	count := func(what string, is bool) {
		if is {
			made[what]++
		}
	}
	count("began", len(c.Began) > 0)
	count("ended", len(c.Ended) > 0)
	count("new class", m.result.Len() > classes)
	count("class ended", m.result.Len() < classes)
	count("unlabelled", c.Unlabelled != nil)
	count("parents", c.Parents != nil)
	count("met", len(c.Met) > 0)
	count("forgotten", len(c.Forgotten) > 0)
	count("epoch", m.IntN(5) == 0 && !step.Empty())
	if m.IntN(5) == 0 {
		m.in.Options.Epoch++
	}
	patch := step.Patch(m.in.Options.Epoch)
	m.result.Table.Patch(patch)
	undone := withMaps(before, m.result.Numbers)
	step.Undo(&undone)
	if differs := cmp.Diff(stored, undone); differs != "" {
		t.Fatalf("step %d: the numbers are not what they were: %s", n, differs)
	}
	stored.Renumber(step.Numbers)
	if differs := cmp.Diff(m.result.Numbers, stored); differs != "" {
		t.Fatalf("step %d: the change of the numbers says less than what it was: %s", n, differs)
	}
	want := compiled(t, m.atPresent())
	if steps := ruleset.Diff(&had.Table, &want.Table).Steps; !reflect.DeepEqual(steps, patch.Change("thole").Steps) {
		t.Fatalf("step %d: Diff says otherwise:\n%s", n, cmp.Diff(steps, patch.Change("thole").Steps))
	}
	if !reflect.DeepEqual(m.result.Table, want.Table) {
		t.Fatalf("step %d: %+v:\n%s", n, c, ruleset.Diff(&m.result.Table, &want.Table))
	}
	for _, differs := range []string{
		cmp.Diff(want.Numbers, m.result.Numbers), cmp.Diff(want.Warnings, m.result.Warnings),
		cmp.Diff(want.Remotes, m.result.Remotes),
		cmp.Diff(want.Classes(m.in.Workloads), m.result.Classes(m.in.Workloads)),
	} {
		if differs != "" {
			t.Fatalf("step %d: %+v:\n%s", n, c, differs)
		}
	}
}

// withMaps returns numbers with copies of the maps of others.
func withMaps(n, of compiler.Numbers) compiler.Numbers {
	n.Workloads, n.Addresses = clone(of.Workloads), clone(of.Addresses)
	n.Remotes, n.Freed = clone(of.Remotes), slices.Clone(n.Freed)
	return n
}

func clone(of map[string]uint32) map[string]uint32 {
	copied := map[string]uint32{}
	maps.Copy(copied, of)
	return copied
}

// atPresent is the input with the numbers that the result has.
func (m *moving) atPresent() compiler.Input {
	m.in.Numbers = m.result.Numbers
	return m.in
}

func compiled(t *testing.T, in compiler.Input) compiler.Result {
	t.Helper()
	r, err := compiler.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
