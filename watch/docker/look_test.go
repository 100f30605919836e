package docker

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/watch"
	"thole/watch/workload"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of what happens by chance; 0: a fresh one, printed")
	looks = flag.Int("looks", 1000, "random operations of an engine")
)

// Whatever an engine does, and however its events arrive, the snapshots of single containers add up to what a look at
// all containers finds; and when all is quiet, to what a program finds that knows nothing yet.
func TestLooksAtSingleContainers(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	tr, engine := newDockerTree(t)
	for _, place := range []string{"docker", "system.slice", "jobs.slice", "bound.slice"} {
		tr.in(place)
	}
	engine.set(func() { engine.networks = []bridgeNetwork{{id: "n0", name: "bridge", bridge: "docker0"}} })
	nstest.WaitFor(t, patience, "the engine", func() bool { return tr.docker.Status().Connected })
	l := &looker{tree: tr, engine: engine, r: rand.New(rand.NewPCG(*seed, 0)), containers: map[string]*looked{}}
	for n := range *looks {
		what := l.step()
		l.agree(fmt.Sprintf("step %d: %s", n, what), l.all, wholly)
		if n%25 == 24 {
			l.settle()
			l.agree(fmt.Sprintf("step %d: all is quiet after %s", n, what), l.fresh, containersAlone)
		}
	}
	t.Logf("%d looks at single containers, %d at all", l.partial, l.whole)
	if l.partial < *looks/4 {
		t.Errorf("%d operations, and only %d looks at single containers", *looks, l.partial)
	}
}

// A looker follows an engine by looks at single containers.
type looker struct {
	*tree
	engine     *fakeEngine
	r          *rand.Rand
	containers map[string]*looked // that the engine has
	made       int
	late       []event // are sent later, in another order
	model      workload.Snapshot
	known      bool // there is a model

	partial, whole int
}

// A looked is a container of the engine.
type looked struct {
	container
	place   string
	process *nstest.Process // nil: it has none
}

func (c *looked) cgroup() string {
	if c.place == "docker" {
		return c.place + "/" + c.id
	}
	return c.place + "/docker-" + c.id + ".scope"
}

// lookBindings bind cgroups of containers, too.
var lookBindings = []policy.Binding{
	{Name: "bound", Labels: policy.Labels{"app": "bound"}, Cgroup: "bound.slice/*"},
	{Name: "cron", Labels: policy.Labels{"app": "cron"}, Unit: "cron.service"},
}

// A lookStep is something that an engine does, or that happens to it. It returns false where it cannot happen.
type lookStep struct {
	name   string
	weight int
	do     func(*looker) bool
}

var lookSteps = []lookStep{
	{"create", 14, (*looker).create},
	{"start", 22, (*looker).start},
	{"stop", 14, (*looker).stop},
	{"restart", 8, (*looker).restart},
	{"rename", 8, (*looker).rename},
	{"pause", 4, (*looker).pause},
	{"destroy", 6, (*looker).destroy},
	{"create again with other labels", 4, (*looker).recreate},
	{"connect or disconnect a network", 8, (*looker).connect},
	{"late events arrive", 6, (*looker).sendLate},
	{"an inspection fails", 3, (*looker).failInspection},
	{"the engine is restarted", 1, (*looker).restartEngine},
	{"a cgroup that is no container's", 1, (*looker).stranger},
	{"a cgroup that is named like a container's", 1, (*looker).impostor},
	{"a build", 1, (*looker).build},
	{"events are lost", 1, (*looker).loseEvents},
}

func (l *looker) step() string {
	var all []lookStep
	for _, s := range lookSteps {
		all = append(all, slices.Repeat([]lookStep{s}, s.weight)...)
	}
	for {
		if s := all[l.r.IntN(len(all))]; s.do(l) {
			return s.name
		}
	}
}

// any returns one of the containers of which something is true.
func (l *looker) any(is func(*looked) bool) *looked {
	var those []*looked
	for _, id := range slices.Sorted(maps.Keys(l.containers)) {
		if c := l.containers[id]; is(c) {
			those = append(those, c)
		}
	}
	if len(those) == 0 {
		return nil
	}
	return those[l.r.IntN(len(those))]
}

func runs(c *looked) bool  { return c.running }
func rests(c *looked) bool { return !c.running }

// tell stores what the engine says of a container, and sends an event: mostly once and at once.
func (l *looker) tell(c *looked, networks bool) {
	l.engine.put(c.container)
	l.event(event{container: c.id, networks: networks})
}

func (l *looker) event(ev event) {
	switch l.r.IntN(10) {
	case 0:
		if ev.networks { // a listing shows what changed since the listing before it, and not since the last inspection
			l.late = append(l.late, ev)
		}
	case 1:
		l.late = append(l.late, ev)
	case 2:
		l.engine.emit(ev)
		l.engine.emit(ev)
	default:
		l.engine.emit(ev)
	}
}

func (l *looker) create() bool {
	if len(l.containers) >= 20 {
		return false
	}
	l.made++
	places := []string{"docker", "docker", "docker", "system.slice", "jobs.slice", "bound.slice"}
	c := &looked{place: places[l.r.IntN(len(places))]}
	c.container = container{id: fmt.Sprintf("%064x", l.made), name: fmt.Sprint("box", l.made), network: "host"}
	if l.r.IntN(4) == 0 {
		c.network = "bridge"
	}
	l.label(c)
	c.details = &details{parent: c.place}
	l.containers[c.id] = c
	l.tell(c, false)
	return true
}

// label gives a container labels, or none, or some that cannot be used.
func (l *looker) label(c *looked) {
	app := []string{"web", "db", "job"}[l.r.IntN(3)]
	switch l.r.IntN(10) {
	case 0, 1, 2:
		c.labels = map[string]string{"com.example.tool": "x"}
	case 3:
		c.labels = map[string]string{"app": app}
		c.imageLabels = map[string]string{"app": app}
	case 4:
		c.labels = map[string]string{"app": "bad\x01"}
	case 5:
		c.labels, c.image = map[string]string{"app": app}, removedImage
	default:
		c.labels = map[string]string{"app": app}
	}
}

func (l *looker) start() bool {
	c := l.any(rests)
	if c == nil {
		return false
	}
	l.begin(c)
	return true
}

func (l *looker) begin(c *looked) {
	c.running = true
	if l.r.IntN(2) == 0 { // the engine says so first
		l.tell(c, false)
	}
	cgroup := l.in(c.cgroup())
	if c.network == "bridge" {
		c.process = cgroup.Start("sleep", "infinity")
		c.details = &details{parent: c.place, pid: c.process.Pid}
		l.attach(c)
	}
	l.tell(c, false)
}

// attach connects a container to a network.
func (l *looker) attach(c *looked) {
	d := *c.details
	address := netip.AddrFrom4([4]byte{172, 17, 0, byte(2 + l.r.IntN(200))})
	d.addresses = map[string][]netip.Addr{"n0": {address}}
	c.details, c.endpoints = &d, map[string]string{"n0": address.String()}
}

func (l *looker) end(c *looked) {
	if c.process != nil {
		c.process.Kill()
		_ = c.process.Wait() // it was killed
		c.process = nil
	}
	l.remove(c.cgroup())
	c.running, c.details, c.endpoints = false, &details{parent: c.place}, nil
	l.tell(c, false)
}

func (l *looker) stop() bool {
	c := l.any(runs)
	if c != nil {
		l.end(c)
	}
	return c != nil
}

func (l *looker) restart() bool {
	c := l.any(runs)
	if c != nil {
		l.end(c)
		l.begin(c)
	}
	return c != nil
}

func (l *looker) rename() bool {
	c := l.any(func(*looked) bool { return true })
	if c == nil {
		return false
	}
	l.made++
	c.name = fmt.Sprint("box", l.made)
	l.tell(c, false)
	return true
}

func (l *looker) pause() bool {
	c := l.any(runs)
	if c != nil {
		l.tell(c, false)
	}
	return c != nil
}

func (l *looker) destroy() bool {
	c := l.any(func(*looked) bool { return true })
	if c == nil {
		return false
	}
	if c.running {
		l.end(c)
	}
	delete(l.containers, c.id)
	l.engine.set(func() { delete(l.engine.containers, c.id) })
	l.event(event{container: c.id})
	return true
}

func (l *looker) recreate() bool { return l.destroy() && l.create() && l.start() }

func (l *looker) connect() bool {
	c := l.any(func(c *looked) bool { return c.process != nil })
	if c == nil {
		return false
	}
	if len(c.details.addresses) == 0 {
		l.attach(c)
	} else {
		c.details = &details{parent: c.place, pid: c.process.Pid}
		c.endpoints = nil
	}
	l.tell(c, true)
	return true
}

func (l *looker) sendLate() bool {
	l.r.Shuffle(len(l.late), func(i, j int) { l.late[i], l.late[j] = l.late[j], l.late[i] })
	for _, ev := range l.late {
		l.engine.emit(ev)
	}
	sent := len(l.late) > 0
	l.late = nil
	return sent
}

func (l *looker) failInspection() bool {
	l.engine.set(func() { l.engine.failures = 1 })
	return l.pause()
}

// restartEngine has the engine be away while something happens.
func (l *looker) restartEngine() bool {
	var before int
	l.engine.set(func() { before = l.engine.connections })
	l.engine.disconnect()
	l.agree("the engine is away", l.all, wholly)
	for range 3 {
		_ = l.start() || l.stop()
	}
	l.agree("containers changed while the engine is away", l.all, wholly)
	l.engine.reconnect()
	nstest.WaitFor(l.t, patience, "the engine", func() (again bool) {
		l.engine.set(func() { again = l.engine.connections > before })
		return again
	})
	return true
}

// toggle creates or removes a cgroup.
func (l *looker) toggle(cgroup string) bool {
	if l.id(cgroup) == 0 {
		l.in(cgroup)
	} else {
		l.remove(cgroup)
	}
	return true
}

func (l *looker) stranger() bool { return l.toggle("docker/stranger") }
func (l *looker) impostor() bool { return l.toggle("docker/" + idOf("f")) }
func (l *looker) build() bool    { return l.toggle("docker/" + buildCgroup) }

// loseEvents is an overflow of the events of the cgroup tree.
func (l *looker) loseEvents() bool {
	l.cgroups.Wake()
	return true
}

// settle has all be known that was lost.
func (l *looker) settle() {
	l.sendLate()
	l.listAnew(l.engine)
}

// agree follows the changes until the model is what another look finds.
func (l *looker) agree(
	when string, look func() workload.Snapshot, compared func(workload.Snapshot) workload.Snapshot,
) {
	l.t.Helper()
	deadline := time.Now().Add(nstest.Patience(patience))
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		l.apply(l.cgroups.Changes(lookBindings))
		diff := gocmp.Diff(compared(look()), compared(l.model), byValue, cmpopts.EquateEmpty(),
			cmpopts.EquateComparable(netip.Prefix{}))
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: after %v (-want +got):\n%s", when, patience, diff)
		}
		select {
		case <-l.cgroups.Changed():
		case <-time.After(pause):
		}
	}
}

// apply applies a snapshot to the model.
func (l *looker) apply(s workload.Snapshot) {
	if !s.Partial {
		l.model, l.known = s, true
		l.whole++
		return
	}
	if !l.known {
		l.t.Fatal("the first look was not at all containers")
	}
	if len(s.Gone)+len(s.Workloads)+len(s.Unlabelled) > 0 {
		l.partial++
	}
	about := map[string]bool{}
	for _, cgroup := range s.Gone {
		about[cgroup] = true
	}
	for _, w := range s.Workloads {
		about[w.Cgroup.Path] = true
	}
	for _, u := range s.Unlabelled {
		about[u.Cgroup.Path] = true
	}
	l.model.Workloads = append(slices.DeleteFunc(slices.Clone(l.model.Workloads), func(w policy.Workload) bool {
		return about[w.Cgroup.Path]
	}), s.Workloads...)
	l.model.Unlabelled = append(slices.DeleteFunc(slices.Clone(l.model.Unlabelled), func(u policy.Unlabelled) bool {
		return about[u.Cgroup.Path]
	}), s.Unlabelled...)
}

// containersAlone are the containers of a snapshot. What has run longer may know more places and bridges.
func containersAlone(s workload.Snapshot) workload.Snapshot {
	s.Parents, s.Bridges, s.Conditions = nil, nil, nil
	return wholly(s)
}

// wholly puts a snapshot in order.
func wholly(s workload.Snapshot) workload.Snapshot {
	s.Workloads = slices.SortedFunc(slices.Values(s.Workloads), func(a, b policy.Workload) int {
		return cmp.Compare(a.Cgroup.Path, b.Cgroup.Path)
	})
	s.Unlabelled = slices.SortedFunc(slices.Values(s.Unlabelled), func(a, b policy.Unlabelled) int {
		return cmp.Compare(a.Cgroup.Path, b.Cgroup.Path)
	})
	s.Conditions = slices.SortedFunc(slices.Values(s.Conditions), func(a, b condition.Condition) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Where, b.Where), cmp.Compare(a.Text, b.Text))
	})
	return s
}

// all looks at all containers, with what is known of them now.
func (l *looker) all() workload.Snapshot {
	d := l.docker
	same := &Docker{changed: func(...string) {}, connection: d.connection, queues: newQueues(), places: d.places,
		bridges: d.bridges}
	same.containers = newContainers(d.places, same.queues, func(...string) {})
	d.containers.mu.Lock()
	maps.Copy(same.containers.records, d.containers.records)
	maps.Copy(same.containers.unknown, d.containers.unknown)
	d.containers.mu.Unlock()
	return l.lookBy(same)
}

// fresh looks as a program does that knows nothing yet.
func (l *looker) fresh() workload.Snapshot {
	d := newFakeEngine(l.tree, l.engine)
	d.dial = func(context.Context, Host) (openClient, error) { // it leaves the other's connection alone
		return openClient{client: l.engine, close: func() error { return nil }}, nil
	}
	for range 2 { // what the first inspections said may be of places that were not known
		if err := d.Load(context.Background()); err != nil {
			l.t.Log(err) // an inspection failed: the next look tries again
		}
	}
	return l.lookBy(d)
}

func (l *looker) lookBy(d *Docker) workload.Snapshot {
	scopes, err := watch.NewScopes(l.root, []byte("0123456789abcdef0123456789abcdef"), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	cgroups, err := watch.NewCgroups(l.root, scopes, d)
	if err != nil {
		l.t.Fatal(err)
	}
	s := cgroups.Look(lookBindings)
	if err := cgroups.Close(); err != nil {
		l.t.Fatal(err)
	}
	return s
}

// A look at a container alone suffices, unless the container concerns more than its own cgroup.
func TestLookSuffices(t *testing.T) {
	const first, second = "a", "b"
	refused := containerWith(second, "app", "web")
	refused.image = removedImage
	for _, tt := range []struct {
		name    string
		before  []string // cgroups of the first container, and others
		created string   // a cgroup of the second one; "": none
		second  container
		away    bool
		want    bool
	}{
		{name: "the first in Docker's own cgroup", created: "docker/ID", want: true},
		{name: "another", before: []string{"docker/FIRST"}, created: "docker/ID", want: true},
		{name: "it has no cgroup", want: true},
		{name: "its cgroup is nowhere that was read", created: "a/b/ID", want: true},
		{name: "the first of a slice", created: "my.slice/docker-ID.scope"},
		{name: "another of a slice", before: []string{"my.slice/docker-FIRST.scope"},
			created: "my.slice/docker-ID.scope", want: true},
		{name: "the first among services", created: "system.slice/docker-ID.scope"},
		{name: "another among services", before: []string{"system.slice/docker-FIRST.scope"},
			created: "system.slice/docker-ID.scope", want: true},
		{name: "it is refused", before: []string{"docker/FIRST"}, created: "docker/ID", second: refused},
		{name: "it has two cgroups", before: []string{"docker/FIRST", "my.slice/docker-FIRST.scope", "docker/ID"},
			created: "my.slice/docker-ID.scope"},
		{name: "the engine is away", created: "docker/ID", away: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t)
			d := newFakeEngine(tr, &fakeEngine{})
			expand := strings.NewReplacer("FIRST", idOf(first), "ID", idOf(second))
			for _, cgroup := range append(tt.before, "docker", "my.slice", "system.slice", "a/b") {
				tr.in(expand.Replace(cgroup))
			}
			if tt.second.id == "" {
				tt.second = containerWith(second, "app", "web")
			}
			for _, c := range []container{containerWith(first, "app", "web"), tt.second} {
				if c.image != removedImage {
					c.imageLabels = map[string]string{}
				}
				if c.id == idOf(second) {
					d.findAll(func(string) {})
				}
				d.containers.storeListed([]string{c.id}, []container{c})
			}
			d.connection.opened()
			if tt.away {
				d.connection.lost(errAway)
			}
			if tt.created != "" {
				cgroup := expand.Replace(tt.created)
				tr.in(cgroup)
				if id, pending := d.CgroupChanged(cgroup, true); id != idOf(second) || pending {
					t.Errorf("the cgroup is that of %q, pending %v", id, pending)
				}
			}
			found, got := d.Find([]string{idOf(second)}, func(string) {})
			if got != tt.want || got && !found.Partial {
				t.Errorf("a look at it alone suffices: %v, want %v", got, tt.want)
			}
		})
	}
}
