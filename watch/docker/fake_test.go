package docker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// removedImage is the image of containers whose image was removed.
const removedImage = "removed"

// fakeEngine is a client whose engine has these containers and networks.
type fakeEngine struct {
	mu            sync.Mutex
	containers    map[string]container
	networks      []bridgeNetwork
	away          error         // not nil: nobody answers
	broken        chan struct{} // closed: the connection ended
	held          chan struct{} // Inspect waits until it is closed; nil: it does not
	heldLists     chan struct{} // List likewise, of single containers
	onEvent       func(event)   // nil: nobody called Events
	pending       []event       // events before the call of Events
	connections   int           // so far
	inspectCalls  int
	failures      int // of the next inspections
	engine        EngineInfo
	networksCalls int
}

var errAway = errors.New("nobody answers")

func (f *fakeEngine) dial(context.Context, Host) (openClient, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != nil {
		return openClient{}, f.away
	}
	f.broken = make(chan struct{})
	f.connections++
	return openClient{client: f, engine: f.engine, close: func() error { return nil }}, nil
}

// disconnect ends the connection and lets nobody connect, until reconnect.
func (f *fakeEngine) disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = errAway
	close(f.broken)
}

func (f *fakeEngine) reconnect() { f.set(func() { f.away = nil }) }

// set changes it under its lock.
func (f *fakeEngine) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeEngine) put(c container) {
	f.set(func() {
		if c.imageLabels == nil && c.image != removedImage {
			c.imageLabels = map[string]string{}
		}
		f.containers[c.id] = c
	})
}

func (f *fakeEngine) List(ctx context.Context, ids ...string) ([]container, error) {
	f.mu.Lock()
	held := f.heldLists
	f.mu.Unlock()
	if held != nil && len(ids) > 0 {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != nil {
		return nil, f.away
	}
	var list []container
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		if c := f.containers[id]; len(ids) == 0 || slices.Contains(ids, id) {
			c.details = nil
			list = append(list, c)
		}
	}
	return list, nil
}

func (f *fakeEngine) Inspect(ctx context.Context, id string) (container, error) {
	f.mu.Lock()
	held := f.held
	f.inspectCalls++
	f.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return container{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != nil {
		return container{}, f.away
	}
	if f.failures > 0 {
		f.failures--
		return container{}, errAway
	}
	c, ok := f.containers[id]
	if !ok {
		return container{}, errNoContainer
	}
	if c.details == nil {
		c.details = &details{}
	}
	return c, nil
}

func (f *fakeEngine) Networks(context.Context, ...string) ([]bridgeNetwork, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networksCalls++
	return f.networks, f.away
}

func (f *fakeEngine) Events(ctx context.Context, _ time.Time, changed func(event)) error {
	f.mu.Lock()
	f.onEvent = changed
	broken, pending := f.broken, f.pending
	f.pending = nil
	f.mu.Unlock()
	for _, ev := range pending {
		changed(ev)
	}
	select {
	case <-ctx.Done():
	case <-broken:
	}
	return errAway
}

// emit sends an event, at once or when Events is called.
func (f *fakeEngine) emit(ev event) {
	f.mu.Lock()
	onEvent := f.onEvent
	if onEvent == nil {
		f.pending = append(f.pending, ev)
	}
	f.mu.Unlock()
	if onEvent != nil {
		onEvent(ev)
	}
}

// fakePorts are the ports of every process, by bridge.
type fakePorts struct {
	ports   map[string]string
	foreign map[string][]string // bridges that are not containers' alone
}

func (p fakePorts) Ports(int) (map[string]string, error) { return p.ports, nil }

func (p fakePorts) Foreign(bridge string) ([]string, bool, error) {
	return p.foreign[bridge], true, nil
}

// newDockerTree is a tree whose containers a fake knows.
func newDockerTree(t *testing.T, change ...func(*Docker)) (*tree, *fakeEngine) {
	t.Helper()
	return newEngineTree(t, EngineInfo{Name: EngineDocker}, change...)
}

// newPodmanTree is newDockerTree for a Podman.
func newPodmanTree(t *testing.T) (*tree, *fakeEngine) {
	t.Helper()
	return newEngineTree(t, EngineInfo{Name: EnginePodman})
}

func newEngineTree(t *testing.T, info EngineInfo, change ...func(*Docker)) (*tree, *fakeEngine) {
	t.Helper()
	tr := newTree(t)
	fake := &fakeEngine{engine: info, containers: map[string]container{}}
	tr.docker = newFakeEngine(tr, fake)
	for _, f := range change {
		f(tr.docker)
	}
	tr.start()
	return tr, fake
}

func newFakeEngine(tr *tree, fake *fakeEngine) *Docker {
	d := New(tr.root, Host{Address: "fake", Given: true})
	d.dial = fake.dial
	d.bridges.ports = fakePorts{ports: map[string]string{"docker0": "veth0"}}
	return d
}

// idOf makes an id such as Docker does.
func idOf(letter string) string { return strings.Repeat(letter, 64) }

// containerWith is a container with a label.
func containerWith(letter, key, value string) container {
	return container{id: idOf(letter), name: "name-" + letter, network: "host", labels: map[string]string{key: value}}
}

// names are those of a snapshot's workloads.
func names(s workload.Snapshot) []string {
	var list []string
	for _, w := range s.Workloads {
		list = append(list, w.Name)
	}
	return list
}

// has says that these are the names of a snapshot's workloads.
func has(want ...string) func(workload.Snapshot) bool {
	return func(s workload.Snapshot) bool { return slices.Equal(names(s), want) }
}

// attached says that name-a is a snapshot's only workload, and connected to a bridge.
func attached(s workload.Snapshot) bool { return has("name-a")(s) && s.Workloads[0].Own != nil }

// withProblem says that name-a is a snapshot's only workload, and that there is a problem.
func withProblem(s workload.Snapshot) bool { return has("name-a")(s) && len(s.Conditions) > 0 }

func paths(list []policy.Cgroup) []string {
	var paths []string
	for _, cg := range list {
		paths = append(paths, cg.Path)
	}
	return paths
}

func problemsOf(s workload.Snapshot) string {
	var b strings.Builder
	for _, p := range s.Conditions {
		b.WriteString(p.Where + ": " + p.Text + "\n")
	}
	return b.String()
}
