package enforce

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/enforce/enforcetest"
	"thole/internal/policyset"
	"thole/internal/remotes"
	"thole/internal/state"
	"thole/ruleset"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

var (
	randomSteps = flag.Int("steps", 500, "random changes of what runs")
	randomSeed  = flag.Uint64("steps-seed", 0, "of the random changes; 0: a new one")
)

const randomPolicies = `apiVersion: thole/v1
kind: Policy
metadata: {name: same}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{sameLabels: [env]}], ports: ["80/tcp"]}, {from: [{cidr: 10.0.0.0/9}]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: closed}
spec: {selector: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}], egress: []}
`

const moreRandomPolicies = randomPolicies + `---
apiVersion: thole/v1
kind: Policy
metadata: {name: doubt}
spec:
  selector: {matchExpressions: [{key: tier, operator: Exists}]}
  ingress: []
  egress: [{to: [{sameLabels: all}]}]
  deny: {ingress: [{from: [{unlabelled: true}]}]}
`

// A randomWorld is what runs on a machine that is not there, and the kernel's answers, some of which are errors.
type randomWorld struct {
	*rand.Rand
	*enforcetest.Kernel
	t       *testing.T
	e       *Enforcer
	next    uint64 // id of a cgroup
	clock   time.Time
	running map[uint64]*policy.Workload // by id; those without labels are unlabelled containers
	sockets map[uint64]bool
	parents []policy.Cgroup
	bridges []policy.Bridge
	revoked map[string]bool

	wasKnown   map[uint64]bool // at the last check
	touched    map[string]bool // cgroups of thole run and containers, of which something is heard
	everything bool            // something else is
	faults     bool
}

var errRandom = errors.New("by chance")

func (w *randomWorld) fault() bool { return w.faults && w.IntN(4) == 0 }

func (w *randomWorld) Apply(c ruleset.Change) error {
	if w.fault() {
		return errRandom
	}
	if err := w.Kernel.Apply(c); err != nil {
		w.t.Errorf("the change does not fit the table: %v", err)
		return err
	}
	if w.fault() {
		return errRandom // it was made
	}
	return nil
}

func (w *randomWorld) Read(name string) (*ruleset.Table, error) {
	if w.fault() {
		return nil, errRandom
	}
	return w.Kernel.Read(name)
}

func (w *randomWorld) Generation() (uint32, error) {
	if w.fault() && w.IntN(4) == 0 {
		return 0, errRandom
	}
	return w.Kernel.Generation()
}

func (w *randomWorld) Remark(mask, bits uint32, change func(uint32) uint32) (int, error) {
	if w.fault() {
		return 0, errRandom
	}
	return w.Kernel.Remark(mask, bits, change)
}

func (w *randomWorld) Lives(id uint64) (bool, error) { return w.running[id] != nil, nil }

func (w *randomWorld) Sockets() (map[uint64]bool, error) { return w.sockets, nil }

func (w *randomWorld) Dying(string) (id uint64, some bool, err error) {
	for held := range w.sockets {
		some = some || w.running[held] == nil
	}
	return 1, some, nil
}

func (w *randomWorld) Recall(workload.Snapshot) {}

func (w *randomWorld) Scan([]policy.Binding) workload.Snapshot {
	w.touched, w.everything = map[string]bool{}, false
	return w.all()
}

func (w *randomWorld) all() (s workload.Snapshot) {
	s.Parents, s.Bridges = slices.Clone(w.parents), slices.Clone(w.bridges)
	for _, id := range slices.Sorted(maps.Keys(w.running)) {
		switch c := w.running[id]; {
		case c.Kind == policy.KindCgroup: // bound by nobody any more
		case len(c.Labels) == 0:
			s.Unlabelled = append(s.Unlabelled, policy.Unlabelled{Name: c.Name, Cgroup: c.Cgroup, Facts: c.Facts,
				Doubtful: c.Doubtful, Own: c.Own})
		default:
			s.Workloads = append(s.Workloads, *c)
		}
	}
	slices.SortFunc(s.Unlabelled, func(a, b policy.Unlabelled) int { return comparePath(a, b.Cgroup.Path) })
	return s
}

// heard is what Changes says, without forgetting it.
func (w *randomWorld) heard() workload.Snapshot {
	if w.everything {
		return w.all()
	}
	s := w.all()
	s.Partial, s.Parents, s.Bridges = true, nil, nil
	gone := maps.Clone(w.touched)
	s.Workloads = slices.DeleteFunc(s.Workloads, func(c policy.Workload) bool {
		delete(gone, c.Cgroup.Path)
		return !w.touched[c.Cgroup.Path]
	})
	s.Unlabelled = slices.DeleteFunc(s.Unlabelled, func(u policy.Unlabelled) bool {
		delete(gone, u.Cgroup.Path)
		return !w.touched[u.Cgroup.Path]
	})
	s.Gone = slices.Sorted(maps.Keys(gone))
	return s
}

func (w *randomWorld) Changes([]policy.Binding) workload.Snapshot {
	s := w.heard()
	w.touched, w.everything = map[string]bool{}, false
	return s
}

// Runs tells of the cgroups of thole run alone, if all were to be looked at, and nothing else is in one.
func (w *randomWorld) Runs(bindings []policy.Binding) workload.Snapshot {
	isRun := func(cgroup string) bool { return strings.HasPrefix(cgroup, cgroupfs.TholeSlice+"/") }
	for _, c := range w.running {
		if c.Kind != policy.KindRun && isRun(c.Cgroup.Path) {
			return w.Scan(bindings)
		}
	}
	if !w.everything {
		return w.Changes(bindings)
	}
	rest := maps.Clone(w.touched)
	maps.DeleteFunc(w.touched, func(cgroup string, _ bool) bool { return !isRun(cgroup) })
	maps.DeleteFunc(rest, func(cgroup string, _ bool) bool { return isRun(cgroup) })
	w.everything = false
	s := w.heard()
	w.touched, w.everything = rest, true
	return s
}

func (w *randomWorld) labels() policy.Labels {
	labels := policy.Labels{}
	for _, of := range [][]string{{"app", "web", "db", "x"}, {"env", "a", "b", "c"}, {"tier", "1", "2"}} {
		if w.IntN(2) == 0 {
			labels[of[0]] = of[1+w.IntN(len(of)-1)]
		}
	}
	return labels
}

// begin starts something, often in a cgroup of a name that was there before.
func (w *randomWorld) begin() {
	w.next++
	c := &policy.Workload{Name: fmt.Sprint("w", w.next), Kind: policy.KindContainer, Labels: w.labels(),
		Cgroup: policy.Cgroup{Path: fmt.Sprint("docker/", w.IntN(12)), ID: w.next}}
	switch w.IntN(4) {
	case 0, 1:
		c.Kind, c.Cgroup.Path = policy.KindRun, fmt.Sprint(cgroupfs.TholeSlice, "/", w.IntN(12))
		if len(c.Labels) == 0 {
			c.Labels = policy.Labels{"app": "x"}
		}
	case 2:
		c.Doubtful = policy.Labels{"tier": "1"}
		delete(c.Labels, "tier")
		if w.IntN(2) == 0 {
			c.Labels = policy.Labels{}
		}
	}
	if c.Kind == policy.KindContainer && w.IntN(8) == 0 {
		c.Cgroup.Path += "/below"
	}
	if c.Kind == policy.KindContainer && w.IntN(4) == 0 {
		c.Own = []policy.Network{{Bridge: "docker0", Port: fmt.Sprint("veth", w.next),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 17, byte(w.next >> 8), byte(w.next)})}}}
	}
	for _, o := range w.running {
		if o.Cgroup.Path == c.Cgroup.Path {
			return
		}
	}
	w.running[c.Cgroup.ID] = c
	if w.IntN(3) == 0 {
		w.sockets[c.Cgroup.ID] = true
	}
	w.touch(c)
}

func (w *randomWorld) touch(c *policy.Workload) {
	switch {
	case c.Kind == policy.KindRun, c.Kind == policy.KindContainer && !w.holdsAnother(c):
		w.touched[c.Cgroup.Path] = true
	default:
		w.everything = true
	}
}

// holdsAnother reports whether another container is, or may be, in the cgroup of one.
func (w *randomWorld) holdsAnother(c *policy.Workload) bool {
	for _, o := range w.running {
		if strings.HasPrefix(o.Cgroup.Path, c.Cgroup.Path+"/") {
			return true
		}
	}
	return false
}

// one is one of those that run.
func (w *randomWorld) one() *policy.Workload {
	ids := slices.Sorted(maps.Keys(w.running))
	return w.running[ids[w.IntN(len(ids))]]
}

// change changes something of what runs.
func (w *randomWorld) change() {
	if len(w.running) == 0 {
		w.begin()
		return
	}
	switch w.IntN(16) {
	case 0, 1, 2, 3, 4:
		w.begin()
	case 5, 6, 7, 8:
		c := w.one()
		delete(w.running, c.Cgroup.ID)
		w.touch(c)
	case 9: // sockets end
		for _, id := range slices.Sorted(maps.Keys(w.sockets)) {
			if w.running[id] == nil && w.IntN(2) == 0 {
				delete(w.sockets, id)
			}
		}
	case 10: // labels are others
		c := *w.one()
		if c.Kind != policy.KindRun {
			c.Labels = w.labels()
		} else {
			c.Name += "'"
		}
		w.running[c.Cgroup.ID] = &c
		delete(w.wasKnown, c.Cgroup.ID) // it may be unlabelled when it ends
		w.touch(&c)
	case 11: // connected or not
		c := *w.one()
		if c.Kind == policy.KindContainer {
			c.Own = nil
			w.running[c.Cgroup.ID] = &c
			w.touch(&c)
		}
	case 12: // nobody binds it any more
		if c := *w.one(); c.Kind == policy.KindContainer {
			c.Kind = policy.KindCgroup
			delete(w.wasKnown, c.Cgroup.ID)
			w.running[c.Cgroup.ID] = &c
			w.everything = true
		}
	case 13:
		w.parents = [][]policy.Cgroup{nil, {{Path: "docker", ID: 2}},
			{{Path: "docker", ID: 2}, {Path: cgroupfs.TholeSlice, ID: 3}}}[w.IntN(3)]
		w.everything = true
	case 14:
		w.bridges = [][]policy.Bridge{nil, {{Name: "docker0"}}}[w.IntN(2)]
		w.everything = true
	case 15:
		w.clock = w.clock.Add(endedPoll)
	}
}

// takesAway is what decided before there were deltas whether connections are decided again: from all that runs.
func (w *randomWorld) takesAway() bool {
	e, s := w.e, w.all()
	workloads, unlabelled := e.set.Docs.Identify(s.Workloads, s.Unlabelled)
	now := state.Containers{Unlabelled: unlabelled, Parents: s.Parents, Bridges: s.Bridges}
	if !e.loaded.inSync || e.remotes.RevocationPending || e.closesContainers(now) {
		return true
	}
	was := maps.Clone(e.loaded.workloads.workloads)
	for _, c := range workloads {
		before, ok := was[c.Cgroup.ID]
		alone := c.Kind == policy.KindRun || e.loaded.workloads.unlabelled[c.Cgroup.ID] == "" &&
			slices.ContainsFunc(e.loaded.containers.Parents, func(p policy.Cgroup) bool {
				return p.Path == path.Dir(c.Cgroup.Path)
			})
		if !ok && !alone || ok && (!sameIdentity(before, c) || missing(before.Own, c.Own)) {
			return true
		}
		delete(was, c.Cgroup.ID)
	}
	for id, c := range was {
		if len(c.Own) > 0 || w.running[id] != nil {
			return true
		}
	}
	return false
}

// check compares what is loaded, known and stored with what runs.
func (w *randomWorld) check(step int) {
	w.t.Helper()
	e := w.e
	s := w.all()
	workloads, unlabelled := e.set.Docs.Identify(s.Workloads, s.Unlabelled)
	runs := map[uint64]policy.Workload{}
	for _, c := range workloads {
		runs[c.Cgroup.ID] = c
	}
	paths := map[string]bool{}
	for id, known := range e.loaded.workloads.workloads {
		paths[known.Cgroup.Path] = true
		c, is := runs[id]
		if delete(runs, id); is && !reflect.DeepEqual(c, known) || is == e.loaded.workloads.ended[id] {
			w.t.Fatalf("step %d: %+v is known as %+v", step, c, known)
		}
		if is && e.loaded.workloads.paths[c.Cgroup.Path] != id {
			w.t.Fatalf("step %d: the path of %+v names %d", step, c, e.loaded.workloads.paths[c.Cgroup.Path])
		}
	}
	for id := range w.sockets {
		if _, known := e.loaded.workloads.of(id); !known && w.running[id] == nil && w.wasKnown[id] {
			w.t.Fatalf("step %d: a socket of %d, which ended, is nobody's", step, id)
		}
	}
	if diff := cmp.Diff(texts(doubts(e.set, workloads, unlabelled)), texts(e.conditions)); diff != "" {
		w.t.Fatalf("step %d: the conditions (-want +got):\n%s", step, diff)
	}
	if len(runs) > 0 || len(paths) != len(e.loaded.workloads.workloads) {
		w.t.Fatalf("step %d: these are not known: %v; paths %v of %v", step, runs, paths, e.loaded.workloads.workloads)
	}
	w.wasKnown = map[uint64]bool{}
	for id := range e.loaded.workloads.workloads {
		w.wasKnown[id] = true
	}
	closed := (&plan{containers: e.loaded.containers, unknown: e.ending.unknown}).closedCgroups()
	in := compiler.Input{Policies: e.set.Docs.Policies, Workloads: e.loaded.workloads.list(), Parents: closed,
		Unlabelled: unlabelled, Bridges: s.Bridges, Fleet: e.fleet, Remotes: e.remotes.Proven,
		Numbers: e.loaded.numbers}
	in.Options.Epoch = e.loaded.epoch
	fresh, err := compiler.Compile(in)
	if err != nil {
		w.t.Fatal(err)
	}
	if !sameTable(w.Table, &fresh.Table) || !sameTable(w.Table, e.loaded.table) {
		w.t.Fatalf("step %d: the table differs from a fresh compile:\n%s", step, ruleset.Diff(w.Table, &fresh.Table))
	}
	if !e.loaded.inSync || e.loaded.table != &e.loaded.result.Table {
		w.t.Fatalf("step %d: the table is not known to be the compiled one", step)
	}
	for i, r := range e.remotes.Proven {
		if class, believed := e.remotes.ClassOf(r); class != fresh.Remotes[i] || believed == r.Ended {
			w.t.Fatalf("step %d: %+v has class %d, believed %t; want class %d", step, r, class, believed,
				fresh.Remotes[i])
		}
	}
	w.checkStored(step)
}

// texts are those of conditions, in order.
func texts(conditions []condition.Condition) []string {
	var texts []string
	for _, c := range conditions {
		texts = append(texts, fmt.Sprint(c))
	}
	return slices.Sorted(slices.Values(texts))
}

// checkStored compares what is stored with what would be, where that does not wait for the next change.
func (w *randomWorld) checkStored(step int) {
	w.t.Helper()
	e := w.e
	if e.state.Stale() {
		return
	}
	got, err := e.state.Table()
	if err != nil {
		w.t.Fatal(err)
	}
	want := state.TableState{Version: state.Version, Epoch: e.loaded.epoch, Numbers: e.loaded.numbers,
		Workloads: e.loaded.workloads.list(), Containers: e.loaded.containers, Fleet: e.fleet,
		Identity: e.identity, Remotes: e.remotes.Proven, Unknown: e.ending.unknown, Dropped: e.ending.dropped}
	var text [2]string
	for i, m := range []state.TableState{want, got} {
		slices.SortFunc(m.Workloads, func(a, b policy.Workload) int { return int(a.Cgroup.ID) - int(b.Cgroup.ID) })
		data, err := json.MarshalIndent(m, "", " ")
		if err != nil {
			w.t.Fatal(err)
		}
		text[i] = string(data)
	}
	if differs := cmp.Diff(text[0], text[1]); differs != "" {
		w.t.Fatalf("step %d: what is stored is something else:\n%s", step, differs)
	}
}

func newRandomWorld(t *testing.T, r *rand.Rand) *randomWorld {
	t.Helper()
	w := &randomWorld{Rand: r, t: t, Kernel: &enforcetest.Kernel{}, next: 1000, clock: time.Unix(1_800_000_000, 0),
		running: map[uint64]*policy.Workload{}, sockets: map[uint64]bool{}, revoked: map[string]bool{},
		touched: map[string]bool{}, everything: true, parents: []policy.Cgroup{{Path: "docker", ID: 2}}}
	dir := t.TempDir()
	w.start(dir)
	t.Cleanup(func() { w.e.state.Close() })
	return w
}

// start begins a daemon, which finds what the last one left.
func (w *randomWorld) start(dir string) {
	w.t.Helper()
	stored, err := state.Open(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	set := policyset.Set{}
	if w.Table == nil {
		w.wasKnown = nil
	}
	if w.e != nil {
		w.e.state.Close()
		set = w.e.set
	} else {
		set = w.policies(randomPolicies)
	}
	w.e = &Enforcer{kernel: w, conntrack: w, scanner: w, cgroups: w, state: stored, log: slog.New(slog.DiscardHandler),
		now: func() time.Time { return w.clock }, fleet: &compiler.Fleet{}}
	w.e.remotes.Trusts = func(certificate string) bool { return !w.revoked[certificate] }
	if err := w.e.adopt(); err != nil {
		w.t.Fatal(err)
	}
	w.e.set = set
	if err := w.e.reconcile(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *randomWorld) policies(text string) policyset.Set {
	w.t.Helper()
	set, err := policyset.Parse("test", []policy.File{{Name: "p.yaml", Data: []byte(text)}})
	if err != nil {
		w.t.Fatal(err)
	}
	return set
}

// act has the daemon do something that is about more than what runs. It may fail.
func (w *randomWorld) act() {
	e := w.e
	switch w.IntN(14) {
	case 0:
		w.wasKnown = nil // an image's label may make no workload any more
		_, _ = e.enforce(w.policies([]string{randomPolicies, moreRandomPolicies}[w.IntN(2)]), everything)
	case 1, 2, 3:
		_ = e.learnRemote(remote(w.IntN(3), w.IntN(4)))
	case 4:
		w.clock = w.clock.Add(remotes.Idle)
		if n := len(e.remotes.Proven); n > 0 {
			e.remotes.Note(e.remotes.Proven[w.IntN(n)], w.clock)
		}
		e.removeIdleRemotes()
	case 5:
		w.revoked = map[string]bool{fmt.Sprint("ca/", w.IntN(6)): true}
		e.endRevoked()
		_ = e.reconcile()
	case 6:
		if w.IntN(4) == 0 {
			_ = e.state.Disarm()
			_ = e.catchUp()
			_, _ = e.state.Arm()
			w.everything = true
		}
	case 7:
		w.remove()
	case 8:
		_ = e.reconcile()
	case 9, 10:
		_ = e.catchUpTo(whatRan)
	default:
		_ = e.catchUp()
	}
}

// remove is another program that removes the table.
func (w *randomWorld) remove() {
	w.Kernel.Change(func() { w.Table = nil })
	w.e.restore()
}

// After whatever happened, also where the kernel refused a change or said so after it had made it: the table is that of
// a fresh compile, what is known is what runs, what is stored is what is known, and connections are decided again where
// they were before there were deltas.
func TestRandomSteps(t *testing.T) {
	if *randomSeed == 0 {
		*randomSeed = rand.Uint64()
	}
	t.Logf("-steps-seed %d", *randomSeed)
	made := map[string]int{}
	for n := 0; n < *randomSteps; {
		w := newRandomWorld(t, rand.New(rand.NewPCG(*randomSeed, uint64(n))))
		for range 50 {
			n++
			w.step(n, made)
		}
	}
	t.Logf("%v", made)
}

func (w *randomWorld) step(n int, made map[string]int) {
	e := w.e
	for range 1 + w.IntN(3) {
		w.change()
	}
	if w.IntN(3) == 0 {
		w.faults = true
		w.act()
		w.faults = false
		made["acts"]++
		if e.failures.table != nil {
			made["failed"]++
		}
		w.change()
	}
	if w.IntN(12) == 0 {
		w.start(e.state.Path())
		e = w.e
		made["starts"]++
	}
	takes, epoch, applied := w.takesAway(), e.loaded.epoch, len(w.Applied)
	settled := e.loaded.inSync && !e.remotes.RevocationPending // else all that runs is looked at
	if settled {
		looked := w.heard()
		if e.failures.table != nil {
			looked = w.all() // as the daemon does after a failure
		}
		if d, _ := e.deltaTo(e.set, e.identified(e.set, looked)); takes && !d.takes && !d.empty() {
			w.t.Fatalf("step %d: somebody loses an allowance: %+v", n, d)
		} else if !takes && d.takes {
			made["more epochs"]++
		}
		e.ending.checked = time.Time{}
	}
	if err := e.catchUp(); err != nil {
		w.t.Fatalf("step %d: %v", n, err)
	}
	changed := w.Applied[applied:]
	if takes && len(changed) > 0 && e.loaded.epoch == epoch {
		w.t.Fatalf("step %d: somebody lost an allowance, and epoch %d stays", n, epoch)
	}
	for _, c := range changed {
		if made["changes"]++; c.Have == nil && c.Want == nil {
			made["without a compile"]++
		}
	}
	w.check(n)
}
