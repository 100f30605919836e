package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler"
	"thole/compiler/compilertest"
	"thole/compiler/policy"
	"thole/internal/enforce"
	"thole/internal/nstest"
	"thole/internal/remotes"
	"thole/internal/state"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch"
	"thole/watch/docker"
	"thole/watch/docker/dockertest"
	"thole/watch/workload"
)

var mixSteps = flag.Int("mixes", 1000, "random steps of workloads of all kinds that begin, begin again and end")

// Whatever begins and ends, in whatever order, the loaded table is what a fresh compile makes of a fresh look at all
// that there is, with the numbers and the epoch that the table has; and it is what the daemon and its state directory
// say that it is.
func TestMixes(t *testing.T) {
	newMix(t, nil).walk(*mixSteps)
}

// The same with the kernel's own nftables, which refuse what is not a valid change.
func TestMixesInKernel(t *testing.T) {
	newMix(t, openKernel).walk(max(100, *mixSteps/10))
}

// openKernel opens the nftables of a host.
func openKernel(t *testing.T, host *nstest.Host) Kernel {
	t.Helper()
	var conn *kernel.Conn
	var err error
	if doErr := host.Do(func() { conn, err = kernel.Open(kernel.Options{}) }); errors.Join(doErr, err) != nil {
		t.Fatal(doErr, err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// A mix is a daemon, and what runs beside it.
type mix struct {
	*bench
	r      *rand.Rand
	table  *countingKernel
	engine *dockertest.Engine
	clock  offsetClock
	marks  liveMarks
	made   int // how many workloads there were

	runs       map[string]*process // by name
	outlived   map[uint64]bool     // cgroups of thole run that are gone, and left a socket
	ended      map[uint64]bool     // cgroups that are gone, and are in the table
	containers map[string]*mixedContainer
	units      map[string]bool // by cgroup
	remotes    []policy.Remote
	revoked    map[string]bool // certificates
	more       map[int]bool    // of mixPolicies, which are added
	done       map[string]int  // steps, by what they did
}

// A mixedContainer is one that the engine has.
type mixedContainer struct {
	dockertest.Container
	labels map[string]string // those that count
}

// A countingKernel counts the changes of the table, and refuses some.
type countingKernel struct {
	Kernel
	mu              sync.Mutex
	steps, compiled int
	refuse          int // of the next changes
	refused         int
	failed          []error // that no test asked for
}

var errMix = errors.New("no buffer space available")

func (k *countingKernel) Apply(c ruleset.Change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse > 0 {
		k.refuse--
		k.refused++
		return errMix
	}
	if err := k.Kernel.Apply(c); err != nil {
		k.failed = append(k.failed, err)
		return err
	}
	if c.Have == nil && c.Want == nil {
		k.steps++
	} else {
		k.compiled++
	}
	return nil
}

func (k *countingKernel) changes() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.steps + k.compiled
}

func (k *countingKernel) refuseNext(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = n
}

// An offsetClock is the machine's, and may be put forward.
type offsetClock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *offsetClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *offsetClock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// liveMarks are marks of connections that nobody changes.
type liveMarks struct {
	mu   sync.Mutex
	list []uint32
}

func (m *liveMarks) set(list []uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = list
}

func (m *liveMarks) Remark(mask, bits uint32, change func(uint32) uint32) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mark := range m.list {
		if mark&mask == bits {
			change(mark)
		}
	}
	return 0, nil
}

func newMix(t *testing.T, open func(*testing.T, *nstest.Host) Kernel) *mix {
	t.Helper()
	m := &mix{
		r: chance(t), runs: map[string]*process{}, outlived: map[uint64]bool{},
		containers: map[string]*mixedContainer{}, units: map[string]bool{}, revoked: map[string]bool{},
		more: map[int]bool{}, done: map[string]int{},
	}
	m.bench = newBench(t, func(b *bench) {
		dir := filepath.Dir(b.config.State)
		m.engine = dockertest.Start(t, filepath.Join(dir, "docker.sock"))
		b.config.Docker = "unix://" + filepath.Join(dir, "docker.sock")
		b.config.Fleet = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		b.config.Queue, b.config.PKI = DefaultQueue, filepath.Join(dir, "pki")
		b.engine = new(engines).make
		b.sockets = map[uint64]bool{}
		b.host.MkCgroup("docker")
		m.table = &countingKernel{Kernel: b.kernel}
		if open != nil {
			m.table.Kernel = open(t, b.host)
		}
		b.replace = func(h *host) { h.kernel, h.marks, h.now = m.table, &m.marks, m.clock.now }
	})
	m.apply(m.set())
	m.agree("at first")
	return m
}

// mixPolicies are policies that are added and removed. The first stays.
var mixPolicies = []string{
	`selector: {matchLabels: {app: db}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [5432/tcp]}]`,
	`selector: {matchLabels: {app: job}}
  egress: [{to: [{cidr: 192.0.2.0/24}], ports: [443/tcp]}, {to: [{workloads: {matchLabels: {app: db}}}]}]`,
	`selector: {matchLabels: {app: web}}
  ingress: [{from: [{sameLabels: [app]}]}, {from: [{cidr: 198.51.100.0/24}], ports: [80/tcp, 8000-8100/tcp]}]`,
	`selector: {matchLabels: {app: dev}}
  ingress: []
  egress: [{to: [{sameLabels: [app]}, {unlabelled: true}], ports: [53/udp]}]`,
	`selector: {matchLabels: {tier: back}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]`,
	`selector: {matchLabels: {app: mail}}
  ingress: [{from: [{workloads: {matchLabels: {app: mail}}}, {cidr: 10.0.0.0/8}], ports: [25/tcp]}]`,
}

var mixApps = []string{"web", "db", "job", "dev", "mail"}

// mixUnits are the labels of cgroups that Workload documents bind, by the cgroup.
var mixUnits = map[string]string{
	"system.slice/one.service": "web", "system.slice/two.service": "db", "batch/j1": "job", "batch/j2": "job",
	"batch/j3": "job", "batch/deeper/x": "dev",
}

// set is the present policy set.
func (m *mix) set() string {
	var text strings.Builder
	for i, spec := range mixPolicies {
		if i == 0 || m.more[i] {
			fmt.Fprintf(&text, "---\napiVersion: thole/v1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  %s\n", i, spec)
		}
	}
	for _, bound := range [][3]string{
		{"one", "web", "unit: one.service"}, {"two", "db", "unit: two.service"}, {"batch", "job", "cgroup: batch/j*"},
		{"deeper", "dev", "cgroup: batch/deeper/x"},
	} {
		fmt.Fprintf(&text, "---\napiVersion: thole/v1\nkind: Workload\nmetadata: {name: %s, labels: {app: %s}}\n"+
			"spec: {%s}\n", bound[0], bound[1], bound[2])
	}
	return text.String()
}

// A mixStep is one thing that can happen, and how often it does among the others. do returns false where it cannot
// happen just now.
type mixStep struct {
	name   string
	weight int
	do     func(m *mix) bool
}

var mixedSteps = []mixStep{
	{"a process begins", 18, (*mix).beginRun},
	{"a process ends", 14, (*mix).endRun},
	{"a process begins again", 6, (*mix).restartRun},
	{"a process ends and leaves a socket", 2, (*mix).leaveSocket},
	{"sockets that were left are closed", 1, (*mix).closeSockets},
	{"a container begins", 18, (*mix).beginContainer},
	{"a container ends", 10, (*mix).endContainer},
	{"a container begins again", 8, (*mix).restartContainer},
	{"a unit begins", 6, (*mix).beginUnit},
	{"a unit ends", 5, (*mix).endUnit},
	{"another node's workload is met", 8, (*mix).meetRemote},
	{"unused ones of other nodes are forgotten", 2, (*mix).forgetRemotes},
	{"a certificate is not believed any more", 2, (*mix).revoke},
	{"a policy is added or removed", 3, (*mix).changePolicies},
	{"the daemon begins again", 2, (*mix).restartDaemon},
	{"all kinds change while the daemon is down", 1, (*mix).changeWithoutDaemon},
	{"the kernel refuses a change", 4, (*mix).refuseChange},
}

// walk makes random steps, and compares the table after each.
func (m *mix) walk(steps int) {
	m.t.Helper()
	var all []mixStep // each as often as its weight
	for _, s := range mixedSteps {
		all = append(all, slices.Repeat([]mixStep{s}, s.weight)...)
	}
	for n := 0; n < steps; {
		s := all[m.r.IntN(len(all))]
		if n%50 == 25 { // however few steps there are
			s = mixStep{"the kernel refuses a change", 0, (*mix).refuseChange}
		}
		if !s.do(m) {
			continue
		}
		m.done[s.name]++
		n++
		m.agree(fmt.Sprintf("step %d: %s", n, s.name))
	}
	m.closeSockets()
	m.until("what ended to leave the table", func() bool { return m.status().Ended == 0 })
	m.agree("when nothing is left of what ended")
	k := m.table
	k.mu.Lock()
	defer k.mu.Unlock()
	m.t.Logf("%d steps; %d changes of the table: %d as a step, %d by compiling everything; %d were refused: %v",
		steps, k.steps+k.compiled, k.steps, k.compiled, k.refused, m.done)
	for _, err := range k.failed {
		m.t.Errorf("a change failed: %v", err)
	}
	// An end changes nothing at once, and what ended leaves the table together: so there are fewer changes than steps.
	if k.steps < steps/4 || k.compiled < steps/20 || k.refused == 0 {
		m.t.Errorf("of %d steps, too few changed the table in one of these ways", steps)
	}
}

// mostPause is longer than what the daemon waits after a failed change.
const mostPause = 200 * time.Millisecond

// agree waits until the table is as it should be. It looks ever less often: what failed is tried again only when the
// daemon was left alone for a while.
func (m *mix) agree(when string) {
	m.t.Helper()
	var differs string
	deadline := time.Now().Add(nstest.Patience(patience))
	for pause := time.Millisecond; ; pause = min(2*pause, mostPause) {
		if differs = m.differs(); differs == "" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: after %v:\n%s", when, patience, differs)
		}
		<-time.After(pause)
	}
}

// differs returns how the table, what runs, and what the daemon knows differ; "" where they do not.
func (m *mix) differs() (text string) {
	running, err := m.look()
	if err != nil {
		return err.Error()
	}
	if text = m.runsAsMade(running); text != "" {
		return "what runs (-want +got):\n" + text
	}
	return m.compare(running)
}

// look looks at all that runs, as a program would that knows nothing yet.
func (m *mix) look() (running workload.Snapshot, err error) {
	key, err := os.ReadFile(filepath.Join(m.config.State, state.KeyFile))
	if err != nil {
		return running, err
	}
	scopes, err := watch.NewScopes(m.root, key, nil)
	if err != nil {
		return running, err
	}
	engine := docker.New(m.root, docker.Host{Address: m.config.Docker, Given: true})
	cgroups, err := watch.NewCgroups(m.root, scopes, engine)
	if err != nil {
		return running, err
	}
	if err := engine.Load(context.Background()); err != nil {
		return running, errors.Join(err, cgroups.Close())
	}
	docs, err := m.documents()
	if err != nil {
		return running, errors.Join(err, cgroups.Close())
	}
	return cgroups.Look(docs.Bindings), cgroups.Close()
}

func (m *mix) documents() (policy.Documents, error) {
	return policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(m.set())}})
}

// runsAsMade compares what was seen with what the test began and did not end, by cgroup.
func (m *mix) runsAsMade(running workload.Snapshot) string {
	want, got := map[string]map[string]string{}, map[string]map[string]string{}
	for name, p := range m.runs {
		want["thole.slice/"+name+".scope"] = p.Answer.Labels
	}
	for id, c := range m.containers {
		if c.Running {
			want["docker/"+id] = c.labels
		}
	}
	for cgroup := range m.units {
		want[cgroup] = map[string]string{"app": mixUnits[cgroup]}
	}
	for _, w := range running.Workloads {
		got[w.Cgroup.Path] = w.Labels
	}
	for _, u := range running.Unlabelled {
		got[u.Cgroup.Path] = nil
	}
	return cmp.Diff(want, got, cmpopts.EquateEmpty())
}

// compare compares all that runs with the table, and with what the daemon and its state directory say of it.
func (m *mix) compare(running workload.Snapshot) string {
	table, err := m.table.Read(enforce.TableName)
	if err != nil || table == nil {
		return fmt.Sprintf("there is no table: %v", err)
	}
	stored, err := state.At(m.config.State).Table()
	if err != nil {
		return err.Error()
	}
	docs, err := m.documents()
	if err != nil {
		return err.Error()
	}
	in := compiler.Input{Policies: docs.Policies, Parents: running.Parents, Bridges: running.Bridges,
		Fleet: &compiler.Fleet{Networks: m.config.Fleet, Queue: DefaultQueue}, Remotes: m.remotes}
	in.Workloads, in.Unlabelled = docs.Identify(running.Workloads, running.Unlabelled)
	m.ended = map[uint64]bool{}
	for _, w := range stored.Workloads {
		runs := func(r policy.Workload) bool { return r.Cgroup.ID == w.Cgroup.ID }
		if lives, err := m.root.Lives(w.Cgroup.ID); err != nil || lives || slices.ContainsFunc(in.Workloads, runs) {
			continue
		}
		m.ended[w.Cgroup.ID] = true
		in.Workloads = append(in.Workloads, w)
	}
	for id := range m.outlived {
		if !m.ended[id] {
			return fmt.Sprintf("a workload that left a socket is not in the table: %d", id)
		}
	}
	in.Numbers, in.Options.Epoch = compilertest.Loaded(table)
	// The table has no keys of them.
	in.Numbers.Remotes, in.Numbers.NextRemote = stored.Numbers.Remotes, stored.Numbers.NextRemote
	result, err := compiler.Compile(in)
	if err != nil {
		return err.Error()
	}
	if change := ruleset.Diff(table, &result.Table); !change.Empty() {
		return "the table and a fresh compile:\n" + change.String()
	}
	return m.compareBelief(stored, in, &result)
}

// compareBelief compares what the daemon and its state directory say with a fresh compile, which the table is.
func (m *mix) compareBelief(stored state.TableState, in compiler.Input, fresh *compiler.Result) string {
	var classes []uint32
	for _, r := range m.remotes {
		class, _ := m.daemon.enforcer.Class(r)
		classes = append(classes, class)
	}
	status := m.status()
	options := cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	for _, c := range []struct {
		what      string
		want, got any
	}{
		{"the epoch", in.Options.Epoch, status.Epoch},
		{"the stored epoch", in.Options.Epoch, stored.Epoch},
		{"the workloads", m.running(in.Workloads), m.listed()},
		{"how many ended", len(m.ended), status.Ended},
		{"the labels of the stored workloads", labelsOf(in.Workloads), labelsOf(stored.Workloads)},
		{"the stored unlabelled containers", cgroupsOf(in.Unlabelled), cgroupsOf(stored.Unlabelled)},
		{"the stored parents", in.Parents, stored.Parents},
		{"the stored bridges", in.Bridges, stored.Bridges},
		{"the stored workloads of other nodes", m.remotes, stored.Remotes},
		{"the stored numbers of workloads", fresh.Numbers.Workloads, stored.Numbers.Workloads},
		{"the stored numbers of addresses", fresh.Numbers.Addresses, stored.Numbers.Addresses},
		{"the stored numbers of other nodes' workloads", fresh.Numbers.Remotes, stored.Numbers.Remotes},
		{"the classes of other nodes' workloads", fresh.Remotes, classes},
		{"how often the table was not the one that the daemon believed", 0, status.Mended},
	} {
		if diff := cmp.Diff(c.want, c.got, options); diff != "" {
			return fmt.Sprintf("%s (-want +got):\n%s", c.what, diff)
		}
	}
	return ""
}

// labelsOf are the labels of workloads by cgroup. Facts that no policy sees are stored with the next change only.
func labelsOf(list []policy.Workload) map[policy.Cgroup]policy.Labels {
	labels := map[policy.Cgroup]policy.Labels{}
	for _, w := range list {
		labels[w.Cgroup] = w.Labels
	}
	return labels
}

func cgroupsOf(list []policy.Unlabelled) map[policy.Cgroup]bool {
	cgroups := map[policy.Cgroup]bool{}
	for _, u := range list {
		cgroups[u.Cgroup] = true
	}
	return cgroups
}

// A mixedWorkload is one that has not ended.
type mixedWorkload struct {
	Name, Kind, Cgroup      string
	Labels, Facts, Doubtful map[string]string
}

func (m *mix) running(list []policy.Workload) map[uint64]mixedWorkload {
	all := map[uint64]mixedWorkload{}
	for _, w := range list {
		if !m.ended[w.Cgroup.ID] {
			all[w.Cgroup.ID] = mixedWorkload{w.Name, w.Kind.String(), w.Cgroup.Path, w.Labels, w.Facts, w.Doubtful}
		}
	}
	return all
}

// listed are the workloads that the daemon says there are.
func (m *mix) listed() map[uint64]mixedWorkload {
	m.t.Helper()
	list, err := m.client.Workloads(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	all := map[uint64]mixedWorkload{}
	for _, w := range list {
		if !m.ended[w.ID] {
			all[w.ID] = mixedWorkload{w.Name, w.Kind, w.Cgroup, w.Labels, w.Facts, w.Doubtful}
		}
	}
	return all
}

// one returns any of the keys of a map; ok is false where there is none.
func one[V any](m *mix, of map[string]V) (key string, ok bool) {
	if len(of) == 0 {
		return "", false
	}
	return slices.Sorted(maps.Keys(of))[m.r.IntN(len(of))], true
}

const (
	mixedAtOnce     = 12 // processes, containers, workloads of other nodes
	mixedContainers = 4  // that do not run, beside those
)

func (m *mix) app() string { return mixApps[m.r.IntN(len(mixApps))] }

func (m *mix) labels() map[string]string {
	labels := map[string]string{"app": m.app()}
	if m.r.IntN(4) == 0 {
		labels["tier"] = []string{"back", "front"}[m.r.IntN(2)]
	}
	return labels
}

func (m *mix) beginRun() bool {
	if len(m.runs) >= mixedAtOnce {
		return false
	}
	m.made++
	name := fmt.Sprint("run", m.made)
	m.runs[name] = m.run(name, m.labels())
	return true
}

func (m *mix) endRun() bool {
	name, ok := one(m, m.runs)
	if ok {
		m.runs[name].end()
		delete(m.runs, name)
	}
	return ok
}

// restartRun has a process of the same name, in a cgroup of the same path, follow one that ended.
func (m *mix) restartRun() bool {
	name, ok := one(m, m.runs)
	if !ok {
		return false
	}
	labels := m.runs[name].Answer.Labels
	m.runs[name].end()
	delete(m.runs, name)
	if m.r.IntN(2) == 0 {
		labels = m.labels()
	}
	m.until("the name to be free", func() bool { return m.host.CgroupID("thole.slice/"+name+".scope") == 0 })
	m.runs[name] = m.run(name, labels)
	return true
}

// leaveSocket ends a process, of which a socket lives on in another.
func (m *mix) leaveSocket() bool {
	name, ok := one(m, m.runs)
	if !ok {
		return false
	}
	id := m.runs[name].Answer.ID
	m.setSockets(func(sockets map[uint64]bool) { sockets[id] = true })
	m.outlived[id] = true
	again := m.r.IntN(2) == 0 // and has the next one take its path
	m.runs[name].end()
	delete(m.runs, name)
	m.until("the cgroup to be gone", func() bool { return m.host.CgroupID("thole.slice/"+name+".scope") == 0 })
	if again {
		m.runs[name] = m.run(name, m.labels())
	}
	return true
}

func (m *mix) closeSockets() bool {
	if len(m.outlived) == 0 {
		return false
	}
	m.setSockets(func(sockets map[uint64]bool) { clear(sockets) })
	clear(m.outlived)
	m.daemon.sources.cgroups.Wake() // as after some seconds
	return true
}

// setSockets changes which cgroups have sockets. Those that looked at them before keep what they saw.
func (m *mix) setSockets(change func(map[uint64]bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sockets = maps.Clone(m.sockets)
	change(m.sockets)
}

func (m *mix) beginContainer() bool {
	stopped := map[string]bool{}
	for id, c := range m.containers {
		if !c.Running {
			stopped[id] = true
		}
	}
	if len(m.containers)-len(stopped) >= mixedAtOnce {
		return false
	}
	if id, ok := one(m, stopped); ok && (len(stopped) >= mixedContainers || m.r.IntN(2) == 0) {
		m.startContainer(id)
		return true
	}
	m.made++
	c := &mixedContainer{labels: m.labels()}
	c.ID, c.Name, c.Network = fmt.Sprintf("%064x", m.made), fmt.Sprint("box", m.made), "host"
	switch m.r.IntN(8) {
	case 0, 1: // unlabelled
		c.labels = nil
	case 2: // with labels of its image alone, of which nobody knows who gave them
		c.labels, c.ImageLabels = nil, m.labels()
	case 3: // with labels of its image, too
		c.labels, c.ImageLabels = map[string]string{"app": m.app()}, map[string]string{"tier": "back"}
	case 4:
		c.Network = "bridge"
	}
	c.Labels = maps.Clone(c.ImageLabels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	maps.Copy(c.Labels, c.labels)
	m.containers[c.ID] = c
	m.startContainer(c.ID)
	return true
}

func (m *mix) startContainer(id string) {
	c := m.containers[id]
	c.Running = true
	m.engine.Put(c.Container)
	m.host.MkCgroup("docker/" + id)
	m.engine.Emit(id, "start")
}

func (m *mix) stopContainer(id string) {
	c := m.containers[id]
	c.Running = false
	m.host.Rmdir("docker/" + id)
	m.engine.Put(c.Container)
	m.engine.Emit(id, "die")
}

func (m *mix) runningContainer() (id string, ok bool) {
	running := maps.Clone(m.containers)
	maps.DeleteFunc(running, func(_ string, c *mixedContainer) bool { return !c.Running })
	return one(m, running)
}

func (m *mix) endContainer() bool {
	id, ok := m.runningContainer()
	if !ok {
		return false
	}
	m.stopContainer(id)
	if m.r.IntN(2) == 0 {
		delete(m.containers, id)
		m.engine.Remove(id)
	}
	return true
}

func (m *mix) restartContainer() bool {
	id, ok := m.runningContainer()
	if ok {
		m.stopContainer(id)
		m.startContainer(id)
	}
	return ok
}

func (m *mix) beginUnit() bool {
	free := maps.Clone(mixUnits)
	maps.DeleteFunc(free, func(cgroup, _ string) bool { return m.units[cgroup] })
	cgroup, ok := one(m, free)
	if ok {
		m.host.MkCgroup(cgroup)
		m.units[cgroup] = true
	}
	return ok
}

// endUnit ends a unit; now and then it begins again at once.
func (m *mix) endUnit() bool {
	cgroup, ok := one(m, m.units)
	if !ok {
		return false
	}
	m.host.Rmdir(cgroup)
	if m.r.IntN(3) == 0 {
		m.host.MkCgroup(cgroup)
	} else {
		delete(m.units, cgroup)
	}
	return true
}

// remote is a workload of another node.
func remote(node int) policy.Remote {
	return policy.Remote{Node: fmt.Sprint("node-", node), Labels: policy.Labels{"app": "0"},
		Address: netip.AddrFrom4([4]byte{10, 0, byte(node >> 8), byte(node)}), Certificate: fmt.Sprint("ca/", node)}
}

func (m *mix) meetRemote() bool {
	if len(m.remotes) >= mixedAtOnce {
		return false
	}
	m.made++
	r := remote(m.made)
	r.Labels = m.labels()
	if err := m.daemon.enforcer.Learn(context.Background(), r); err != nil {
		m.t.Fatal(err)
	}
	m.remotes = append(slices.Clone(m.remotes), r)
	return true
}

// forgetRemotes has some of them have a connection, and the others be forgotten: at least one that is believed, since
// the daemon stores only what changes an element of the table, and those that have ended have none.
func (m *mix) forgetRemotes() bool {
	believed := slices.IndexFunc(m.remotes, func(r policy.Remote) bool { return !r.Ended })
	if believed < 0 {
		return false
	}
	var stay []policy.Remote
	var live []uint32
	for i, r := range m.remotes {
		class, _ := m.daemon.enforcer.Class(r) // as when it is used: from now on it is idle
		if i != believed && m.r.IntN(2) == 0 {
			live, stay = append(live, class), append(stay, r)
		}
	}
	m.marks.set(live)
	m.clock.forward(remotes.Idle + time.Second)
	m.daemon.enforcer.Forget(context.Background())
	m.remotes = stay
	return true
}

// revoke has this node believe a certificate no more.
func (m *mix) revoke() bool {
	at := slices.IndexFunc(m.remotes, func(r policy.Remote) bool { return !r.Ended })
	if at < 0 {
		return false
	}
	m.remotes = slices.Clone(m.remotes)
	m.revoked[m.remotes[at].Certificate], m.remotes[at].Ended = true, true
	revoked := maps.Clone(m.revoked)
	err := m.daemon.enforcer.SetCredentials(context.Background(), enforce.Credentials{
		Trusts: func(certificate string) bool { return !revoked[certificate] },
	})
	if err != nil {
		m.t.Error(err)
	}
	return true
}

func (m *mix) changePolicies() bool {
	i := 1 + m.r.IntN(len(mixPolicies)-1)
	m.more[i] = !m.more[i]
	m.apply(m.set())
	return true
}

// restartDaemon has a daemon begin that finds all as the one before left it: it changes nothing.
func (m *mix) restartDaemon() bool {
	if len(m.outlived) == 0 {
		m.until("what ended to leave the table", func() bool { return m.status().Ended == 0 })
	}
	changes := m.table.changes()
	m.stop()
	m.start()
	m.agree("the next daemon")
	if n := m.table.changes() - changes; n != 0 {
		m.t.Fatalf("the next daemon made %d changes of a table that was as it should be", n)
	}
	return true
}

// changeWithoutDaemon has things change that the next daemon finds.
func (m *mix) changeWithoutDaemon() bool {
	m.stop()
	for _, change := range []func(*mix) bool{
		(*mix).endRun, (*mix).beginContainer, (*mix).endContainer, (*mix).beginUnit, (*mix).endUnit,
	} {
		if m.r.IntN(2) == 0 {
			change(m)
		}
	}
	m.start()
	return true
}

// refuseChange has the kernel refuse the next change, or all tries of it at once. It is made all the same.
func (m *mix) refuseChange() bool {
	tries, begin, end := 1+m.r.IntN(2), (*mix).beginRun, (*mix).endRun
	if m.r.IntN(4) == 0 { // the daemon tries again after a while
		tries, begin, end = triesAtOnce, (*mix).beginContainer, (*mix).endContainer
	}
	m.table.refuseNext(tries)
	if begin(m) {
		return true
	}
	m.table.refuseNext(0) // there are too many, and an end alone changes nothing
	end(m)
	m.agree("with room for one more")
	m.table.refuseNext(tries)
	return begin(m)
}
