package watch

import (
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// fakeEngine is an Engine that has to be asked about every cgroup below containers.
type fakeEngine struct {
	changed  func(...string)
	created  chan string
	found    workload.Snapshot
	partial  workload.Snapshot // of a look at single containers; not Partial: only a look at all can tell
	looked   []string          // containers that were looked at alone
	recalled workload.Snapshot
}

func (f *fakeEngine) OnChange(changed func(...string)) { f.changed = changed }

func (f *fakeEngine) CgroupChanged(cgroup string, created bool) (string, bool) {
	if created {
		f.created <- cgroup
	}
	return path.Base(cgroup), created
}

func (f *fakeEngine) Find(only []string, watch func(string)) (workload.Snapshot, bool) {
	if only != nil {
		f.looked = only
		return f.partial, f.partial.Partial
	}
	watch("containers")
	return f.found, true
}

func (f *fakeEngine) Recall(s workload.Snapshot) { f.recalled = s }

// newEngineTree is a tree with containers of a fake engine.
func newEngineTree(t *testing.T) (*tree, *fakeEngine) {
	t.Helper()
	tr, engine := newTree(t), &fakeEngine{created: make(chan string, 8)}
	tr.in("containers").ID()
	cgroups, err := NewCgroups(tr.root, tr.scopes, engine)
	if err != nil {
		t.Fatal(err)
	}
	tr.cgroups = cgroups
	tr.run(cgroups.Run)
	return tr, engine
}

// A container's new cgroup is worth a scan when the engine has said what the container is.
func TestScanWaitsForEngine(t *testing.T) {
	tr, engine := newEngineTree(t)
	tr.cgroups.Scan(nil)
	for _, name := range []string{"first", "second"} { // at the second, all is done about the first
		tr.in("containers/" + name).ID()
		select {
		case got := <-engine.created:
			if want := "containers/" + name; got != want {
				t.Errorf("the engine was told of %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("waited %v for the engine to be told of %s", patience, name)
		}
	}
	select {
	case <-tr.cgroups.Changed():
		t.Error("a scan is worth while before the engine has answered")
	default:
	}
	engine.changed()
	select {
	case <-tr.cgroups.Changed():
	default:
		t.Error("the engine has answered, and no scan is worth while")
	}
}

// What an engine finds completes a snapshot. A document's labels count for an unlabelled container, and keys of the
// image's labels that the document does not have.
func TestContainersInSnapshot(t *testing.T) {
	tr, engine := newEngineTree(t)
	for _, name := range []string{"a", "b", "c"} {
		tr.in("containers/" + name).ID()
	}
	cgroup := func(name string) policy.Cgroup {
		return policy.Cgroup{Path: "containers/" + name, ID: tr.id("containers/" + name)}
	}
	image := policy.Labels{"app": "nginx", "tier": "web"}
	engine.found = workload.Snapshot{
		Workloads: []policy.Workload{{Name: "a", Kind: policy.KindContainer, Labels: image, Cgroup: cgroup("a")}},
		Unlabelled: []policy.Unlabelled{
			{Name: "c", Cgroup: cgroup("c"), Doubtful: image},
			{Name: "b", Cgroup: cgroup("b"), Doubtful: image},
		},
		Parents: []policy.Cgroup{{Path: "z", ID: 2}, {Path: "containers", ID: 1}},
		Bridges: []policy.Bridge{{Name: "br0"}},
	}
	bindings := []policy.Binding{{Name: "b", Labels: policy.Labels{"app": "bound"}, Cgroup: "containers/b"}}
	got := tr.cgroups.Scan(bindings)
	want := workload.Snapshot{
		Workloads: []policy.Workload{
			engine.found.Workloads[0],
			{Name: "b", Kind: policy.KindCgroup, Labels: policy.Labels{"app": "bound"}, Cgroup: cgroup("b"),
				Facts: policy.Labels{workload.FactKind: "cgroup"}, Doubtful: policy.Labels{"tier": "web"},
				Given: &policy.GivenLabels{Keys: []string{"app"}, Doubtful: policy.Labels{"app": "nginx"}}},
		},
		Unlabelled: []policy.Unlabelled{{Name: "c", Cgroup: cgroup("c"), Doubtful: image}},
		Parents:    []policy.Cgroup{{Path: "containers", ID: 1}, {Path: "z", ID: 2}},
		Bridges:    []policy.Bridge{{Name: "br0"}},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("the snapshot (-want +got):\n%s", diff)
	}
	tr.cgroups.Recall(got)
	if diff := cmp.Diff(got, engine.recalled, byValue); diff != "" {
		t.Errorf("recalled (-want +got):\n%s", diff)
	}
}

// A document gives its labels to the containers that it names, whatever they have of their own.
func TestBindContainers(t *testing.T) {
	type labels = policy.Labels
	compose := labels{"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}
	at := func(name string) policy.Cgroup { return policy.Cgroup{Path: "docker/" + name, ID: uint64(len(name))} }
	found := workload.Snapshot{
		Workloads: []policy.Workload{
			{Name: "own", Kind: policy.KindContainer, Labels: labels{"app": "web", "env": "prod"}, Cgroup: at("own")},
			{Name: "other", Kind: policy.KindContainer, Labels: labels{"app": "web"}, Cgroup: at("other")},
		},
		Unlabelled: []policy.Unlabelled{
			{Name: "shop-db-1", Facts: compose, Doubtful: labels{"tier": "web"}, Cgroup: at("shop-db-1")},
			{Name: "shop-db-2", Facts: compose, Cgroup: at("shop-db-2")},
			{Name: "plain", Cgroup: at("plain")},
			{Name: "evil", Doubtful: compose, Cgroup: at("evil")}, // its image says so
		},
	}
	bindings := []policy.Binding{
		{Name: "a-service", Labels: labels{"tier": "db"}, Compose: policy.Compose{Project: "shop", Service: "db"}},
		{Name: "b-own", Labels: labels{"app": "api"}, Container: "own"},
		{Name: "c-second", Labels: labels{"app": "second"}, Container: "shop-db-2"},
		{Name: "d-unit", Labels: labels{"app": "unit"}, Unit: "a.service"},
		{Name: "e-absent", Labels: labels{"app": "absent"}, Container: "absent"},
		{Name: "f-another", Labels: labels{"tier": "db"}, Compose: policy.Compose{Project: "shop", Service: "web"}},
	}
	overlaps := bindContainers(bindings, &found)
	got := map[string]labels{}
	for _, w := range found.Workloads {
		got[w.Name] = w.Labels
		for key := range w.Labels {
			_, fact := w.Facts[key]
			if _, doubtful := w.Doubtful[key]; fact || doubtful {
				t.Errorf("%s has %s twice", w.Name, key)
			}
		}
	}
	want := map[string]labels{
		"own": {"app": "api", "env": "prod"}, "other": {"app": "web"}, "shop-db-1": {"tier": "db"},
		"shop-db-2": {"app": "second"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if len(found.Unlabelled) != 2 || found.Unlabelled[0].Name != "plain" ||
		found.Unlabelled[1].Doubtful["tier"] != "db" {
		t.Errorf("unlabelled: %v", found.Unlabelled)
	}
	wantOverlap := `"a-service" has no effect on the container shop-db-2`
	if len(overlaps) != 1 || !strings.Contains(overlaps[0].Text, wantOverlap) {
		t.Errorf("overlaps: %v", overlaps)
	}
	if compose["tier"] != "" || len(compose) != 2 {
		t.Errorf("the labels that were found are changed: %v", compose)
	}
}
